"""T1 to T11: from records to tables; what was not run says so and cannot vanish."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

from fsr import experiments, files, reference, store
from fsr.config import Run
from fsr.files import UsageError
from fsr.tables import analyses, display, outcomes, robustness, verdict
from fsr.tables.analyses import provenance
from fsr.tables.display import show, wide

TABLES = {  # the name of its files without their suffix, and its title
    "T1": ("T1-whitebox", "White-box robustness"),
    "T2": ("T2-deactivation", "Against deactivation"),
    "T3": ("T3-blackbox", "Black-box attacks"),
    "T4": ("T4-components", "Components and controls"),
    "T5": ("T5-settings", "Settings of the module"),
    "T6": ("T6-placement", "Where FSR sits"),
    "T7": ("T7-streams", "What the streams know"),
    "T8": ("T8-overhead", "Overhead"),
    "T9": ("T9-audit", "Adaptive audit"),
    "T10": ("T10-verdict", "Verdict"),
    "T11": ("T11-overfit", "Where adversarial training overfits"),
}
ANALYSES = {"T7": "streams", "T8": "cost", "T9": "audit"}  # the kind of analysis that these tables show
OTHERS = {"T7": analyses.streams, "T8": analyses.overhead, "T9": analyses.audits, "T10": verdict.frame}


def of_profile(profile: str) -> list[str]:
    """The tables that a profile writes: T1 to T10, and T11 where the plan has the overfitting study."""
    rows = experiments.ROWS[experiments.profile_of(profile).name]
    return [name for name in TABLES if name != "T11" or rows["study"]]


def table(profile: str, name: str) -> pd.DataFrame:
    """One table of a profile as numbers, tidy, exactly the columns of its csv; UsageError for an unknown name."""
    if name not in of_profile(profile):
        raise UsageError(f"profile {profile} has no table {name!r}; choose one of {', '.join(of_profile(profile))}")
    return _made(profile, name, store.state(), reference.paper_values().to_csv()).copy()


@lru_cache(maxsize=64)  # README and a report ask for most tables many times
def _made(profile: str, name: str, *_state) -> pd.DataFrame:
    return OTHERS[name](profile) if name in OTHERS else robustness.frame(name, profile)


def notes(profile: str, name: str) -> list[str]:
    """The few sentences that a reader of this table needs."""
    frame = table(profile, name)
    sentences = [verdict.scope(profile)] * (name == "T10")
    if (size := experiments.profile_of(profile).base.train_size) and "metric" in frame:
        sentences.append(f"Networks were trained on {size:,} images.")
    plan, parts = experiments.SETS[profile]["all"], dict[Run, list]()
    if name in ANALYSES:
        parts = {run: [one for one, _ in analyses.recorded(profile, run, ANALYSES[name])] for run in plan}
    elif "status" in frame and frame["status"].eq(robustness.OTHER_WEIGHTS).any():
        parts = {run: list(store.evaluations(run)) for run in plan}
    left_out = [run for run in parts if any(outcomes.of_other_weights(run, part) for part in parts[run])]
    return [*sentences, *([outcomes.advice(profile, left_out)] if left_out else [])]


def save(profile: str, name: str) -> list[Path]:
    """Write a table's csv, md and tex; a file whose content is the same is left alone."""
    frame, (stem, title) = table(profile, name), TABLES[name]
    title = f"{name}. {title} ({profile})"
    sentences = [*filter(None, [display.legend(frame)]), *notes(profile, name)]
    texts = {"csv": display.csv_text(frame), "md": display.markdown(frame, title, sentences)}
    texts["tex"] = display.latex(frame, title, f"tab:{stem}", sentences)
    return [files.write_changed(files.tables(profile) / f"{stem}.{suffix}", text) for suffix, text in texts.items()]


def save_all(profile: str) -> list[Path]:
    """Write every table of a profile, and provenance.csv."""
    path = files.write_changed(files.tables(profile) / "provenance.csv", display.csv_text(provenance(profile)))
    return [*(path for name in of_profile(profile) for path in save(profile, name)), path]
