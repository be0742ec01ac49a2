"""Looks inside one trained network, by the kind that records and figures use."""

from collections.abc import Callable

import numpy as np
import torch

from fsr.analyse.look import Job, exact
from fsr.analyse.overhead import cost
from fsr.analyse.pictures import features, maps, masks
from fsr.analyse.probes import streams
from fsr.config import Analysis, Run
from fsr.data import Data
from fsr.files import UsageError
from fsr.models import Classifier
from fsr.models.modes import eval_mode

__all__ = ["ANALYSES", "analyse"]

ANALYSES: dict[str, Callable[[Job], tuple[dict, dict]]] = {
    "streams": streams,
    "masks": masks,
    "maps": maps,
    "features": features,
    "cost": cost,
}


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

    model: the run's weights, on device; data: its data, on any device; seconds_per_epoch: from history.csv, for cost;
    batch: images at once; weights: the digest of model's weights, with which the next analysis of the same network and
    images does not attack them again. analysis.images beyond the test set means all of it. Deterministic but for cost's
    times. The last inserted module is the one looked at. A kind that needs what the network does not have gives
    {"not_applicable": why} and no arrays; an unknown kind raises UsageError.
    """
    if analysis.kind not in ANALYSES:
        raise UsageError(f"no analysis {analysis.kind!r} here; choose one of {', '.join(ANALYSES)}")
    job = Job(model, run, analysis, data, torch.device(device), batch, seconds_per_epoch, weights)
    with eval_mode(model), exact():
        return ANALYSES[analysis.kind](job)
