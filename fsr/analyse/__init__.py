"""What a trained network does inside, by the kind that records, tables and figures use."""

import numpy as np
import torch

from fsr.analyse.arrays import features, maps, masks, streams
from fsr.analyse.inspection import Inspection, exact
from fsr.analyse.overhead import cost
from fsr.config import Analysis, Run
from fsr.data import Data
from fsr.files import UsageError
from fsr.models import Classifier
from fsr.models.modes import eval_mode

ANALYSES = {"streams": streams, "masks": masks, "maps": maps, "features": features, "cost": cost}


def analyse(
    model: Classifier,
    run: Run,
    analysis: Analysis,
    data: Data,
    *,
    device: torch.device | str = "cpu",
    seconds_per_epoch: float | None = None,
    batch: int = 250,
    weights: str | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
    """(record, arrays) of one analysis of a run's network, in float32 and eval mode; model is left as it was.

    model: on device; seconds_per_epoch: from history.csv, for cost; weights: digest of model's weights, with which the
    next analysis of the same images does not attack them again. Deterministic but for cost's times. A kind that needs
    what the network does not have gives {"not_applicable": why}; an unknown kind raises UsageError.
    """
    if analysis.kind not in ANALYSES:
        raise UsageError(f"no analysis {analysis.kind!r} here; choose one of {', '.join(ANALYSES)}")
    job = Inspection(model, run, analysis, data, torch.device(device), batch, seconds_per_epoch, weights)
    with eval_mode(model), exact():
        return ANALYSES[analysis.kind](job)
