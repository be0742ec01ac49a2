"""Looking around by hand: plain functions first, widgets on top of them."""

from fsr.explore.controls import app
from fsr.explore.live import complete
from fsr.explore.looking import Choice, Choices, Look, choices, look
from fsr.explore.pictures import compare, picture
from fsr.explore.records import history_tail, outcomes, recorded, trained, training_picture
from fsr.explore.surroundings import data_summary, mask_slope, module_summary, plan, sample_grid, versions

__all__ = [
    "Choice",
    "Choices",
    "Look",
    "app",
    "choices",
    "compare",
    "complete",
    "data_summary",
    "history_tail",
    "look",
    "mask_slope",
    "module_summary",
    "outcomes",
    "picture",
    "plan",
    "recorded",
    "sample_grid",
    "trained",
    "training_picture",
    "versions",
]
