"""The generated parts of README.md and docs/speed.md: every number in them comes from records."""

from pathlib import Path

import pandas as pd

from fsr import experiments, files
from fsr.files import UsageError, load_json, write_bytes
from fsr.report.findings import MAIN, answer, cell, frame, main_gain, reasons, reported
from fsr.report.wording import bracket, number, side
from fsr.tables import labels

LARGEST_FIRST = ("paper", "headline", "headline40", "overfit", "mini", "demo")
FULL_SIZE = ("w16 at+fsr", "w64 at+fsr", "w10 at+fsr", "PGD-20", "AutoAttack", "epoch", "2048")


def _recorded() -> dict[str, dict]:
    """The gain of FSR per profile whose main pair has been evaluated, the largest profile first."""
    planned = [name for name in LARGEST_FIRST if name in experiments.PROFILES]
    gains = {name: main_gain(reported(name, "T1"), name) for name in planned}
    return {name: gain for name, gain in gains.items() if gain}


def answers() -> str:
    """One sentence over all CIFAR-10 settings, then one per profile with what may explain it."""
    gains = _recorded()
    ways = {side(gain) for name, gain in gains.items() if name != "demo"}
    what = {1: "raised", -1: "lowered", 0: "did not clearly change"}.get(sum(ways)) if len(ways) == 1 else None
    headline = f"FSR {what} robustness at every CIFAR-10 setting that was run."
    headline = headline if what else "The settings that were run do not agree on whether FSR raises robustness."
    rest = "" if {"paper", "headline"} & set(gains) else " The authors' 100 epochs were not run yet."
    lines, openings = [f"**{headline}**{rest}", ""], set()
    for name in gains:
        new = [] if name == "demo" else [one for one in reasons(name) if " ".join(one.split()[:4]) not in openings]
        openings |= {" ".join(one.split()[:4]) for one in new}
        lines += [f"- {answer(name)}", *(f"  - {one}" for one in new)]
    return "\n".join(lines)


def results() -> str:
    """The main pair of the largest recorded profile, last and EMA weights: accuracy and gain per attack."""
    profile = next(iter(_recorded()))
    numbers, lines = frame(profile, "T1"), []
    metrics = ("clean", "pgd20", "ensemble", experiments.profile_of(profile).autoattack)
    for weights in ("last", "ema"):
        part = numbers[(numbers["checkpoint"] == weights) & numbers["kind"].isin(["ours", "gain"])]
        for row in ("AT", "AT + FSR", MAIN):
            line = {labels.metric(metric): _text(cell(part, row, metric)) for metric in metrics}
            lines.append({"weights": labels.WEIGHTS[weights], "row": row} | line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def _text(one: dict | None) -> str:
    """`44.6 [43.6, 45.5]`, with signs for a gain; `not run` without a value."""
    if one is None or pd.isna(one["value"]):
        return "not run"
    value, low, high = (number(one[name]) for name in ("value", "low", "high"))
    return bracket(one) if one["kind"] == "gain" else f"{value} [{low}, {high}]"


def profiles() -> str:
    """What every profile trains."""
    rows = []
    for profile in experiments.PROFILES.values():
        runs, base = experiments.SETS[profile.name]["all"], profile.base
        data = dict.fromkeys(labels.dataset(run.dataset) for run in runs)
        row = {"profile": f"`{profile.name}`", "data": ", ".join(data), "network": labels.network(base)}
        rows.append(row | {"epochs": base.epochs, "trainings": len(runs)})
    return pd.DataFrame(rows).to_markdown(index=False)


def speed() -> str:
    """How many times longer the plain loop takes, per recorded benchmark: median and range of rounds."""
    lines = []
    for path in sorted((files.results() / "benchmarks").glob("*.json")):
        record = load_json(path)
        machine = record["machine"]
        where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread"
        where += "" if machine.get("bf16_units", True) else ", no bf16 units"
        for row in record["rows"]:
            if "ratio" in row and any(part in row["case"] for part in FULL_SIZE):
                times = "{median:.1f} ({low:.1f} to {high:.1f})".format(**row["ratio"])
                lines.append({"benchmark": path.stem.split("-")[0], "case": row["case"], "times": times, "on": where})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


PARTS = {"README.md": (answers, results, profiles), "docs/speed.md": (speed,)}


def rewrite(text: str, parts) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- /name -->` made anew; UsageError without marks."""
    for part in parts:
        begin, end = f"<!-- {part.__name__} -->\n", f"<!-- /{part.__name__} -->"
        if begin not in text or end not in text:
            raise UsageError(f"the marks {begin.strip()} and {end} are missing")
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}{part()}\n{end}{rest.split(end, 1)[1]}"
    return text


def update_readme() -> list[Path]:
    """Bring the generated parts of README.md and docs/speed.md up to date; the files that changed."""
    changed = []
    for path, parts in ((files.repository() / name, parts) for name, parts in PARTS.items()):
        old = path.read_text()
        if (new := rewrite(old, parts)) != old:
            write_bytes(path, new.encode())
            changed.append(path)
    return changed
