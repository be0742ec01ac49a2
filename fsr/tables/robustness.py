"""T1 to T6 and T11: accuracy under attack and gain over the baseline, from the plan's rows and the records."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pandas as pd

from fsr import experiments, reference
from fsr.config import Run
from fsr.files import UsageError
from fsr.tables import labels, outcomes
from fsr.tables.labels import NOT_RUN

KINDS = {"T1": "whitebox", "T2": "deactivation", "T3": "blackbox", "T4": "components"}
KINDS |= {"T5": "settings", "T6": "placement", "T11": "study"}
KEYS = ["dataset", "backbone", "network", "checkpoint", "row", "kind", "source", "metric"]
NUMBERS = ["value", "low", "high", "sd", "n", "seeds", "planned", "p_first_seed"]
OVER_SEEDS = ["seeds_low", "seeds_high"]
COLUMNS = [*KEYS, *NUMBERS, "flags", "axis", "setting", "full_size", "status", *OVER_SEEDS]
OTHER_WEIGHTS, JOINT = "other weights", "pgd20-joint"


def frame(name: str, profile: str) -> pd.DataFrame:
    """A table, values as fractions; kind: ours, gain, paper, difference, rerun, anchor; status: why it is empty."""
    ours = list(_ours(profile, KINDS[name]))
    table = pd.DataFrame([*ours, *_paper(name, ours), *_others(name, ours)], columns=COLUMNS)
    return table.astype(dict.fromkeys([*NUMBERS, *OVER_SEEDS], float))


def _ours(profile: str, kind: str) -> Iterator[dict]:
    for row in experiments.ROWS[profile][kind]:
        run, columns = row.runs[0], experiments.columns(profile, kind)
        plan = experiments.evaluations(profile, kind, run)
        checkpoints = row.checkpoints or {e.checkpoint for e in plan if e.intervention == row.intervention} or ("last",)
        keys: dict = {"dataset": run.dataset, "backbone": run.backbone, "network": labels.network(run)}
        keys |= {"source": "this project", "axis": row.axis}
        keys["setting"] = f"{row.value:g}" if isinstance(row.value, float) else row.value
        keys["full_size"] = (run.width, run.blocks, run.train_size, run.epochs) == (None, None, None, 100)
        weights, kinds = [name for name in experiments.CHECKPOINTS if name in checkpoints], ("ours", "gain")
        for checkpoint, shown, metric in product(weights, kinds[: 2 if row.baseline else 1], columns):
            base = replace(columns[metric], checkpoint=checkpoint)
            tested = replace(base, intervention=row.intervention)
            if shown == "ours":
                cell = {"row": row.name, "status": None} | outcomes.accuracy(row.runs, tested)
            else:
                name = f"{row.name}: gain over {labels.method(row.baseline[0].label)}"
                cell = {"row": name, "status": None} | outcomes.gain(row.runs, row.baseline, tested, base)
            if metric == JOINT and (shown == "gain" or not experiments.has_heads(run)):
                cell["status"] = "not applicable"
            elif "value" not in cell:
                mixed = any(outcomes.of_other_weights(one, tested) for one in row.runs)
                cell["status"] = OTHER_WEIGHTS if mixed else NOT_RUN
            yield keys | {"checkpoint": checkpoint, "kind": shown, "metric": metric} | cell


def _others(table: str, ours: list[dict]) -> Iterator[dict]:
    """What others report for the same data set and network, in T1 and T2 (where rows are whole methods)."""
    places = {(r["dataset"], r["backbone"]) for r in ours} if table in ("T1", "T2") else set()
    metrics, results = {r["metric"] for r in ours}, reference.known_results()
    for row in results[results["kind"].isin(["rerun", "anchor"]) & (results["unit"] == "percent")].to_dict("records"):
        if (row["dataset"], row["backbone"]) in places and row["metric"] in metrics:
            row |= {"network": labels.network(Run(backbone=row["backbone"])), "row": labels.method(row["method"])}
            row |= {"checkpoint": row["checkpoint"] or "unknown", "value": row["value"] / 100, "full_size": True}
            yield row


def _paper(table: str, ours: list[dict]) -> Iterator[dict]:
    """The paper's cells beside the `last` weights, which the authors' code keeps, and at full size ours minus them."""
    kind, profiles = KINDS[table], experiments.PROFILES
    rows = {row.name for name in profiles for row in experiments.ROWS[name][kind]}
    metrics = {metric for name in profiles for metric in experiments.columns(name, kind)}
    index = {(r["dataset"], r["backbone"], r["row"], r["metric"]): r for r in ours if r["checkpoint"] == "last"}
    for cell in reference.paper_values().query("table == @table").itertuples():
        if cell.row not in rows or cell.metric not in metrics:
            what = f"{table} has no row {cell.row!r}, or no column {cell.metric!r}"
            raise UsageError(f"{reference.paper_file()}, line {cell.line}: {what}")
        if match := index.get((cell.dataset, cell.backbone, cell.row, cell.metric)):
            base = {key: match[key] for key in (*KEYS, "full_size")} | {"source": "paper"}
            theirs = {"network": labels.network(Run(backbone=cell.backbone)), "full_size": True}
            yield base | theirs | {"kind": "paper", "row": f"{cell.row}: paper", "value": cell.value / 100}
            if match["full_size"]:
                value = match.get("value", float("nan")) - cell.value / 100
                yield base | {"kind": "difference", "row": f"{cell.row}: ours minus paper", "value": value}
