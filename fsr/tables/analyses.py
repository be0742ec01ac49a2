"""T7, T8, T9 and the provenance: what analyses and trainings recorded, one tidy frame each."""

from itertools import product

import pandas as pd

from fsr import experiments, statistics, store
from fsr.config import Analysis, Run, run_id
from fsr.tables import labels, outcomes
from fsr.tables.labels import NOT_RUN, measured

STREAMS, PROBES = ("f", "robust", "nonrobust", "recalibrated", "output"), ("aux", "knn")
SECONDS, LATENCY = "train_seconds_per_epoch", "latency_ms"
COSTS = ["params", "macs", SECONDS, LATENCY, "peak_memory_mb"]
PROVENANCE = ["run", "label", "machine", "precision", "commit", "torch", "resumed", "shared", "float16_weights"]
PROTOCOL, WORST, DOUBTS = "authors' protocol", "worst case", "checks that raise doubt"
# What an audit counts, in its order: the groups as `fsr.audit` names them, and a control
GROUPS = {PROTOCOL: PROTOCOL, "autoattack": "1 AutoAttack", "bpda": "2 the mask's backward pass at tau = 1 (BPDA)"}
GROUPS |= {"mask": "3 the mask frozen or driven", "latent": "4 joint logits, latent heads"}
GROUPS |= {"transfer": "5 transfer from other networks", "restarts": "6 restarts, step sizes, multi-targeted"}
GROUPS |= {"noise": "7 crafted through the training noise", "queries": "8 Square"}
GROUPS |= {"queries/random-noise": "8 control: random noise of the same size", WORST: WORST}


def recorded(profile: str, run: Run, kind: str) -> list[tuple[Analysis, dict]]:
    """A run's planned analyses of this kind with their records; {} for one that was not run, or of other weights."""
    plan = [one for one in experiments.analyses(profile, "all", run) if one.kind == kind]
    here = [store.has_record(run, one) and not outcomes.of_other_weights(run, one) for one in plan]
    return [(one, store.load_analysis(run, one)[0] if done else {}) for one, done in zip(plan, here)]


def streams(profile: str) -> pd.DataFrame:
    """T7: a row per checkpoint, seed, stream and probe; attack is pgd20 or clean, accuracy a fraction of n images."""
    cells = []
    for name, run in [(row.name, run) for row in experiments.ROWS[profile]["streams"] for run in row.runs]:
        for analysis, record in recorded(profile, run, "streams"):
            parts = {"pgd20": record.get("rows", []), "clean": record.get("rows_clean", [])}
            counted = {(r["stream"], r["probe"], attack): r for attack, rows in parts.items() for r in rows}
            for key in product(STREAMS, PROBES, parts):
                counts = [counted.get(key, {}).get(what) for what in ("n", "correct")]
                cells.append([name, run.seed, analysis.checkpoint, *key, *counts])
    columns = ["row", "seed", "checkpoint", "stream", "probe", "attack", "n", "correct"]
    table = pd.DataFrame(cells, columns=columns).astype({"n": float, "correct": float})
    return table.assign(accuracy=table["correct"] / table["n"])


def machine(run: Run) -> str:
    """Device, threads and processes of every part of a run's training; `shared` where other work ran beside it."""
    record, names = store.environment(run), []
    for part in [record, *record.get("sittings", [])]:
        hardware, shared = part.get("hardware") or {}, ", shared" * (part.get("sharing", 1) != 1)
        name = f"{hardware.get('gpu') or hardware.get('cpu')}{shared}, threads: {hardware.get('threads')}"
        names.append(f"{name}, processes: {part.get('processes') or 1}")
    return " and ".join(dict.fromkeys(names))


