"""What others report, the verdict's claims, and where we differ from the authors' code."""

from fsr.reference.claims import CLAIMS, MIN_SEEDS, PREDICTIONS, Claim
from fsr.reference.deviations import DEVIATIONS, Deviation, deviations
from fsr.reference.known import COLUMNS, TABLES, epoch_log, known_results, paper_file, paper_values

__all__ = [
    "CLAIMS",
    "COLUMNS",
    "DEVIATIONS",
    "MIN_SEEDS",
    "PREDICTIONS",
    "TABLES",
    "Claim",
    "Deviation",
    "deviations",
    "epoch_log",
    "known_results",
    "paper_file",
    "paper_values",
]
