"""Training: objectives, the fast crafting copy, the loop, and one run over several devices."""

from fsr.train.loop import Callbacks, Progress, Trainer, fit

__all__ = ["Callbacks", "Progress", "Trainer", "fit"]
