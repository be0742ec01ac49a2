"""From the long frame of T1 to T6 to what a reader sees: a row per method and checkpoint, a column per attack."""

import math

import pandas as pd

from fsr.tables import names
from fsr.tables.text import measured

GROUP = ["dataset", "network", "checkpoint"]
ROW = [*GROUP, "row", "kind", "source"]
OTHERS = ("rerun", "anchor")


def wide(frame: pd.DataFrame) -> tuple[pd.DataFrame, frozenset[tuple[int, str]]]:
    """Strings, and the bold cells: the best of our rows in each column, for the same data, network and checkpoint."""
    metrics = list(dict.fromkeys(frame["metric"]))
    order = _order(frame)
    cells = {(*(getattr(cell, name) for name in ROW), cell.metric): cell for cell in frame.itertuples()}
    best = _best(frame)
    shown, bold = [], set()
    for i, key in enumerate(order):
        mine = {metric: cells[*key, metric] for metric in metrics if (*key, metric) in cells}
        shown.append(_row(key, mine, metrics))
        for metric in mine:
            if (*key, metric) in best:
                bold.add((i, names.metric(metric)))
    out = pd.DataFrame(shown)
    return (out if out["AutoAttack flags"].any() else out.drop(columns="AutoAttack flags")), frozenset(bold)


def _order(frame: pd.DataFrame) -> list[tuple]:
    """Rows as they stand in the frame, but those with the same data, network and checkpoint together."""
    rows = list(dict.fromkeys(frame[ROW].itertuples(index=False, name=None)))
    places = list(dict.fromkeys(row[:2] for row in rows))
    kinds = ["last", "best", "ema"]
    return sorted(rows, key=lambda row: (places.index(row[:2]), kinds.index(row[2]) if row[2] in kinds else len(kinds)))


def _row(key: tuple, mine: dict, metrics: list[str]) -> dict[str, str]:
    dataset, network, checkpoint, row, kind, source = key
    n = next((cell.n for cell in mine.values() if not pd.isna(cell.n)), math.nan)
    name = f"{row} ({kind}: {source})" if kind in OTHERS else row
    out = {"data": names.dataset(dataset), "network": network, "weights": checkpoint, "method": name}
    out |= {names.metric(m): measured(mine[m], n) if m in mine else "" for m in metrics}
    flags = [cell.flags for cell in mine.values() if isinstance(cell.flags, str)] if kind == "ours" else []
    return out | {"n": "" if pd.isna(n) else f"{n:.0f}", "AutoAttack flags": "; ".join(flags)}


def _best(frame: pd.DataFrame) -> frozenset[tuple]:
    """Keys (row and metric) of the best cells: among rows with the most seeds, of which there must be two.

    A network for which AutoAttack is in doubt wins with none of its weights.
    """
    ours = frame[(frame["kind"] == "ours") & frame["value"].notna()]
    network = [name for name in ROW if name != "checkpoint"]
    warned = ours[ours["flags"].notna() & (ours["flags"] != "none")]
    flagged = set(warned[network].itertuples(index=False, name=None))
    best = set()
    for _, group in ours.groupby([*GROUP, "metric"], sort=False):
        kept = group[[key not in flagged for key in group[network].itertuples(index=False, name=None)]]
        kept = kept[kept["seeds"] == kept["seeds"].max()]
        if kept["value"].nunique() < 2:
            continue
        top = kept[kept["value"] == kept["value"].max()]
        best |= set(top[[*ROW, "metric"]].itertuples(index=False, name=None))
    return frozenset(best)
