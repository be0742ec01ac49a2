"""Training: objectives, the fast crafting copy, the loop, and one run over several devices."""

from fsr.train.loop import Callbacks, Trainer, fit
from fsr.train.objectives import fsr_terms
