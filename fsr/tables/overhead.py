"""T8: what FSR costs in parameters, operations, time and memory."""

import pandas as pd

from fsr import experiments, reference, store
from fsr.config import Run
from fsr.tables import labels, paper_cells
from fsr.tables.streams import planned, record_of

COST = ("params", "macs", "train_seconds_per_epoch", "latency_ms", "peak_memory_mb")
UNITS = dict(zip(COST, ("count", "count", "seconds", "milliseconds", "megabytes")))
PAIRED = "latency_ms_without"  # of FSR's record: its network without FSR, timed in turns with it
COLUMNS = [
    "dataset", "backbone", "network", "row", "fsr", "full_size", *COST, PAIRED, "measured_on", "trained_on", "shared",
    "timed",
]  # fmt: skip


def frame(profile: str) -> pd.DataFrame:
    """A row per network, without and with FSR; latency in ms of the largest batch that was timed.

    timed: whether the training had its device to itself and its record names all of it, so that its seconds compare.
    """
    rows = experiments.ROWS[profile]["whitebox"]
    records = [_record(profile, row.name, row.runs[0]) for row in rows if planned(profile, row.runs[0], "cost")]
    table = pd.DataFrame(records, columns=COLUMNS).astype(dict.fromkeys((*COST, PAIRED), float))
    for _, pair in table.groupby(["dataset", "network"]):
        timed = pair.loc[pair["fsr"], PAIRED].dropna()
        if len(timed):  # two processes' clocks differ by more than FSR costs
            table.loc[pair.index[~pair["fsr"]], "latency_ms"] = timed.iloc[0]
    theirs = pd.DataFrame(_theirs(table), columns=COLUMNS)
    return pd.concat([table, theirs], ignore_index=True) if len(theirs) else table


def _record(profile: str, name: str, run: Run) -> dict:
    record = record_of(run, planned(profile, run, "cost")[0])
    trained = store.environment(run) if store.is_trained(run) and run.imported is None else {}
    if trained:  # the seconds per epoch are the training's
        record = {COST[2]: float(store.history(run)["seconds"].median())} | record
    parts = [trained, *trained.get("sittings", [])]
    shared = any(part.get("sharing", 1) != 1 for part in parts)
    return {
        "dataset": run.dataset, "backbone": run.backbone, "network": labels.network(run), "row": name,
        "fsr": run.fsr is not None, "full_size": run.width is None and run.blocks is None,
        **{key: record.get(key) for key in COST},
        **{key: _largest(record.get(key)) for key in ("latency_ms", PAIRED)},
        "measured_on": _measured_on(record), "trained_on": " and ".join(sorted({*map(_machine, parts)} - {""})) or None,
        "shared": shared, "timed": not shared and len({*map(_machine, parts)}) == 1,
    }  # fmt: skip


def _machine(part: dict) -> str:
    """What the seconds of a training depend on: device, threads, processes."""
    machine = part.get("hardware") or {}
    if not machine:
        return ""
    device = machine.get("gpu") or machine.get("cpu")
    return f"{device}, threads: {machine.get('threads')}, processes: {part.get('processes') or 1}"


def _measured_on(record: dict) -> str | None:
    """Batch and machine of what was timed."""
    if not isinstance(record.get("latency_ms"), dict):
        return None
    machine = record.get("hardware", {})
    where = machine.get("gpu") or f"{machine.get('cpu')}, threads: {machine.get('threads')}"
    return f"batch {max(record['latency_ms'], key=int)} on {where}"


def _largest(latency: dict[str, float] | float | None) -> float | None:
    """Of the largest batch that was timed."""
    return latency[max(latency, key=int)] if isinstance(latency, dict) else latency


def _theirs(table: pd.DataFrame) -> list[dict]:
    """The paper's cells, and at full size the parameters that the authors' code adds, beside the networks of ours."""
    known, out = reference.known_results(), []
    networks = table.drop_duplicates(["dataset", "network"])
    for cell in paper_cells.cells("T8", rows=("AT", "AT + FSR"), units=UNITS):
        keys = {"dataset": cell.dataset, "backbone": cell.backbone}
        here = (networks["dataset"] == cell.dataset) & (networks["backbone"] == cell.backbone)
        named = {"network": labels.network(Run(backbone=cell.backbone)), "row": f"{cell.row}: paper"}
        out += [keys | named | {"full_size": True, cell.metric: cell.value}] * int(here.sum())
    stated = known[(known["kind"] == "computed") & (known["metric"] == "added_params")].set_index("backbone")["value"]
    for ours in networks[networks["full_size"]].itertuples():
        if ours.backbone in stated:
            keys = {"dataset": ours.dataset, "backbone": ours.backbone, "network": ours.network, "full_size": True}
            out.append(keys | {"row": "added, from the authors' code (computed)", "params": stated[ours.backbone]})
    return out
