"""From per-image outcomes to the numbers of one cell: an accuracy, or a gain over a baseline on the same images."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fsr import files, statistics, store
from fsr.config import Evaluation, Run
from fsr.tables import labels

SPARED = 0.01  # share of its images that another attack may break and AutoAttack not: starting points differ
ENOUGH_SEEDS = 3  # from here on a gain has an interval over seeds and images


@lru_cache(maxsize=4096)
def _read(root: Path, run: Run, evaluation: Evaluation) -> tuple[pd.Series, dict]:
    """Outcomes by test-set position, and their record; records are never rewritten, so they are read once."""
    found = store.load_evaluation(run, evaluation)
    return pd.Series(found.correct, index=found.index).sort_index(), found.record


def of_other_weights(run: Run, evaluation: Evaluation) -> bool:
    """Is this evaluation on record, but of other weights than those of the run's training on record?"""
    if evaluation.attack == "ensemble":
        return any(of_other_weights(run, replace(evaluation, attack=name)) for name in store.ENSEMBLE)
    if not store.has_evaluation(run, evaluation) or not store.is_trained(run):
        return False
    trained = store.environment(run).get("checkpoints", {}).get(evaluation.checkpoint)
    return trained is not None and _read(files.results(), run, evaluation)[1].get("weights") not in (None, trained)


def outcome(run: Run, evaluation: Evaluation) -> pd.Series | None:
    """Right or wrong (bool) by test-set position; None when it was not run, or on other weights.

    `ensemble` is right where all five of the authors' columns are right, on the images that all five have.
    """
    if evaluation.attack == "ensemble":
        parts = [outcome(run, replace(evaluation, attack=name)) for name in store.ENSEMBLE]
        done = [part for part in parts if part is not None]
        return pd.concat(done, axis=1, join="inner").all(axis=1) if len(done) == len(parts) else None
    if not store.has_evaluation(run, evaluation) or of_other_weights(run, evaluation):
        return None
    return _read(files.results(), run, evaluation)[0]


def accuracy(runs: tuple[Run, ...], evaluation: Evaluation) -> dict:
    """Mean over seeds as a fraction, its 95 % Wilson interval and the standard deviation over seeds.

    The interval is of the images: Wilson's at the mean accuracy and the n of one seed, since all seeds see the same
    images. value is missing when no seed was run.
    """
    found = {run: o for run in runs if (o := outcome(run, evaluation)) is not None}
    cell: dict = {"planned": len(runs), "seeds": len(found)}
    if not found:
        return cell
    values, n = [float(o.mean()) for o in found.values()], min(map(len, found.values()))
    mean = float(np.mean(values))
    low, high = statistics.wilson(min(mean * n, n), n)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    flags = warnings(list(found), evaluation)
    return cell | {"value": mean, "low": low, "high": high, "n": n, "sd": sd, "flags": flags}


def pairs(
    runs: tuple[Run, ...], baseline: tuple[Run, ...], evaluation: Evaluation, base_evaluation: Evaluation
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(before, after) outcomes (n,) bool of every seed that both have, on the images that both have."""
    bases = {run.seed: outcome(run, base_evaluation) for run in baseline}
    both = [(bases.get(run.seed), outcome(run, evaluation)) for run in runs]
    joined = [pd.concat(pair, axis=1, join="inner") for pair in both if all(o is not None for o in pair)]
    return [(part[0].to_numpy(), part[1].to_numpy()) for part in joined]


def gain(
    runs: tuple[Run, ...], baseline: tuple[Run, ...], evaluation: Evaluation, base_evaluation: Evaluation | None = None
) -> dict:
    """Accuracy of `runs` minus `baseline` as a fraction, on the same images and seeds.

    low, high: paired bootstrap over images; seeds_low, seeds_high: crossed bootstrap over seeds and images, from three
    seeds on; p_first_seed: McNemar's exact test of one pair of networks.
    """
    found = pairs(runs, baseline, evaluation, base_evaluation or evaluation)
    cell: dict = {"planned": len(runs), "seeds": len(found)}
    if not found:
        return cell
    before, after = ([pair[i].astype(float) for pair in found] for i in (0, 1))
    deltas = [float(np.mean(a) - np.mean(b)) for b, a in zip(before, after)]
    low, high = statistics.paired_bootstrap(np.mean(before, axis=0), np.mean(after, axis=0))
    if len(found) >= ENOUGH_SEEDS:
        ends = statistics.crossed_bootstrap(np.stack(before), np.stack(after))
        cell |= {"seeds_low": ends[0], "seeds_high": ends[1]}
    sd = float(np.std(deltas, ddof=1)) if len(deltas) > 1 else None
    cell |= {"value": float(np.mean(deltas)), "low": low, "high": high, "n": len(after[0]), "sd": sd}
    return cell | {"p_first_seed": statistics.mcnemar_exact(*found[0])}


def broken_only(run: Run, evaluation: Evaluation, strong: pd.Series) -> tuple[int, int] | None:
    """(images that survive `strong` and fall to this evaluation, survivors that it saw); None when it was not run."""
    other = outcome(run, evaluation)
    if other is None:
        return None
    both = pd.concat([strong, other], axis=1, join="inner").to_numpy()
    return int((both[:, 0] & ~both[:, 1]).sum()), int(both[:, 0].sum())


def _outdone(run: Run, evaluation: Evaluation) -> tuple[int, int, str] | None:
    """Of the recorded attacks of the same strength the one that breaks most of what AutoAttack leaves, if that is much.

    (images broken, images that AutoAttack leaves right, attack).
    """
    strong = outcome(run, evaluation)
    if strong is None:
        return None
    changes: dict[str, Any] = {"attack": "", "images": None, "steps": None, "surrogate": None}
    same = replace(evaluation, **changes)
    others = [e for e in store.evaluations(run) if e.attack != evaluation.attack and replace(e, **changes) == same]
    counts = [(*both, e.attack) for e in others if (both := broken_only(run, e, strong))]
    return max((c for c in counts if c[0] > SPARED * len(strong)), default=None, key=lambda count: count[0])


def warnings(runs: list[Run], evaluation: Evaluation) -> str | None:
    """What puts an AutoAttack result in doubt: its own flags, and attacks that beat it; `none` without any."""
    records = [_read(files.results(), run, evaluation)[1] for run in runs if evaluation.attack != "ensemble"]
    flags = [record["flags"] for record in records if record.get("flags") is not None]
    if not flags:
        return None
    raised = sorted({name for record in flags for name, on in record.items() if on is True})
    beaten = [found for run in runs if (found := _outdone(run, evaluation))]
    doubts = [", ".join(raised).replace("_", " ")] if raised else []
    if beaten and evaluation.attack.startswith("autoattack"):
        broken, left, attack = max(beaten, key=lambda found: found[0])
        doubts.append(f"{labels.metric(attack)} breaks {broken} of the {left} that it leaves")
    return "; ".join(doubts) or "none"
