"""What the records say: sentences, README's generated parts, and one HTML page per profile."""

from fsr.report.findings import answer, findings
from fsr.report.pages import build, update_readme
