"""T8: what FSR costs."""

import pandas as pd

from fsr import experiments, reference, store
from fsr.config import Run
from fsr.tables import formats, names, typed
from fsr.tables.frame import Sources, Table, make
from fsr.tables.inside import about, planned, record_of
from fsr.tables.text import NOT_RUN, missing, number, quantity

COST = ("params", "macs", "train_seconds_per_epoch", "latency_ms", "peak_memory_mb")
UNITS = dict(zip(COST, ("count", "count", "seconds", "milliseconds", "megabytes")))
HEAD = ("parameters", "MACs", "seconds per epoch", "latency of a batch, ms", "peak memory, MiB")
PAIRED = "latency_ms_without"  # of FSR's record: its network without FSR, timed in turns with it
DIGITS = (0, 0, 2, 3, 1)
SHARED = ", shared with another training"
NOT_COMPARABLE = "not comparable"


def cost_numbers(profile: str, sources: Sources) -> pd.DataFrame:
    """T8 as numbers: a row per network, without and with FSR; latency of the largest batch that was timed, in ms."""
    records = []
    for row in experiments.ROWS[profile]["whitebox"]:
        run = row.runs[0]
        for analysis in planned(profile, run, "cost")[:1]:
            found = record_of(run, analysis, sources) or {}
            if store.is_trained(run) and run.imported is None:  # the seconds per epoch are the training's
                record = store.environment(run)
                sources.add(record)
                seconds = float(store.history(run)["seconds"].median())
                found = {"trained_on": trained_on(record), COST[2]: seconds} | found
            records.append({
                "dataset": run.dataset, "backbone": run.backbone, "network": names.network(run), "row": row.name,
                "fsr": run.fsr is not None, "full_size": run.width is None and run.blocks is None,
                **{name: found.get(name) for name in COST},
                **{name: _largest(found.get(name)) for name in ("latency_ms", PAIRED)}, "measured_on": _where(found),
                "trained_on": found.get("trained_on"), "shared": str(found.get("trained_on")).endswith(SHARED),
                "timed": not _untimed(run),
            })  # fmt: skip
    frame = pd.DataFrame(records)
    frame[[*COST, PAIRED]] = frame[[*COST, PAIRED]].astype(float)
    for _, pair in frame.groupby(["dataset", "network"]):
        timed = pair[PAIRED].where(pair["fsr"]).dropna()
        if len(timed):  # two processes' clocks differ by more than FSR costs
            frame.loc[pair.index[~pair["fsr"]], "latency_ms"] = timed.iloc[0]
    return frame


def _untimed(run: Run) -> bool:
    """Do a training's seconds tell nothing of speed?  Its device was shared, or its record does not name all of it."""
    record = store.environment(run) if store.is_trained(run) else {}
    return not store.alone(record) or formats.in_several_parts(record)


def trained_on(record: dict) -> str:
    """What the seconds of a training depend on, in words; several of them where it went on elsewhere."""
    parts = [(part.get("hardware") or {}, part.get("processes") or 1) for part in (record, *record.get("sittings", []))]
    kinds = {
        f"{machine.get('gpu') or machine.get('cpu')}, threads: {machine.get('threads')}, processes: {processes}"
        for machine, processes in parts
    }
    return " and ".join(sorted(kinds)) + ("" if store.alone(record) else SHARED)


def _where(found: dict) -> str | None:
    """Batch and machine of what was measured."""
    if not isinstance(found.get("latency_ms"), dict):
        return None
    parts, batch = found.get("hardware", {}), max(found["latency_ms"], key=int)
    threads = parts.get("threads")
    machine = parts.get("gpu") or f"{parts.get('cpu')}, {threads} thread{'' if threads == 1 else 's'}"
    return f"batch {batch} on {machine}"


def _largest(latency: dict[str, float] | float | None) -> float | None:
    """Of the largest batch that was timed."""
    return latency[max(latency, key=int)] if isinstance(latency, dict) else latency


def overhead(profile: str) -> Table:
    """T8: parameters, MACs, seconds per epoch, latency and memory without and with FSR, and the difference."""
    experiments.profile_of(profile)
    sources = Sources()
    numbers = cost_numbers(profile, sources)
    shown = []
    for (dataset, network), pair in numbers.groupby(["dataset", "network"], sort=False):
        keys = {"data": names.dataset(dataset), "network": network}
        plain, both = (pair[pair["fsr"] == value].iloc[0].to_dict() for value in (False, True))
        shown += [keys | {"method": cell["row"]} | _costs(cell) for cell in (plain, both)]
        shown.append(keys | {"method": "added by FSR"} | {k: _added(plain, both, n) for k, n in zip(HEAD, COST)})
        if pair["full_size"].all():
            stated = _stated(pair["backbone"].iloc[0])
            shown.append(keys | {"method": "added, from the authors' code (computed)"} | stated)
        full = names.network(Run(backbone=pair["backbone"].iloc[0]))  # what the paper's cells are about
        shown += [keys | ({"network": full} if row["method"].endswith(": paper") else {}) | row for row in _typed(pair)]
    where = "; ".join(numbers["measured_on"].dropna().unique()) or NOT_RUN
    notes: tuple[str, ...] = (
        f"Parameters include the auxiliary head; MACs are of one image; latency and memory: {where}. "
        "Seconds per epoch are the median over a training, each its own: read their difference as rough. Latency is "
        "the median of eager passes in eval mode; that of the network without FSR was taken in turns with the one with "
        "FSR, in one process.",
        "WRN's dead `sub_block1` is not counted.",
    )
    if numbers["shared"].any():
        notes += (
            "Trainings that shared one device, or may have (a share of it on a cluster), are not compared by their "
            "seconds.",
        )
    return make(pd.DataFrame(shown), about("T8", "overhead", "Overhead", profile, numbers, sources, *notes))


def _typed(pair: pd.DataFrame) -> list[dict[str, str]]:
    """The paper's cells of this network (row: AT or AT + FSR) and ours minus them at full size."""
    first, shown = pair.iloc[0], []
    for cell in typed.cells("T8", rows=("AT", "AT + FSR"), units=UNITS):
        if (cell.dataset, cell.backbone) == (first["dataset"], first["backbone"]):
            i = COST.index(cell.metric)
            ours = pair.loc[pair["row"] == cell.row, cell.metric].iloc[0]
            timed = i != 2 or pair["timed"].all()
            texts = typed.pair(ours, cell.value, full_size=bool(first["full_size"]) and timed, digits=DIGITS[i])
            for name, text in zip(("paper", "ours minus paper"), texts):
                shown.append({"method": f"{cell.row}: {name}"} | dict.fromkeys(HEAD, "") | {HEAD[i]: text})
    return shown


def _costs(row) -> dict[str, str]:
    return {head: quantity(row[name], digits=d) for head, name, d in zip(HEAD, COST, DIGITS)}


def _added(plain, both, name: str) -> str:
    """What FSR adds to a quantity, in percent; seconds of a shared device, or of an unknown one, are not compared."""
    if name == COST[2] and not (plain["timed"] and both["timed"]):
        return NOT_COMPARABLE
    return _percent(plain[name], both[name])


def _percent(plain: float, both: float) -> str:
    if missing(plain) or missing(both):
        return NOT_RUN
    return f"{number(100 * (both / plain - 1), digits=2, sign=True)} %"


def _stated(backbone: str) -> dict[str, str]:
    known = reference.known_results().query("kind == 'computed' and metric == 'added_params'")
    row = known[known["backbone"] == backbone].iloc[0]
    return {head: "" for head in HEAD} | {"parameters": f"+{row['value']:,.0f}"}
