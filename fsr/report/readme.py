"""The part of README that states results: written from records, never typed."""

from pathlib import Path

import pandas as pd

from fsr import experiments, prose, statistics, store, tables
from fsr.config import Evaluation, FSRSpec, Run, for_dataset, replace
from fsr.errors import MissingRecord, UsageError
from fsr.files import write_bytes
from fsr.prose.text import budget
from fsr.report.speed import speed

BEGIN, END = "<!-- results -->", "<!-- /results -->"
ROWS = (
    "AT", "AT + FSR", "AT + FSR: gain over AT", "same-capacity residual, no mask", "auxiliary heads only",
    "separation only", "m = 1 at test (FSR bypassed)", "shuffled mask at test",
)  # fmt: skip
LARGER = ("headline", "mini")  # shown once they have results, the most telling first
# Shown while no larger run on CIFAR-10 is recorded: AT and AT+FSR on 10,000 of its training images for four epochs.
PART = for_dataset("cifar10", width=16, epochs=4, train_size=10_000)
FIGURES = {"What FSR adds": "F7-gains", "Training curves": "F5-training-curves"}
COLUMNS = {"clean": "no attack", "pgd20": "PGD-20", "ensemble": "Ensemble", "autoattack": "AutoAttack"}


def _cell(found: pd.DataFrame, gain: bool) -> str:
    """Percent and its 95 % interval of the one row that is there; not run otherwise."""
    found = found[found["value"].notna()]
    if not len(found):
        return "not run"
    value, low, high = (100 * float(found.iloc[0][name]) for name in ("value", "low", "high"))
    sign = "+" if gain else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]".replace("-", "−")


def _about(frame: pd.DataFrame) -> str:
    """How the numbers were made, and how many of the planned seeds of the main pair are in them."""
    rows = [frame[(frame["row"] == name) & (frame["metric"] == "clean")] for name in ROWS[:3]]
    plain, both, paired = (int(row.iloc[0]["seeds"]) if len(row) else 0 for row in rows)
    planned = int(rows[2].iloc[0]["planned"]) if len(rows[2]) else 0
    seeds = "mean over the seeds that T1 names" if paired == planned else f"{paired} of {planned} seeds so far"
    if not plain == both == paired:
        seeds = f"of {planned} planned seeds AT has {plain} so far, AT + FSR {both}; gains are on those that both have"
    return f"Percent, 95 % interval over test images (Wilson; gains: paired bootstrap), {seeds}."


def _audit(profile: str) -> str:
    if tables.audit(profile).numbers["correct"].notna().any():
        return prose.audit(profile)
    return f"The adaptive audit has not been run on it yet. {budget(profile)}"


def results(profile: str) -> str:
    """A short table of T4's and T1's `last` rows on the main network, and what the audit says, as markdown."""
    frame = pd.concat([tables.components(profile).numbers, tables.whitebox(profile).numbers])
    frame = frame[(frame["checkpoint"] == "last") & (frame["kind"].isin(["ours", "gain"]))]
    frame = frame[frame["network"] == frame["network"].iloc[0]]
    lines = ["| last weights | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in ROWS:
        here = frame[frame["row"] == row].drop_duplicates("metric", keep="last")
        cells = [_cell(here[here["metric"] == metric], "gain" in row) for metric in COLUMNS]
        if row in ROWS[:3] or set(cells) != {"not run"}:
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    missing = [row for row in ROWS if not any(line.startswith(f"| {row} |") for line in lines)]
    notes = [_about(frame), *([f"Not run yet: {'; '.join(missing)}."] if missing else []), _audit(profile)]
    where = f"Every table and figure: [the report](results/report/{profile}.html), [tables](results/tables/{profile}), "
    where += f"[figures](figures/{profile})"
    where += f", [executed notebooks](results/notebooks/{profile})." if profile == "demo" else "."
    figures = [f"![{title}](figures/{profile}/{name}.png)" for title, name in FIGURES.items()]
    return "\n".join([f"## Results (`{profile}`)", "", *lines, "", *notes, "", where, "", "\n\n".join(figures)])


def _line(row: str, cells: dict[str, dict], gain: bool = False) -> str:
    return f"| {row} | " + " | ".join(_cell(pd.DataFrame([cells[name]]), gain) for name in COLUMNS) + " |"


def _accuracy(correct) -> dict:
    low, high = statistics.wilson(int(correct.sum()), len(correct))
    return {"value": correct.mean(), "low": low, "high": high}


def _gain(plain, both) -> dict:
    low, high = statistics.paired_bootstrap(plain, both)
    return {"value": both.mean() - plain.mean(), "low": low, "high": high}


def _part_outcomes(run: Run) -> dict:
    """Per-sample outcomes of the columns: 1,000 test images, AutoAttack on 500."""
    strong = Evaluation(attack="autoattack", images=500)
    found = {name: store.load_eval(run, Evaluation(attack=name, images=1000)) for name in ("clean", "pgd20")}
    found |= {"ensemble": store.ensemble(run, "last", 1000), "autoattack": store.load_eval(run, strong)}
    return {name: outcome.correct for name, outcome in found.items()}


def part() -> str:
    """The pair on a part of CIFAR-10 as markdown; empty where it is not recorded."""
    try:
        plain, both = _part_outcomes(PART), _part_outcomes(replace(PART, module=FSRSpec()))
    except MissingRecord:
        return ""
    lines = [
        "## A part of CIFAR-10",
        "",
        "| last weights | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
        _line("AT", {name: _accuracy(kept) for name, kept in plain.items()}),
        _line("AT + FSR", {name: _accuracy(kept) for name, kept in both.items()}),
        _line("AT + FSR: gain over AT", {name: _gain(plain[name], both[name]) for name in COLUMNS}, gain=True),
        "",
        f"Real CIFAR-10, but {PART.train_size:,} training images, {PART.epochs} epochs and ResNet-18 of width "
        f"{PART.width}; one seed, 1,000 test images (AutoAttack: 500). It says how the two start, not where they end: "
        "in the log of the authors' own code training stays near chance for two epochs.",
    ]
    return "\n".join(lines)


def _has_results(profile: str) -> bool:
    wanted = Evaluation(attack="clean", images=experiments.profile_of(profile).images)
    return all(store.has_eval(run, wanted) for run in experiments.main_pair(profile))


def block() -> str:
    """All that README says about results: demo, each larger profile whose main pair is finished, and the speed."""
    larger = [name for name in LARGER if _has_results(name)]
    parts = [results(name) for name in larger] or [part()]
    return "\n\n".join(text for text in [*parts, results("demo"), speed()] if text)


def rewrite(path: Path) -> bool:
    """Put the results between README's two marks; True when it changed.  UsageError when the marks are missing."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise UsageError(f"{path} has no {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    new = f"{head}{BEGIN}\n{block()}\n{END}{rest.split(END, 1)[1]}"
    if new != text:
        write_bytes(path, new.encode())
    return new != text
