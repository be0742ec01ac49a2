"""What the records say: sentences, README's generated parts, and one HTML page per profile."""

from fsr.report.findings import answer, findings
from fsr.report.page import build
from fsr.report.readme import update_readme
