"""T1 to T6 and T11: accuracy under attack and gain over the baseline, from the plan's rows and the records."""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from fsr import experiments, reference
from fsr.config import Evaluation, Run
from fsr.experiments import Row
from fsr.tables import labels, outcomes, paper_cells
from fsr.tables.formatting import NOT_RUN

KINDS = {"T1": "whitebox", "T2": "deactivation", "T3": "blackbox", "T4": "components"}
KINDS |= {"T5": "settings", "T6": "placement", "T11": "study"}
KEYS = ["dataset", "backbone", "network", "checkpoint", "row", "kind", "source"]
NUMBERS = ["value", "low", "high", "sd", "n", "seeds", "planned", "p_first_seed"]
COLUMNS = [
    *KEYS, "metric", *NUMBERS, "flags", "axis", "setting", "full_size", "status", "seeds_low", "seeds_high",
]  # fmt: skip
OTHER_WEIGHTS = "other weights"


def frame(name: str, profile: str) -> pd.DataFrame:
    """One of these tables as numbers: a row per (network, checkpoint, row, kind, metric), values as fractions.

    kind: ours, gain, paper, difference, rerun, anchor; value is empty where nothing was run, and status says why.
    """
    ours = list(_ours(profile, KINDS[name]))
    table = pd.DataFrame([*ours, *_paper(name, ours), *_others(name, ours)], columns=COLUMNS)
    numbers = [*NUMBERS, "seeds_low", "seeds_high"]
    return table.astype(dict.fromkeys(numbers, float))


def checkpoints(profile: str, kind: str, row: Row) -> list[str]:
    """The weights of a row that its set evaluates, in order."""
    if row.checkpoints:
        return list(row.checkpoints)
    planned = experiments.evaluations(profile, kind, row.runs[0])
    kinds = {e.checkpoint for e in planned if e.intervention == row.intervention}
    return [name for name in experiments.CHECKPOINTS if name in kinds] or ["last"]


def _ours(profile: str, kind: str) -> Iterator[dict]:
    columns = experiments.columns(profile, kind)
    for row in experiments.ROWS[profile][kind]:
        run = row.runs[0]
        for checkpoint in checkpoints(profile, kind, row):
            keys = {
                "dataset": run.dataset, "backbone": run.backbone, "network": labels.network(run),
                "checkpoint": checkpoint, "source": "this project", "axis": row.axis, "setting": row.value,
                "full_size": paper_cells.full_size(run),
            }  # fmt: skip
            here = {name: replace(e, checkpoint=checkpoint) for name, e in columns.items()}
            for metric, evaluation in here.items():
                yield keys | _accuracy(row, metric, replace(evaluation, intervention=row.intervention))
            for metric, evaluation in here.items() if row.baseline else ():
                yield keys | _gain(row, metric, replace(evaluation, intervention=row.intervention), evaluation)


def _accuracy(row: Row, metric: str, evaluation: Evaluation) -> dict:
    cell = outcomes.accuracy(row.runs, evaluation)
    applies = metric != "pgd20-joint" or experiments.has_heads(row.runs[0])
    status = _status(cell, row.runs, evaluation) if applies else "not applicable"
    return {"row": row.name, "kind": "ours", "metric": metric, "status": status, **cell}


def _gain(row: Row, metric: str, evaluation: Evaluation, baseline: Evaluation) -> dict:
    cell = outcomes.gain(row.runs, row.baseline, evaluation, baseline)
    name = f"{row.name}: gain over {labels.method(row.baseline[0].label)}"
    status = "not applicable" if metric == "pgd20-joint" else _status(cell, row.runs, evaluation)
    return {"row": name, "kind": "gain", "metric": metric, "status": status, **cell}


def _status(cell: dict, runs: tuple[Run, ...], evaluation: Evaluation) -> str | None:
    """Why a cell is empty; None for one that is not."""
    if "value" in cell:
        return None
    return OTHER_WEIGHTS if any(outcomes.of_other_weights(run, evaluation) for run in runs) else NOT_RUN


def _others(table: str, ours: list[dict]) -> Iterator[dict]:
    """What others report for the same data set and network, in T1 and T2 (where rows are whole methods)."""
    places = {(r["dataset"], r["backbone"]) for r in ours} if table in ("T1", "T2") else set()
    metrics = {r["metric"] for r in ours}
    known = reference.known_results()
    for row in known[known["kind"].isin(["rerun", "anchor"]) & (known["unit"] == "percent")].itertuples():
        if (row.dataset, row.backbone) in places and row.metric in metrics:
            yield {
                "dataset": row.dataset, "backbone": row.backbone, "network": labels.network(Run(backbone=row.backbone)),
                "checkpoint": row.checkpoint or "unknown", "row": labels.method(row.method), "kind": row.kind,
                "source": row.source, "metric": row.metric, "value": row.value / 100, "full_size": True,
            }  # fmt: skip


def _paper(table: str, ours: list[dict]) -> Iterator[dict]:
    """The paper's own cells beside the `last` weights, which the authors' code keeps, and ours minus them.

    A difference is taken only at the paper's own size.
    """
    kind = KINDS[table]
    plans = [(name, row) for name in experiments.PROFILES for row in experiments.ROWS[name][kind]]
    rows = {(row.runs[0].dataset, row.runs[0].backbone, row.name) for _, row in plans}
    units = {metric: "percent" for name in experiments.PROFILES for metric in experiments.columns(name, kind)}
    index = {(r["dataset"], r["backbone"], r["row"], r["metric"]): r for r in ours if r["checkpoint"] == "last"}
    for cell in paper_cells.cells(table, rows=rows, units=units):
        mine = index.get((cell.dataset, cell.backbone, cell.row, cell.metric))
        if mine is None:
            continue
        base = {key: mine[key] for key in (*KEYS, "metric", "full_size")} | {"source": "paper"}
        theirs = {"network": labels.network(Run(backbone=cell.backbone)), "full_size": True}
        yield base | theirs | {"kind": "paper", "row": f"{cell.row}: paper", "value": cell.value / 100}
        same = mine["full_size"] and "value" in mine
        difference = mine["value"] - cell.value / 100 if same else None
        status = None if same else NOT_RUN if mine["full_size"] else "not comparable"
        name = f"{cell.row}: ours minus paper"
        yield base | {"kind": "difference", "row": name, "value": difference, "status": status}


def mixed(profile: str, name: str, table: pd.DataFrame) -> Iterator[tuple[str, Run]]:
    """(row, weights and columns that are left out, the run) where outcomes are of other weights than its training."""
    left_out = table[(table["status"] == OTHER_WEIGHTS) & (table["kind"] == "ours")]
    columns = experiments.columns(profile, KINDS[name])
    rows = {(labels.network(row.runs[0]), row.name): row for row in experiments.ROWS[profile][KINDS[name]]}
    for (network, row, checkpoint), cells in left_out.groupby(["network", "row", "checkpoint"], sort=False):
        planned, runs = rows[network, row], rows[network, row].runs
        here = [replace(columns[m], checkpoint=checkpoint, intervention=planned.intervention) for m in cells["metric"]]
        run = next(run for run in runs if any(outcomes.of_other_weights(run, evaluation) for evaluation in here))
        yield f"{row}, {checkpoint}, {', '.join(map(labels.metric, cells['metric']))}", run
