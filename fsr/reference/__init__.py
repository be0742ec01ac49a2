"""What others report, and the verdict's claims."""

from fsr.reference.claims import CLAIMS, MIN_SEEDS, Claim
from fsr.reference.known import COLUMNS, epoch_log, known_results, paper_file, paper_values
