"""Records as the figures and sentences need them; what was not run is None, never a number."""

from dataclasses import dataclass

from fsr import experiments, statistics, store
from fsr.config import Evaluation, Run
from fsr.experiments import Row
from fsr.store import Outcome
from fsr.tables import cells, names
from fsr.tables.frame import Sources


def rows(profile: str, kind: str) -> tuple[Row, ...]:
    """The rows of a set; an unknown profile raises UsageError."""
    experiments.profile_of(profile)
    return experiments.ROWS[profile][kind]


def columns(profile: str) -> tuple[str, ...]:
    """The columns of T1, by the profile's own names: clean, fgsm, ..., ensemble, autoattack."""
    return (*experiments.COLUMNS, "ensemble", experiments.profile_of(profile).autoattack)


def report_checkpoint(profile: str) -> str:
    """The checkpoint that figures and sentences are about."""
    return experiments.profile_of(profile).report_checkpoint


def weights(profile: str) -> str:
    """The same in words: last weights, EMA weights."""
    return names.WEIGHTS[report_checkpoint(profile)]


def images(profile: str, attack: str) -> int | None:
    """How many test images this profile gives an attack; None for all of them."""
    chosen = experiments.profile_of(profile)
    return chosen.autoattack_images if attack == chosen.autoattack else chosen.images


def outcome(
    profile: str, run: Run, attack: str, checkpoint: str | None = None, intervention: str | None = None
) -> Outcome | None:
    """Per-sample outcomes of a column on a run, or None when it was not run; by default of the looked-at weights."""
    chosen = Evaluation(
        attack=attack, checkpoint=checkpoint or report_checkpoint(profile), images=images(profile, attack)
    )
    return cells.outcome(run, cells.at(chosen, chosen.checkpoint, intervention))


def analysis(profile: str, run: Run, kind: str, checkpoint: str | None = None) -> tuple[dict, dict] | None:
    """Record and arrays of a run's planned analysis of this kind, or None when it was not run or does not apply."""
    for planned in experiments.analyses(profile, "all", run):
        wanted = planned.kind == kind and checkpoint in (None, planned.checkpoint)
        if wanted and store.has_analysis(run, planned):
            found = store.load_analysis(run, planned)
            return None if "not_applicable" in found[0] else found
    return None


def analysed(profile: str, row: Row, kind: str, checkpoint: str | None = None) -> list[dict]:
    """Records of one kind over the seeds of a row, those that were run."""
    found = [analysis(profile, run, kind, checkpoint) for run in row.runs]
    return [one[0] for one in found if one is not None]


@dataclass(frozen=True)
class Gain:
    """What FSR changes in one column, as fractions: the mean over seeds and images with its paired 95 % interval.

    seeds: the difference of each pair of seeds; images: how many both saw.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    images: int


def gain(
    profile: str, row: Row, attack: str, checkpoint: str | None = None, sources: Sources | None = None
) -> Gain | None:
    """The row against the same runs without FSR, the very number of T1; None unless one pair of seeds is complete."""
    evaluation = Evaluation(
        attack=attack, checkpoint=checkpoint or report_checkpoint(profile), images=images(profile, attack)
    )
    cell = cells.gain(row.runs, row.plain, evaluation, sources=sources)
    if cell["value"] is None:
        return None
    return Gain(cell["value"], cell["low"], cell["high"], tuple(cell["per_seed"]), cell["n"])


def gain_rows(profile: str) -> list[Row]:
    """T1's rows with FSR, the ones that have a twin without it."""
    return [row for row in rows(profile, "whitebox") if row.plain]


@dataclass(frozen=True)
class Accuracy:
    """A fraction with its 95 % Wilson interval and the number of images."""

    value: float
    low: float
    high: float
    n: int


def accuracy(found: Outcome | None) -> Accuracy | None:
    """Accuracy of outcomes, or None."""
    return None if found is None else counted(found)


def counted(found: Outcome) -> Accuracy:
    """Accuracy of outcomes, with its interval."""
    correct, n = int(found.correct.sum()), len(found.correct)
    low, high = statistics.wilson(correct, n)
    return Accuracy(correct / n, low, high, n)
