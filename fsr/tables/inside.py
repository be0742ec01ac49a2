"""T7, T8, T9 and the provenance: what analyses and trainings recorded, one tidy frame each."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd

from fsr import experiments, reference, statistics, store
from fsr.config import Analysis, Run, run_id
from fsr.tables import labels
from fsr.tables.labels import NOT_RUN, measured
from fsr.tables.robustness import paper_cells

STREAMS = {"f": "f", "robust": "f⁺", "nonrobust": "f⁻", "recalibrated": "f̃⁻", "output": "f̃"}
PROBES = {"aux": "auxiliary head", "knn": "k-nearest neighbours"}
SECONDS, LATENCY, PAIRED = "train_seconds_per_epoch", "latency_ms", "latency_ms_without"
UNITS = {"params": "count", "macs": "count", SECONDS: "seconds", LATENCY: "milliseconds", "peak_memory_mb": "megabytes"}
OVERHEAD = ["dataset", "backbone", "network", "row", "fsr", "full_size", *UNITS, PAIRED, "measured_on", "trained_on"]
OVERHEAD += ["shared", "timed"]
PROVENANCE = ["run", "label", "machine", "precision", "commit", "torch", "resumed", "shared", "float16_weights"]
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
AUDIT = ["row", "checkpoint", "budget", "n", "correct", "value", "text", "item", "version"]


def recorded(profile: str, run: Run, kind: str) -> list[tuple[Analysis, dict]]:
    """A run's planned analyses of this kind with their records; {} for one that was not run."""
    planned = [a for a in experiments.analyses(profile, "all", run) if a.kind == kind]
    return [(a, store.load_analysis(run, a)[0] if store.has_analysis(run, a) else {}) for a in planned]


def streams(profile: str) -> pd.DataFrame:
    """T7: a row per checkpoint, seed, stream and probe; attack is pgd20 or clean, accuracy a fraction of n images."""
    cells, base = [], experiments.profile_of(profile).base
    planned = [(row.name, run) for row in experiments.ROWS[profile]["streams"] for run in row.runs]
    for name, run in planned:
        for analysis, record in recorded(profile, run, "streams"):
            parts = {"pgd20": record.get("rows", []), "clean": record.get("rows_clean", [])}
            known = {(r["stream"], r["probe"], attack): r for attack, rows in parts.items() for r in rows}
            for key in product(STREAMS, PROBES, parts):
                counts = [known.get(key, {}).get(what) for what in ("n", "correct")]
                cells.append([name, run.seed, analysis.checkpoint, *key, *counts])
    columns = ["row", "seed", "checkpoint", "stream", "probe", "attack", "n", "correct"]
    table = pd.DataFrame(cells, columns=columns).astype({"n": float, "correct": float})
    table["accuracy"] = table["correct"] / table["n"]
    for cell in paper_cells("T7", rows=STREAMS, units=dict.fromkeys(PROBES, "percent")):
        if (cell.dataset, cell.backbone) == (base.dataset, base.backbone):
            theirs = {"row": "paper", "checkpoint": "last", "attack": "pgd20", "stream": cell.row, "probe": cell.metric}
            table.loc[len(table)] = pd.Series(theirs | {"accuracy": cell.value / 100})
    return table


def overhead(profile: str) -> pd.DataFrame:
    """T8: a row per network, without and with FSR; latency of the largest batch; timed: its seconds may be compared."""
    rows = [(row.name, row.runs[0]) for row in experiments.ROWS[profile]["whitebox"]]
    cells = [_cost(name, run, record) for name, run in rows for _, record in recorded(profile, run, "cost")]
    table = pd.DataFrame(cells, columns=OVERHEAD).astype(dict.fromkeys((*UNITS, PAIRED), float))
    for _, pair in table.groupby(["dataset", "network"]):
        timed = pair.loc[pair["fsr"], PAIRED].dropna()
        if len(timed):  # two processes' clocks differ by more than FSR costs
            table.loc[pair.index[~pair["fsr"]], LATENCY] = timed.iloc[0]
    theirs = pd.DataFrame(_theirs(table.drop_duplicates(["dataset", "network"])), columns=table.columns)
    return pd.concat([table, theirs], ignore_index=True) if len(theirs) else table


def _cost(name: str, run: Run, record: dict) -> dict:
    keys: dict = {"dataset": run.dataset, "backbone": run.backbone, "network": labels.network(run), "row": name}
    keys |= {"fsr": run.fsr is not None, "full_size": run.width is None and run.blocks is None}
    cell, parts, machines = {key: record.get(key) for key in UNITS}, [dict[str, Any]()], set()
    if times := record.get(LATENCY):
        largest, machine = max(times, key=int), record.get("hardware", {})
        cell |= {LATENCY: times[largest], PAIRED: record.get(PAIRED, {}).get(largest)}
        where = machine.get("gpu") or f"{machine.get('cpu')}, threads: {machine.get('threads')}"
        cell["measured_on"] = f"batch {largest} on {where}"
    if store.is_trained(run) and run.imported is None:
        trained = store.environment(run)
        parts = [trained, *trained.get("sittings", [])]
        cell[SECONDS] = cell[SECONDS] or float(store.history(run)["seconds"].median())
    for part in parts:
        machine, where = part.get("hardware") or {}, f"processes: {part.get('processes') or 1}"
        where = f"{machine.get('gpu') or machine.get('cpu')}, threads: {machine.get('threads')}, {where}"
        machines.add(where if machine else "")
    shared = any(part.get("sharing", 1) != 1 for part in parts)
    cell |= {"shared": shared, "timed": not shared and len(machines) == 1}
    return keys | cell | {"trained_on": " and ".join(sorted(machines - {""})) or None}


