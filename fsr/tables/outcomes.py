"""From per-image outcomes to the numbers of one cell: an accuracy, or a gain over a baseline on the same images."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from fsr import statistics, store
from fsr.config import PROTOCOL, Analysis, Evaluation, Run, run_id
from fsr.reference import MIN_SEEDS
from fsr.tables import labels

Runs = tuple[Run, ...]
COLUMNS = "run_id dataset backbone width method seed epochs train_size checkpoint attack attack_id images eps steps"
COLUMNS += " surrogate intervention n correct accuracy seconds"
SPARED = 0.01  # share of the images of both that another attack may break and AutoAttack not: starting points differ


@lru_cache(maxsize=4096)
def _loaded(run: Run, evaluation: Evaluation, *_file) -> tuple[pd.Series, dict]:
    loaded = store.load_evaluation(run, evaluation)
    images = loaded.record.get("images_sha256")
    return pd.Series(loaded.correct, index=loaded.index, name=images).sort_index(), loaded.record


def _read(run: Run, evaluation: Evaluation) -> tuple[pd.Series, dict]:
    """Outcomes by test-set position, and their record; read again when its file is another one."""
    path = store.record_path(run, evaluation)
    return _loaded(run, evaluation, path, path.stat().st_mtime_ns)


def _parts(evaluation: Evaluation) -> list[Evaluation]:
    names = PROTOCOL if evaluation.attack == "ensemble" else (evaluation.attack,)
    return [replace(evaluation, attack=name) for name in names]


def of_other_weights(run: Run, part: Evaluation | Analysis) -> bool:
    """Is this evaluation or analysis on record, but of two weights, or of others than the training on record has?"""
    trained = store.environment(run).get("checkpoints", {}) if store.is_trained(run) else {}
    here = [one for one in ([part] if isinstance(part, Analysis) else _parts(part)) if store.has_record(run, one)]
    records = [store.load_analysis(run, p)[0] if isinstance(p, Analysis) else _read(run, p)[1] for p in here]
    return len({trained.get(part.checkpoint), *(one.get("weights") for one in records)} - {None}) > 1


def advice(profile: str, mixed: list[Run]) -> str:
    """What to do about runs of which some outcomes are of other weights."""
    moved = "; ".join(f"move results/runs/{one} away" for one in dict.fromkeys(map(run_id, mixed)))
    return f"Outcomes of other weights are left out; {moved} and run `python -m fsr run-all -p {profile}`."


def _joined(*parts: Any) -> pd.DataFrame:
    """Outcomes on the images that all have: none where one was not run, or of two test sets (digests are names)."""
    if any(one is None for one in parts) or len({one.name for one in parts} - {None}) > 1:
        return pd.DataFrame()
    return pd.concat(parts, axis=1, join="inner")


def outcome(run: Run, evaluation: Evaluation) -> pd.Series | None:
    """Right (bool) by test-set position; `ensemble`: under all five columns; None: not run, or of other weights."""
    parts = _parts(evaluation)
    if not all(store.has_record(run, part) for part in parts) or of_other_weights(run, evaluation):
        return None
    each = [_read(run, part)[0] for part in parts]
    together, images = _joined(*each).all(axis=1), next((one.name for one in each if one.name), None)
    return together.rename(images) if len(together) else None


def accuracy(runs: Runs, evaluation: Evaluation) -> dict:
    """Mean over seeds as a fraction with Wilson's interval at one seed's n, since all see the same images; flags."""
    outcomes = {run: o for run in runs if (o := outcome(run, evaluation)) is not None}
    outcomes = outcomes if len({one.name for one in outcomes.values()} - {None}) < 2 else {}  # not of two test sets
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
    both = [(bases.get(run.seed), outcome(run, evaluation)) for run in runs]
    images = {one.name for pair in both for one in pair if one is not None} - {None}
    pairs = [_joined(*pair) for pair in both] if len(images) < 2 else []
    joined = [pair.to_numpy(float).T for pair in pairs if len(pair)]
    cell: dict = {"planned": len(runs), "seeds": len(joined)}
    if not joined:
        return cell
    before, after = zip(*joined)
    mean, sd, *_ = statistics.seed_summary([float(a.mean() - b.mean()) for b, a in zip(before, after)])
    p = statistics.mcnemar_exact(before[0], after[0])
    low, high = statistics.paired_bootstrap(np.mean(before, axis=0), np.mean(after, axis=0))
    cell |= {"value": mean, "low": low, "high": high, "sd": sd, "n": len(after[0]), "p_first_seed": p}
    if len(joined) >= MIN_SEEDS:
        cell["seeds_low"], cell["seeds_high"] = statistics.paired_bootstrap(before, after)
    return cell


def decided(cell: dict) -> dict:
    """A gain with the interval that decides as low, high: over seeds and images where there is one."""
    return cell | {end: cell[f"seeds_{end}"] for end in ("low", "high") if f"seeds_{end}" in cell}


def broken_only(run: Run, evaluation: Evaluation, survived: pd.Series | None) -> tuple[int, int, int]:
    """Of n images that both saw: (`survived` but fall to this evaluation, `survived`, n); 0s where one was not run."""
    joined = _joined(survived, outcome(run, evaluation)).to_numpy(bool).reshape(-1, 2)
    return int((joined[:, 0] & ~joined[:, 1]).sum()), int(joined[:, 0].sum()), len(joined)


def warnings(runs: list[Run], evaluation: Evaluation) -> str | None:
    """What puts an AutoAttack result in doubt: its own flags, and attacks that beat it; `none` without any."""
    if not evaluation.attack.startswith("autoattack"):
        return None
    parts = [_read(run, evaluation) for run in runs]
    flags = [record["flags"] for _, record in parts if record.get("flags") is not None]
    if not flags:
        return None
    raised = sorted({name for record in flags for name, on in record.items() if on is True})
    doubts = [", ".join(raised).replace("_", " ")] * bool(raised)
    setting, beaten = attrgetter("checkpoint", "eps", "intervention"), [(0.0, 0, 0, "")]
    for run, (autoattack, _) in zip(runs, parts):
        for other in (other for other in store.evaluations(run) if setting(other) == setting(evaluation)):
            broken, left, n = broken_only(run, other, autoattack)
            beaten.append((broken / max(n, 1), broken, left, other.attack))
    share, broken, left, attack = max(beaten)
    if share > SPARED:
        doubts.append(f"{labels.metric(attack)} breaks {broken} of the {left} that it leaves")
    return "; ".join(doubts) or "none"


def metrics(runs: Iterable[Run]) -> pd.DataFrame:
    """A row per run, checkpoint and attack, `ensemble` among them: configurations, n, correct, accuracy, seconds."""
    rows = []
    for run in dict.fromkeys(runs):
        recorded = store.evaluations(run)
        for one, record in [*recorded.items()]:
            together = replace(one, attack="ensemble")
            if one.attack == "clean" and (combined := outcome(run, together)) is not None:
                recorded[together] = {"eps": record["eps"], "n": len(combined), "correct": int(combined.sum())}
        for one, record in recorded.items():
            facts = {name: record.get(name) for name in ("eps", "n", "correct", "seconds")}
            own = {"run_id": run_id(run), "method": run.label, "attack_id": one.attack_id}
            rows.append(vars(run) | asdict(one) | facts | own)
    frame = pd.DataFrame(rows, columns=COLUMNS.split())
    return frame.assign(accuracy=frame["correct"] / frame["n"])
