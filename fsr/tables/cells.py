"""From per-sample outcomes to one cell: accuracy with its interval, gain with its paired test."""

from dataclasses import replace
from functools import lru_cache, reduce

import numpy as np

from fsr import statistics, store
from fsr.config import Evaluation, Run
from fsr.tables.frame import Sources


@lru_cache(maxsize=1024)
def _stored(run: Run, evaluation: Evaluation, stamp: int) -> store.Outcome:
    """Outcomes sorted by test-set position; stamp (the record's time) lets a rewritten record be read again."""
    found = store.load_eval(run, evaluation)
    order = np.argsort(found.index)
    return store.Outcome(found.index[order], found.correct[order], found.record)


def outcome(run: Run, evaluation: Evaluation) -> store.Outcome | None:
    """Per-sample outcomes, sorted by test-set position; None when not run. `ensemble` is computed from its parts."""
    if evaluation.attack == "ensemble":
        return _ensemble(run, evaluation)
    path = store.eval_path(run, evaluation)
    return _stored(run, evaluation, path.stat().st_mtime_ns) if path.exists() else None


def _ensemble(run: Run, evaluation: Evaluation) -> store.Outcome | None:
    """Right under all five of the authors' columns, on the images that all five have."""
    found = [outcome(run, replace(evaluation, attack=name)) for name in store.ENSEMBLE]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found) or not store.same_weights(parts):
        return None
    index = reduce(np.intersect1d, [part.index for part in parts])
    right = [part.correct[np.searchsorted(part.index, index)] for part in parts]
    return store.Outcome(index, np.asarray(np.stack(right).all(axis=0)), parts[0].record)


def accuracy(runs: tuple[Run, ...], evaluation: Evaluation, sources: Sources) -> dict:
    """Mean over seeds as a fraction, n images, seeds, standard deviation over seeds and a 95 % Wilson interval.

    The interval is of the images: for several seeds, Wilson's at the mean accuracy and the n of one seed, since all
    seeds see the same images. The value is None when no seed was run.
    """
    found = [o for run in runs if (o := outcome(run, evaluation)) is not None]
    for o in found:
        sources.add(o.record)
    cell: dict = {"planned": len(runs), "seeds": len(found)}
    if not found:
        return cell | {"value": None}
    values = [o.accuracy for o in found]
    n = min(len(o.correct) for o in found)
    mean = float(np.mean(values))
    low, high = statistics.wilson(min(mean * n, n), n)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    flags = [o.record["flags"] for o in found if o.record.get("flags") is not None]
    return cell | {
        "value": mean, "low": low, "high": high, "n": n, "sd": sd, "flags": flag_text(flags),
    }  # fmt: skip


def gain(
    runs: tuple[Run, ...],
    plain: tuple[Run, ...],
    evaluation: Evaluation,
    plain_evaluation: Evaluation | None = None,
    *,
    sources: Sources | None = None,
    within: Evaluation | None = None,
) -> dict:
    """Accuracy of `runs` minus `plain` as a fraction, on the same images and seeds.

    The interval is a paired bootstrap over images of the difference averaged over seeds; p_first_seed is McNemar's
    exact test of one network against one network; per_seed holds each seed's difference. within: only on images that
    this evaluation of `runs` has too.
    """
    pairs = []
    for run in runs:
        other = next((p for p in plain if p.seed == run.seed), None)
        after = outcome(run, evaluation)
        before = outcome(other, plain_evaluation or evaluation) if other else None
        other_images = outcome(run, within) if within else after
        if after is not None and before is not None and other_images is not None:
            same_run = other == run and evaluation.checkpoint == (plain_evaluation or evaluation).checkpoint
            if same_run and not store.same_weights((after, before)):
                continue  # an intervention on another training of the run
            pairs.append(_common(after, before, other_images.index))
            if sources is not None:
                sources.add(after.record)
                sources.add(before.record)
    cell: dict = {"planned": len(runs), "seeds": len(pairs)}
    if not pairs:
        return cell | {"value": None}
    mean_after, mean_before = (np.mean([pair[i] for pair in pairs], axis=0) for i in (0, 1))
    per_seed = [float(np.mean(a) - np.mean(b)) for a, b in pairs]
    low, high = statistics.paired_bootstrap(mean_before, mean_after)
    sd = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None
    return cell | {
        "value": float(np.mean(per_seed)), "low": low, "high": high, "n": len(mean_after), "sd": sd,
        "p_first_seed": statistics.mcnemar_exact(*pairs[0]), "per_seed": per_seed,
    }  # fmt: skip


def shared(run: Run, evaluation: Evaluation, within: Evaluation) -> np.ndarray | None:
    """Outcomes of one evaluation, (n,) bool, on the images that the other has too; None while one was not run."""
    found, other = outcome(run, evaluation), outcome(run, within)
    return None if found is None or other is None else found.correct[np.isin(found.index, other.index)]


def broken_only(
    run: Run, evaluation: Evaluation, white: store.Outcome, sources: Sources | None = None
) -> tuple[int, int] | None:
    """(images that survive `white` and fall to this evaluation, survivors that it saw); None when it was not run.

    None also when the network was trained again in between: it is another one.
    """
    black = outcome(run, evaluation)
    if black is None or not store.same_weights((white, black)):
        return None
    if sources is not None:
        sources.add(black.record)
    before, after = _common(white, black, black.index)
    return int((before & ~after).sum()), int(before.sum())


def _common(a: store.Outcome, b: store.Outcome, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index, i, j = np.intersect1d(a.index, b.index, return_indices=True)
    kept = np.isin(index, within)
    return a.correct[i][kept], b.correct[j][kept]


def flag_text(flags: list[dict]) -> str | None:
    """AutoAttack's own warnings: their names, `none` when it raised none, None when it was not run."""
    if not flags:
        return None
    raised = sorted({name for record in flags for name, on in record.items() if on is True})
    return ", ".join(raised).replace("_", " ") or "none"


def at(evaluation: Evaluation, checkpoint: str, intervention: str | None = None) -> Evaluation:
    """The same evaluation on another checkpoint, or under an intervention."""
    return replace(evaluation, checkpoint=checkpoint, intervention=intervention)
