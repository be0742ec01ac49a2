"""T9: what the adaptive audit leaves right, attack group by attack group."""

from collections.abc import Iterator

import pandas as pd

from fsr import experiments, statistics
from fsr.tables.formatting import NOT_RUN, missing, percent
from fsr.tables.streams import planned, record_of

PROTOCOL, WORST, FLAGS, CHECKS = "authors' protocol", "worst case", "AutoAttack's flags", "checks that raise doubt"
UNBROKEN = "share that no attack breaks"
GROUPS = {  # as `fsr.audit` names them, in the order of the audit
    "autoattack": "1 AutoAttack",
    "bpda": "2 the mask's backward pass at tau = 1 (BPDA)",
    "mask": "3 the mask frozen or driven",
    "latent": "4 joint logits, latent heads",
    "transfer": "5 transfer from other networks",
    "restarts": "6 restarts, step sizes, multi-targeted",
    "noise": "7 crafted through the training noise, judged without it",
    "noise/own": "7 the same, judged with the noise on",
    "queries": "8 Square",
    "queries/random-noise": "8 control: random noise of the same size",
    "unmasked": "attacks that hidden gradients do not stop",
}
COLUMNS = ["row", "checkpoint", "budget", "n", "correct", "value", "text", "item", "version"]


def frame(profile: str) -> pd.DataFrame:
    """A row per network and item: `correct` of `n` images still right, a value, or a text (why it does not apply)."""
    records = []
    for row in experiments.ROWS[profile]["audit"]:
        for analysis in planned(profile, row.runs[0], "audit"):
            record = record_of(row.runs[0], analysis)
            version = record.get("version", 1) if record else None
            keys = {"row": row.name, "checkpoint": analysis.checkpoint, "budget": analysis.budget, "version": version}
            records += [keys | cell for cell in cells(record)]
    return pd.DataFrame(records, columns=COLUMNS).astype({"n": float, "correct": float, "value": float})


def cells(record: dict) -> Iterator[dict]:
    """One audit's items: protocol, every group, worst case, then flags and indicators."""
    n, groups, left_out = record.get("n"), dict(record.get("groups", {})), record.get("not_applicable", {})
    groups |= {name: cell for name, cell in record.get("attacks", {}).items() if name in GROUPS}  # the control
    whole = {name: why for name, why in left_out.items() if "/" not in name}
    yield {"item": PROTOCOL, "n": n, "correct": record.get("authors_protocol")}
    for name in [*groups, *(name for name in whole if name not in groups)] or GROUPS:
        cell = groups.get(name, {})
        yield {"item": name, "n": cell.get("n"), "correct": cell.get("correct"), "text": whole.get(name)}
    if "noise" in whole:
        yield {"item": "noise/own", "text": whole["noise"]}
    elif record:
        own = record.get("details", {}).get("noise", {}).get("noisy_accuracy")  # older records do not have it
        yield {"item": "noise/own", "n": n, "correct": None if own is None else round(own * n)}
    yield {"item": WORST, "n": n, "correct": record.get("worst_case")}
    raised = ", ".join(name for name, on in record.get("flags", {}).items() if on is True) or "none"
    yield {"item": FLAGS, "text": raised if record else None}
    if "checks" in record:
        doubts = [name.replace("_", " ") for name, found in record["checks"].items() if found]
        yield {"item": CHECKS, "text": ", ".join(doubts) or "none"}
    shares = {f"binarization test, {name}": value for name, value in record.get("binarization", {}).items()}
    for name, value in (record.get("indicators", {}) | shares).items():
        yield {"item": f"indicator: {name}", "value": value}
    if record.get("clean"):
        yield {"item": UNBROKEN, "value": record["worst_case"] / record["clean"]}


def items(table: pd.DataFrame) -> list[str]:
    """Every item once: groups in the audit's order, then worst case, flags, indicators and what they are read with."""
    rank = {item: place for place, item in enumerate([PROTOCOL, *GROUPS, WORST, FLAGS, CHECKS])}
    return sorted(dict.fromkeys(table["item"]), key=lambda item: rank.get(item, len(rank) + (item == UNBROKEN)))


def title(item: str) -> str:
    """An item as a reader sees it."""
    return GROUPS.get(item, item.replace("_", " "))


def text(cell) -> str:
    """One cell: percent with its Wilson interval, a value, or why it does not apply."""
    if cell is None:
        return NOT_RUN
    if isinstance(cell.text, str):
        return cell.text if cell.item in (FLAGS, CHECKS) else f"not applicable: {cell.text}"
    if not missing(cell.value):
        return f"{cell.value:.2f}"
    if missing(cell.correct) or missing(cell.n):
        return NOT_RUN
    return percent(cell.correct / cell.n, *statistics.wilson(cell.correct, int(cell.n)))


def audit_lines(record: dict) -> list[str]:
    """One audit's record as lines for a terminal, in T9's order and words."""
    table = pd.DataFrame(cells(record), columns=COLUMNS)
    known = {cell.item: cell for cell in table.itertuples()}
    width = max(len(title(item)) for item in items(table))
    return [f"{title(item):{width}}  {text(known.get(item))}" for item in items(table)]
