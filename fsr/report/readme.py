"""The part of README that states results: written from records, never typed."""

from pathlib import Path

import pandas as pd

from fsr import prose, tables
from fsr.errors import UsageError
from fsr.files import write_bytes

BEGIN, END = "<!-- results -->", "<!-- /results -->"
ROWS = (
    "AT", "AT + FSR", "AT + FSR: gain over AT", "same-capacity residual, no mask", "auxiliary heads only",
    "separation only", "m = 1 at test (FSR bypassed)", "shuffled mask at test",
)  # fmt: skip
COLUMNS = {"clean": "no attack", "pgd20": "PGD-20", "ensemble": "Ensemble", "autoattack": "AutoAttack"}


def _cell(found: pd.DataFrame, gain: bool) -> str:
    """Percent and its 95 % interval of the one row that is there; not run otherwise."""
    found = found[found["value"].notna()]
    if not len(found):
        return "not run"
    value, low, high = (100 * float(found.iloc[0][name]) for name in ("value", "low", "high"))
    sign = "+" if gain else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]".replace("-", "−")


def results(profile: str) -> str:
    """A short table of T4's and T1's `last` rows on the main network, and what the audit says, as markdown."""
    frame = pd.concat([tables.components(profile).numbers, tables.whitebox(profile).numbers])
    frame = frame[(frame["checkpoint"] == "last") & (frame["kind"].isin(["ours", "gain"]))]
    frame = frame[frame["network"] == frame["network"].iloc[0]]
    lines = ["| last weights | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in ROWS:
        here = frame[frame["row"] == row].drop_duplicates("metric", keep="last")
        cells = [_cell(here[here["metric"] == metric], "gain" in row) for metric in COLUMNS]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    notes = [
        "Percent, 95 % interval over test images (Wilson; gains: paired bootstrap), mean over the seeds that T1 names.",
        prose.audit(profile),
    ]
    where = f"Every table and figure: [the report](results/report/{profile}.html), [tables](results/tables/{profile}), "
    where += f"[figures](figures/{profile}), [executed notebooks](results/notebooks/{profile})."
    return "\n".join([f"## Results (`{profile}`)", "", *lines, "", *notes, "", where])


def rewrite(path: Path, profile: str) -> bool:
    """Put the results between README's two marks; True when it changed.  UsageError when the marks are missing."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise UsageError(f"{path} has no {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    new = f"{head}{BEGIN}\n{results(profile)}\n{END}{rest.split(END, 1)[1]}"
    if new != text:
        write_bytes(path, new.encode())
    return new != text
