"""What the records say: sentences, README's generated parts, and one HTML page per profile."""

from fsr.report.pages import answers, build, update_readme
from fsr.report.sentences import answer, findings
