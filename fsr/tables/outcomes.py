"""From per-image outcomes to the numbers of one cell: an accuracy, or a gain over a baseline on the same images."""

from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd

from fsr import files, statistics, store
from fsr.config import PROTOCOL, Evaluation, Run
from fsr.reference import MIN_SEEDS
from fsr.tables import labels

Runs = tuple[Run, ...]
SPARED = 0.01  # share of its images that another attack may break and AutoAttack not: starting points differ


@lru_cache(maxsize=4096)
def _read(root: Path, run: Run, evaluation: Evaluation) -> tuple[pd.Series, dict]:
    """Outcomes by test-set position, and their record; records are never rewritten, so they are read once."""
    loaded = store.load_evaluation(run, evaluation)
    return pd.Series(loaded.correct, index=loaded.index).sort_index(), loaded.record


def _parts(evaluation: Evaluation) -> list[Evaluation]:
    names = PROTOCOL if evaluation.attack == "ensemble" else (evaluation.attack,)
    return [replace(evaluation, attack=name) for name in names]


def of_other_weights(run: Run, evaluation: Evaluation) -> bool:
    """Is this evaluation on record, but of other weights than those of the run's training on record?"""
    trained = store.environment(run).get("checkpoints", {}) if store.is_trained(run) else {}
    digest = trained.get(evaluation.checkpoint)
    records = [_read(files.results(), run, one)[1] for one in _parts(evaluation) if store.has_record(run, one)]
    return digest is not None and any(record.get("weights") not in (None, digest) for record in records)


def outcome(run: Run, evaluation: Evaluation) -> pd.Series | None:
    """Right (bool) by test-set position; `ensemble`: under all five columns; None: not run, or of other weights."""
    parts = _parts(evaluation)
    if not all(store.has_record(run, part) for part in parts) or of_other_weights(run, evaluation):
        return None
    return pd.concat([_read(files.results(), run, part)[0] for part in parts], axis=1, join="inner").all(axis=1)


def accuracy(runs: Runs, evaluation: Evaluation) -> dict:
    """Mean over seeds as a fraction with Wilson's interval at one seed's n, since all see the same images; flags."""
    outcomes = {run: o for run in runs if (o := outcome(run, evaluation)) is not None}
    cell: dict = {"planned": len(runs), "seeds": len(outcomes)}
    if outcomes:
        each = [float(correct.mean()) for correct in outcomes.values()]
        cell |= {"each": each, "flags": warnings(list(outcomes), evaluation)}
        cell |= mean_of(each, min(map(len, outcomes.values())))
    return cell


def mean_of(values: list[float], n: int) -> dict:
    """Mean of one accuracy per seed, each of the same n images, Wilson's interval at n, and the standard deviation."""
    mean, sd, *_ = statistics.seed_summary(values)
    low, high = statistics.wilson(min(mean * n, n), n)
    return {"value": mean, "low": low, "high": high, "n": n, "sd": sd}


def gain(runs: Runs, baseline: Runs, evaluation: Evaluation, base_evaluation: Evaluation | None = None) -> dict:
    """Accuracy of `runs` minus `baseline` as a fraction, on the images that both have, seed by seed.

    low, high: over images; seeds_low, seeds_high: over both, from three seeds on; p_first_seed: McNemar's, of one pair.
    """
    bases = {run.seed: outcome(run, base_evaluation or evaluation) for run in baseline}
    pairs = [(bases.get(run.seed), outcome(run, evaluation)) for run in runs]
    joined = [pd.concat(pair, axis=1, join="inner") for pair in pairs if all(o is not None for o in pair)]
    cell: dict = {"planned": len(runs), "seeds": len(joined)}
    if not joined:
        return cell
    before, after = ([pair[i].to_numpy(float) for pair in joined] for i in (0, 1))
    mean, sd, *_ = statistics.seed_summary([float(a.mean() - b.mean()) for b, a in zip(before, after)])
    p = statistics.mcnemar_exact(before[0], after[0])
    low, high = statistics.paired_bootstrap(np.mean(before, axis=0), np.mean(after, axis=0))
    cell |= {"value": mean, "low": low, "high": high, "sd": sd, "n": len(after[0]), "p_first_seed": p}
    if len(joined) >= MIN_SEEDS:
        cell["seeds_low"], cell["seeds_high"] = statistics.paired_bootstrap(before, after)
    return cell


def broken_only(run: Run, evaluation: Evaluation, survived: pd.Series | None) -> tuple[int, int]:
    """(images of `survived` that fall to this evaluation, images of it that this saw); 0, 0 where one was not run."""
    other = outcome(run, evaluation)
    if survived is None or other is None:
        return 0, 0
    joined = pd.concat([survived, other], axis=1, join="inner").to_numpy()
    return int((joined[:, 0] & ~joined[:, 1]).sum()), int(joined[:, 0].sum())


def warnings(runs: list[Run], evaluation: Evaluation) -> str | None:
    """What puts an AutoAttack result in doubt: its own flags, and attacks that beat it; `none` without any."""
    if not evaluation.attack.startswith("autoattack"):
        return None
    parts = [_read(files.results(), run, evaluation) for run in runs]
    flags = [record["flags"] for _, record in parts if record.get("flags") is not None]
    if not flags:
        return None
    raised = sorted({name for record in flags for name, on in record.items() if on is True})
    doubts = [", ".join(raised).replace("_", " ")] * bool(raised)
    setting, beaten = attrgetter("checkpoint", "eps", "intervention"), [(0, 0, 1, "")]
    for run, (autoattack, _) in zip(runs, parts):
        others = [other for other in store.evaluations(run) if setting(other) == setting(evaluation)]
        beaten += [(*broken_only(run, other, autoattack), len(autoattack), other.attack) for other in others]
    broken, left, n, attack = max(beaten)
    if broken > SPARED * n:
        doubts.append(f"{labels.metric(attack)} breaks {broken} of the {left} that it leaves")
    return "; ".join(doubts) or "none"