def overhead(profile: str) -> pd.DataFrame:
    """T8: a row per network, without and with FSR; latency: of the largest batch, both in one process."""
    cells: dict[Run, dict] = {}
    for row in experiments.ROWS[profile]["whitebox"]:
        run = row.runs[0]
        for _, record in recorded(profile, run, "cost"):
            keys = {"dataset": run.dataset, "network": labels.network(run), "row": row.name, "fsr": run.fsr is not None}
            device = record.get("hardware") or {}
            cells[run] = keys | {name: record.get(name) for name in COSTS}
            cells[run] |= {"measured_on": device.get("gpu") or device.get("cpu")}
            for owner, name in zip((run, *row.baseline), ("latency_ms", "latency_ms_without")):
                if times := record.get(name):
                    cells[owner][LATENCY] = times[max(times, key=int)]
            if store.is_trained(run):
                cells[run] |= {SECONDS: store.history(run)["seconds"].median(), "machine": machine(run)}
    table = pd.DataFrame(cells.values(), columns=["dataset", "network", "row", "fsr", *COSTS, "measured_on", "machine"])
    return table.astype(dict.fromkeys(COSTS, float))


def audits(profile: str) -> pd.DataFrame:
    """T9: a row per network and item: `correct` of `n` images still right, or a value, and the text that shows it."""
    cells, runs = [], [(row.name, row.runs[0]) for row in experiments.ROWS[profile]["audit"]]
    for name, analysis, record in ((name, *one) for name, run in runs for one in recorded(profile, run, "audit")):
        version = record.get("version", 1) if record else None
        keys = {"row": name, "checkpoint": analysis.checkpoint, "budget": analysis.budget, "version": version}
        cells += [keys | item for item in _items(record)]
    columns = ["row", "checkpoint", "budget", "n", "correct", "value", "text", "item", "version"]
    return pd.DataFrame(cells, columns=columns).astype({"n": float, "correct": float, "value": float})


def _items(record: dict) -> list[dict]:
    """One audit's items: what it counts, in the order of GROUPS, then what raises doubt and the indicators."""
    n, why = record.get("n", 0), record.get("not_applicable", {})
    counts = {name: part["correct"] for name, part in (record.get("attacks", {}) | record.get("groups", {})).items()}
    counts |= {PROTOCOL: record.get("authors_protocol"), WORST: record.get("worst_case")}
    items: list[dict] = []
    for name in GROUPS:
        text = f"not applicable: {why[name]}" if name in why else NOT_RUN
        if (correct := counts.get(name)) is not None:
            text = measured(correct / n, *statistics.wilson(correct, n))
        items.append({"item": name, "n": None if correct is None else n, "correct": correct, "text": text})
    checks = record.get("flags", {}) | record.get("checks", {})
    raised = [name.replace("_", " ") for name, on in checks.items() if on is True or (isinstance(on, list) and on)]
    items.append({"item": DOUBTS, "text": ", ".join(raised) or ("none" if checks else NOT_RUN)})
    values = {f"indicator: {name.replace('_', ' ')}": value for name, value in record.get("indicators", {}).items()}
    values |= {f"binarization test, {name}": value for name, value in record.get("binarization", {}).items()}
    texts = {name: NOT_RUN if value is None else f"{value:.2f}" for name, value in values.items()}
    return items + [{"item": name, "value": value, "text": texts[name]} for name, value in values.items()]


def audit_lines(record: dict) -> list[str]:
    """One audit's record as lines for a terminal, in T9's order and words."""
    cells = [(GROUPS.get(item["item"], item["item"]), item["text"]) for item in _items(record)]
    return [f"{name:{max(len(name) for name, _ in cells)}}  {text}" for name, text in cells]


def provenance(profile: str) -> pd.DataFrame:
    """A row per finished training; precision: of crafting; resumed: in parts; shared: its device with others."""
    rows = []
    for run in filter(store.is_trained, experiments.SETS[experiments.profile_of(profile).name]["all"]):
        record, name = store.environment(run), machine(run)
        crafting = (record.get("switches", {}).get("crafting") or run.precision).replace("bfloat16", "bf16")
        row = {"run": run_id(run), "label": labels.run(profile, run), "machine": name, "precision": crafting}
        row |= {"commit": (record.get("commit") or "")[:10] or None, "torch": record.get("versions", {}).get("torch")}
        row |= {"resumed": len(record.get("sittings", [])) > 1, "shared": "shared" in name}
        rows.append(row | {"float16_weights": bool(record.get("half"))})
    return pd.DataFrame(rows, columns=PROVENANCE)
