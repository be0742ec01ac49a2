"""How much faster than the plain loop: the part of README that benchmarks' records tell."""

from fsr import files
from fsr.files import load_json
from fsr.reference import known_results
from fsr.tables.formatting import number, span

NAMES = {
    "train_step": "one training step (PGD-10 and update)",
    "evaluate": "evaluation",
    "pipeline": "whole epochs",
    "gpu": "training at full width",
}
CIFAR_EPOCH = 49_000  # images: 1,000 are held out
FULL = ("w16 at+fsr", "w64 at+fsr", "w10 at+fsr", "PGD-20", "AutoAttack", "epoch")  # the other rows show growth


def _authors_seconds() -> float:
    """Seconds per epoch of a third party's run of the authors' code."""
    return known_results().set_index("metric").loc["seconds_per_epoch", "value"]


def machine_of(record: dict) -> str:
    """The parts that a record was made on: `AMD EPYC, 2 cores, 1 thread` or the GPU's name.

    A record that does not tell has bf16 units: the first that were made without them say so.
    """
    parts = record["machine"]
    if parts.get("gpu"):
        return f"one {parts['gpu']}"
    threads = f"{parts['threads']} thread{'s' if parts['threads'] > 1 else ''}"
    units = "" if parts.get("bf16_units", True) else ", no bf16 units"
    return f"{parts['cpu']}, {parts['cores']} cores, {threads}{units}"


def _records() -> list[dict]:
    """Of whole benchmarks, by file name."""
    found = [load_json(path) for path in sorted((files.results() / "benchmarks").glob("*.json"))]
    return [record for record in found if not record.get("quick")]


def _shown(record: dict) -> list[dict]:
    """Rows of full size: of whole epochs the one with most images per network, else the cases of FULL."""
    rows = record["rows"]
    if record["benchmark"] == "pipeline":
        largest = {(row["backbone"], row["width"]): row for row in sorted(rows, key=lambda row: row["images"])}
        return [row for row in rows if row in largest.values()]
    return [row for row in rows if any(part in row["case"] for part in FULL)]


def _lines(record: dict) -> list[str]:
    what = NAMES.get(record["benchmark"].split("-")[0])
    if what is None:
        return []
    out = []
    for row in _shown(record):
        ratio = row["ratio"]
        range_ = f" ({ratio['low']:.1f} to {ratio['high']:.1f})" if ratio["low"] < ratio["high"] else ""
        same = row.get("disagreeing_images")
        note = "" if same is None else f"; {same} of {row['images']} images with another outcome"
        if "ratio_direct" in row:
            note += f"; {row['ratio_direct']['median']:.1f}x with torch's own convolutions"
        if record["benchmark"] == "gpu" and row.get("images"):
            note += _epoch(row)
        out.append(f"| {what}: {row['case']} | {ratio['median']:.1f}x{range_}{note} | {machine_of(record)} |")
    return out


def _epoch(row: dict) -> str:
    """What a GPU's rate means for CIFAR-10, beside the rerun of the authors' code."""
    rate = row["images_per_second"]["fast"]
    return (
        f", one round; {rate:,.0f} images per second, at which the steps of an epoch of {CIFAR_EPOCH:,} take "
        f"{CIFAR_EPOCH / rate:.1f} s, the plain loop's {CIFAR_EPOCH / row['images_per_second']['plain']:.0f} s "
        f"(a third party's whole epoch with the authors' code, on an H200: {_authors_seconds()} s for 50,000)"
    )


def _cluster(record: dict) -> str:
    """What a Ray cluster of one machine gains and costs, in a sentence."""
    one, two = (next(row for row in record["rows"] if row["case"] == case) for case in ("1 worker", "2 workers"))
    low, high = two["ratio"]["low"], two["ratio"]["high"]
    parts = record["machine"]
    return (
        f"On a Ray cluster of one machine ({parts['cpu']}, {parts['cores']} cores) two one-core workers trained eight "
        f"small networks {two['ratio']['median']:.1f} times as fast as one process ({low:.1f} to {high:.1f}), one "
        f"worker {one['ratio']['median']:.1f} times. A task whose work is done costs "
        f"{1000 * two['seconds_per_task']['median']:.0f} ms, and a command {two['start_seconds']['median']:.0f} s "
        "before its first batch."
    )


def _points(change: dict) -> str:
    """A mean over seeds with its interval, in points."""
    return f"{number(100 * change['mean'], sign=True)} {span(100 * change['low'], 100 * change['high'], sign=True)}"


def _precision(record: dict) -> str:
    """Does bf16 cost accuracy?  The difference seed by seed beside what seeds alone change; empty below two pairs."""
    found = record["conclusion"]
    if not found.get("pgd20"):
        return ""
    change = found["pgd20"]["difference"]
    sds = [number(100 * found["pgd20"][precision]["sd"]) for precision in ("float32", "bf16")]
    holds_zero = change["low"] <= 0 <= change["high"]
    seen = "no difference is seen; one inside this interval would be missed" if holds_zero else "**bf16 differs**"
    return (
        "Does bf16 cost accuracy? AT + FSR, ResNet-18 of width 16, 10,000 CIFAR-10 images, 5 epochs, trained both ways "
        f"from {change['n']} seeds and judged in float32 on {record['rows'][0]['images']:,} test images: bf16 changes "
        f"accuracy under PGD-20 by {_points(change)} points and clean accuracy by "
        f"{_points(found['clean']['difference'])}, seed by seed (Student's t). Under attack {seen}. Seeds alone differ "
        f"by a standard deviation of {sds[0]} points in float32 and {sds[1]} in bf16. {_level(record['rows'])}"
    )


def _level(rows: list[dict]) -> str:
    """How good the compared networks are: a difference of points means more where there are few."""
    shown = [number(100 * sum(row[name] for row in rows) / len(rows)) for name in ("clean", "pgd20")]
    return f"These are short trainings: {shown[0]} % clean and {shown[1]} % under PGD-20 on average."


def speed() -> str:
    """A table of the measured ratios as markdown; empty where no benchmark is recorded."""
    records = _records()
    found = [line for record in records for line in _lines(record)]
    if not found:
        return ""
    text = (
        "Our own plain version of the authors' loop (`benchmarks/plain.py`; AutoAttack: `pyautoattack` on the plain "
        "network) takes so many times longer, both sides in turn in one process; median and range of rounds. How cost "
        "grows with batch, width and steps: [results/benchmarks](results/benchmarks)."
    )
    if not any(record["machine"].get("gpu") for record in records):
        found.append("| training step and whole epochs on a GPU (`python -m benchmarks.gpu`) | not run | |")
    head = ["| what | times faster | machine |", "|---|---|---|"]
    more = [_cluster(record) for record in records if record["benchmark"] == "cluster"]
    more += filter(None, (_precision(record) for record in records if record["benchmark"] == "precision"))
    return "\n\n".join(["## Speed", "\n".join([*head, *found]), text, *more])
