"""From per-sample outcomes to one cell: accuracy with its interval, gain with its paired test."""

from dataclasses import replace
from functools import lru_cache, reduce

import numpy as np

from fsr import statistics, store
from fsr.config import DATASETS, Evaluation, Run
from fsr.tables import labels
from fsr.tables.frame import Sources

# Share of AutoAttack's images that another attack may break and it not: starts differ. More says that it is no bound.
SPARED = 0.01


@lru_cache(maxsize=1024)
def _stored(run: Run, evaluation: Evaluation, stamp: int) -> store.Outcome:
    """Outcomes sorted by test-set position; stamp (the record's time) lets a rewritten record be read again."""
    found = store.load_evaluation(run, evaluation)
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
    warnings = [o.record["flags"] for o in found if o.record.get("flags") is not None]
    flags = flag_text(warnings, _outdone(runs, evaluation))
    return cell | {
        "value": mean, "low": low, "high": high, "n": n, "sd": sd, "flags": flags,
    }  # fmt: skip


GUESSING = "no better than guessing, even without an attack"


def guesses(low: float | None, dataset: str) -> bool:
    """Is a clean accuracy, of which this is the interval's lower end, no better than guessing among the classes?"""
    info = DATASETS.get(dataset)
    return low is not None and info is not None and low <= 1 / info.classes


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


def outdone(run: Run, evaluation: Evaluation) -> tuple[str, int, int] | None:
    """(attack, images that it breaks and AutoAttack does not, images that AutoAttack leaves right), or None.

    evaluation: AutoAttack's. Of all attacks on record on the same weights, of the same strength, the one that breaks
    most of what AutoAttack leaves; None when that is no more than SPARED of its images. AutoAttack knows the logits
    alone, an attack on a network's auxiliary heads knows more.
    """
    strong = outcome(run, evaluation)
    if strong is None:
        return None
    same = replace(evaluation, attack="", images=None, steps=None, surrogate=None)
    others = [
        e for e in store.evaluations(run) if replace(e, attack="", images=None, steps=None, surrogate=None) == same
    ]
    counts = [(e.attack, broken_only(run, e, strong)) for e in others if e.attack != evaluation.attack]
    found = [(name, *both) for name, both in counts if both and both[0] > SPARED * len(strong.correct)]
    return max(found, key=lambda each: each[1], default=None)


def _outdone(runs: tuple[Run, ...], evaluation: Evaluation) -> list[str]:
    """What `outdone` says of the seed where most is broken, in words; [] where there is nothing to say."""
    if not evaluation.attack.startswith("autoattack"):
        return []
    worst = max(filter(None, (outdone(run, evaluation) for run in runs)), key=lambda each: each[1], default=None)
    return [] if worst is None else [f"{labels.metric(worst[0])} breaks {worst[1]} of the {worst[2]} that it leaves"]


def flag_text(flags: list[dict], doubts: list[str]) -> str | None:
    """AutoAttack's own warnings and what else puts it in doubt, `none` without any; None when it was not run."""
    if not flags:
        return None
    raised = sorted({name for record in flags for name, on in record.items() if on is True})
    return "; ".join([*filter(None, [", ".join(raised).replace("_", " ")]), *doubts]) or "none"


def at(evaluation: Evaluation, checkpoint: str, intervention: str | None = None) -> Evaluation:
    """The same evaluation on another checkpoint, or under an intervention."""
    return replace(evaluation, checkpoint=checkpoint, intervention=intervention)