def _theirs(networks: pd.DataFrame) -> Iterator[dict]:
    """The paper's cells, and at full size the parameters that the authors' code adds, beside the networks of ours."""
    known, ours = reference.known_results(), networks[["dataset", "backbone", "network"]].to_dict("records")
    for cell in paper_cells("T8", rows=("AT", "AT + FSR"), units=UNITS):
        theirs = {"network": labels.network(Run(backbone=cell.backbone)), "row": f"{cell.row}: paper"}
        for one in ours:
            if (one["dataset"], one["backbone"]) == (cell.dataset, cell.backbone):
                yield one | theirs | {"full_size": True, cell.metric: cell.value}
    stated = known[(known["kind"] == "computed") & (known["metric"] == "added_params")].set_index("backbone")["value"]
    for one, full_size in zip(ours, networks["full_size"]):
        if full_size and one["backbone"] in stated:
            row = "added, from the authors' code (computed)"
            yield one | {"full_size": True, "row": row, "params": stated[one["backbone"]]}


def added(pair: pd.DataFrame) -> dict[str, Any]:
    """What FSR adds in percent, of T8's rows of one network without and with it; None: seconds do not compare."""
    without, both = pair.sort_values("fsr").to_dict("records")
    more = {name: 100 * (both[name] / without[name] - 1) for name in UNITS}
    timed = bool(pair["timed"].all()) and without["trained_on"] == both["trained_on"]
    return more if timed or pd.isna(more[SECONDS]) else more | {SECONDS: None}


def audits(profile: str) -> pd.DataFrame:
    """T9: a row per network and item: `correct` of `n` images still right, a value, or a text (why not)."""
    cells, runs = [], [(row.name, row.runs[0]) for row in experiments.ROWS[profile]["audit"]]
    for name, analysis, record in ((name, *one) for name, run in runs for one in recorded(profile, run, "audit")):
        version = record.get("version", 1) if record else None
        keys = {"row": name, "checkpoint": analysis.checkpoint, "budget": analysis.budget, "version": version}
        cells += [keys | cell for cell in _items(record)]
    return pd.DataFrame(cells, columns=AUDIT).astype({"n": float, "correct": float, "value": float})


def _items(record: dict) -> Iterator[dict]:
    """One audit's items: protocol, every group, worst case, then flags and indicators."""
    n, groups, left_out = record.get("n"), dict(record.get("groups", {})), record.get("not_applicable", {})
    groups |= {name: cell for name, cell in record.get("attacks", {}).items() if name in GROUPS}  # the control
    whole = {name: why for name, why in left_out.items() if "/" not in name}
    yield {"item": PROTOCOL, "n": n, "correct": record.get("authors_protocol")}
    for name in [*groups, *(name for name in whole if name not in groups)] or GROUPS:
        cell = groups.get(name, {})
        yield {"item": name, "n": cell.get("n"), "correct": cell.get("correct"), "text": whole.get(name)}
    own = record.get("details", {}).get("noise", {}).get("noisy_accuracy")  # older records do not have it
    if record:
        counts = {} if "noise" in whole else {"n": n, "correct": None if own is None else round(own * n)}
        yield {"item": "noise/own", "text": whole.get("noise")} | counts
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


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """T9's rows with their title and text, in the audit's order, then worst case, flags and indicators."""
    rank = {item: place for place, item in enumerate([PROTOCOL, *GROUPS, WORST, FLAGS, CHECKS])}
    places = [rank.get(item, len(rank) + (item == UNBROKEN)) for item in table["item"]]
    words = GROUPS | {UNBROKEN: "of the images right without attack, the share that no attack breaks"}
    titles = [words.get(item, item.replace("_", " ")) for item in table["item"]]
    table = table.assign(place=places, title=titles, shown=[_text(cell) for cell in table.itertuples()])
    return table.sort_values("place", kind="stable")


def _text(cell) -> str:
    """One cell: percent with its Wilson interval, a value, or why it does not apply."""
    if isinstance(cell.text, str):
        return cell.text if cell.item in (FLAGS, CHECKS) else f"not applicable: {cell.text}"
    if not pd.isna(cell.value):
        return f"{cell.value:.2f}"
    if pd.isna(cell.correct) or pd.isna(cell.n):
        return NOT_RUN
    return measured(cell.correct / cell.n, *statistics.wilson(cell.correct, int(cell.n)))


def audit_lines(record: dict) -> list[str]:
    """One audit's record as lines for a terminal, in T9's order and words."""
    table = shown(pd.DataFrame(_items(record), columns=AUDIT))
    width = max(map(len, table["title"]))
    return [f"{cell.title:{width}}  {cell.shown}" for cell in table.itertuples()]


def provenance(profile: str) -> pd.DataFrame:
    """A row per finished training; precision: of crafting; resumed: in parts; shared: its device with others."""
    rows = []
    for run in filter(store.is_trained, experiments.SETS[experiments.profile_of(profile).name]["all"]):
        record = store.environment(run)
        machine, parts = record.get("hardware") or {}, [record, *record.get("sittings", [])]
        crafting = record.get("switches", {}).get("crafting") or run.precision
        row: dict = {"run": run_id(run), "label": labels.run(profile, run)}
        row |= {"machine": machine.get("gpu") or machine.get("cpu"), "precision": crafting.replace("bfloat16", "bf16")}
        row |= {"commit": (record.get("commit") or "")[:10] or None, "torch": record.get("versions", {}).get("torch")}
        row |= {"resumed": len(parts) > 2, "shared": any(part.get("sharing", 1) != 1 for part in parts)}
        rows.append(row | {"float16_weights": bool(record.get("half"))})
    return pd.DataFrame(rows, columns=PROVENANCE)
