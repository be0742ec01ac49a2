"""How much faster than the plain loop: the part of README that benchmarks' records tell."""

from pathlib import Path

from fsr import paths
from fsr.files import load_json

NAMES = {"train_step": "one training step (PGD-10 and update)", "evaluate": "evaluation", "pipeline": "whole epochs"}
FULL = ("w16 at+fsr", "w64 at+fsr", "w10 at+fsr", "PGD-20", "AutoAttack", "epoch")  # the other rows show growth


def machine_of(record: dict) -> str:
    """The parts that a record was made on: `AMD EPYC, 2 cores, 1 thread` or the GPU's name."""
    parts = record["machine"]
    if parts.get("gpu"):
        return f"one {parts['gpu']}"
    threads = f"{parts['threads']} thread{'s' if parts['threads'] > 1 else ''}"
    return f"{parts['cpu']}, {parts['cores']} cores, {threads}"


def _lines(path: Path) -> list[str]:
    record = load_json(path)
    what = NAMES.get(record["benchmark"])
    if what is None or record.get("quick"):
        return []
    out = []
    for row in record["rows"]:
        if not any(part in row["case"] for part in FULL):
            continue
        ratio = row["ratio"]
        range_ = f" ({ratio['low']:.1f} to {ratio['high']:.1f})" if ratio["low"] < ratio["high"] else ""
        same = row.get("disagreeing_images")
        note = "" if same is None else f"; {same} of {row['images']} images with another outcome"
        out.append(f"| {what}: {row['case']} | {ratio['median']:.1f}x{range_}{note} | {machine_of(record)} |")
    return out


def speed() -> str:
    """A table of the measured ratios as markdown; empty where no benchmark is recorded."""
    found = [line for path in sorted((paths.results() / "benchmarks").glob("*.json")) for line in _lines(path)]
    if not found:
        return ""
    text = (
        "Our own plain version of the authors' loop (`benchmarks/plain.py`; AutoAttack: `pyautoattack` on the plain "
        "network) takes so many times longer, both sides in turn in one process; median and range of rounds. How cost "
        "grows with batch, width and steps: [results/benchmarks](results/benchmarks)."
    )
    head = ["| what | plain / fast | machine |", "|---|---|---|"]
    return "\n".join(["## Speed", "", *head, *found, "", text])
