"""What the build notebooks show: what was trained, how it went, and what is recorded."""

import pandas as pd

from fsr import experiments, runs, store
from fsr.config import Evaluation, Run, run_id
from fsr.explore.display import Picture
from fsr.files import MissingRecord, UsageError
from fsr.plots.curves import training
from fsr.tables import labels as words


class Prose(str):
    """Markdown that a notebook renders."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


NOT_RUN = Prose("Not run yet.")


def _run(profile: str, label: str) -> Run:
    named = experiments.named(profile)
    if label not in named:
        raise UsageError(f"no run {label!r} in {profile}; choose one of {', '.join(named)}")
    return named[label]


def variant(run: Run) -> str:
    """What makes this run different from its method's default: only what is not the default."""
    if run.fsr is None:
        return ""
    parts = [f"at {'+'.join(run.fsr.at)}"] if run.fsr.at else []
    default = type(run.fsr)()
    for name in ("tau", "lambda_sep", "lambda_rec", "mask", "granularity"):
        value = getattr(run.fsr, name)
        if value != getattr(default, name):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _at(frame: pd.DataFrame, name: str, row: int) -> float | None:
    return round(float(frame[name].iloc[row]), 3) if name in frame and pd.notna(frame[name].iloc[row]) else None


def _trained_row(run: Run) -> list:
    start = [words.method(run.label), words.network(run), words.dataset(run.dataset), variant(run), run.seed]
    try:
        frame = store.history(run)
    except MissingRecord:
        return [*start, "not run", None, None, None, None]
    robust = frame["held_robust_acc"] if "held_robust_acc" in frame else pd.Series(dtype=float)
    best = int(robust.to_numpy().argmax()) if len(robust) and robust.notna().any() else None
    last = [_at(frame, name, -1) for name in ("held_clean_acc", "held_robust_acc")]
    done = f"{len(frame)}/{run.epochs}"
    return [*start, done, *last, None if best is None else int(frame["epoch"].iloc[best]),
            round(float(frame["seconds"].sum()), 1)]  # fmt: skip


def trained(profile: str, *, modules: bool) -> pd.DataFrame:
    """A row per planned run, without (modules=False) or with an inserted module: epochs and held-out accuracies."""
    chosen = [run for run in experiments.SETS[profile]["all"] if (run.module is not None) == modules]
    names = ["method", "network", "data", "variant", "seed", "epochs", "clean", "robust", "best epoch", "seconds"]
    return pd.DataFrame([_trained_row(run) for run in chosen], columns=names)


def history_tail(profile: str, label: str, epochs: int = 5) -> pd.DataFrame | Prose:
    """The last epochs of seed 0's run with this label, as recorded."""
    try:
        return store.history(_run(profile, label)).tail(epochs).set_index("epoch").round(4)
    except MissingRecord:
        return NOT_RUN


def picture_of(run: Run) -> Picture:
    """Loss terms and accuracies of a run so far."""
    return Picture.of(training(run), f"training of {run_id(run)}")


def training_picture(profile: str, label: str) -> Picture | Prose:
    """Loss terms and accuracies of seed 0's run with this label."""
    run = _run(profile, label)
    try:
        return picture_of(run)
    except MissingRecord:
        return NOT_RUN


def recorded(profile: str) -> pd.DataFrame:
    """Per run: state, and how much of what is planned on it is recorded."""
    frame = runs.status(profile)
    return frame.set_index("run")


def outcomes(profile: str, label: str, checkpoint: str = "last") -> pd.DataFrame:
    """Every recorded column of seed 0's run with this label: correct, n and accuracy in percent."""
    run = _run(profile, label)
    metrics = store.metrics([run], checkpoint)
    usual = (*store.ENSEMBLE, "ensemble", experiments.profile_of(profile).autoattack)
    metrics = metrics[metrics["intervention"].isna() & metrics["surrogate"].isna()]
    frames = []
    for name in usual:
        plain = [e.attack_id for e in _planned(profile, run, name)]
        frames.append(metrics[(metrics["attack"] == name) & metrics["attack_id"].isin(plain)])
    frame = pd.concat(frames)
    frame = frame.assign(attack=frame["attack"].map(words.metric), percent=(100 * frame["accuracy"]).round(1))
    return frame[["attack", "n", "correct", "percent"]].set_index("attack")


def _planned(profile: str, run: Run, name: str) -> list[Evaluation]:
    chosen = experiments.profile_of(profile)
    images = chosen.autoattack_images if name == chosen.autoattack else chosen.images
    return [Evaluation(attack=name, images=images)]
