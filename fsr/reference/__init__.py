"""What others report, and the verdict's claims."""

from fsr.reference.claim import MIN_SEEDS, Claim
from fsr.reference.claims import CLAIMS
from fsr.reference.known import COLUMNS, TABLES, epoch_log, known_results, paper_file, paper_values
from fsr.reference.predictions import PREDICTIONS

__all__ = [
    "CLAIMS",
    "COLUMNS",
    "MIN_SEEDS",
    "PREDICTIONS",
    "TABLES",
    "Claim",
    "epoch_log",
    "known_results",
    "paper_file",
    "paper_values",
]
