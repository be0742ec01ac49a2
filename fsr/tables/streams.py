"""T7: what a probe reads from each stream of FSR, under attack and without."""

from collections.abc import Iterator

import pandas as pd

from fsr import experiments, store
from fsr.config import Analysis, Run
from fsr.tables import paper_cells

STREAMS = ("f", "robust", "nonrobust", "recalibrated", "output")
PROBES = ("aux", "knn")
COLUMNS = ["row", "seed", "checkpoint", "stream", "probe", "attack", "n", "correct"]


def planned(profile: str, run: Run, kind: str) -> list[Analysis]:
    """A run's analyses of this kind in this profile."""
    return [a for a in experiments.analyses(profile, "all", run) if a.kind == kind]


def record_of(run: Run, analysis: Analysis) -> dict:
    """The record of an analysis; {} when it was not run."""
    return store.load_analysis(run, analysis)[0] if store.has_analysis(run, analysis) else {}


def frame(profile: str) -> pd.DataFrame:
    """A row per checkpoint, seed, stream and probe; attack is pgd20 or clean, accuracy a fraction of n images."""
    rows = experiments.ROWS[profile]["streams"]
    cells = [{"row": row.name} | cell for row in rows for run in row.runs for cell in _cells(profile, run)]
    table = pd.DataFrame(cells, columns=COLUMNS)
    table = table.astype({"n": float, "correct": float})
    table = table.assign(accuracy=table["correct"] / table["n"])
    theirs = pd.DataFrame(_paper(profile), columns=table.columns)
    return pd.concat([table, theirs], ignore_index=True) if len(theirs) else table


def _cells(profile: str, run: Run) -> Iterator[dict]:
    for analysis in planned(profile, run, "streams"):
        record = record_of(run, analysis)
        attacks = {"pgd20": record.get("rows", []), "clean": record.get("rows_clean", [])}
        known = {(r["stream"], r["probe"], attack): r for attack, rows in attacks.items() for r in rows}
        for stream in STREAMS:
            for probe in PROBES:
                for attack in attacks:
                    cell = known.get((stream, probe, attack), {})
                    yield {
                        "seed": run.seed, "checkpoint": analysis.checkpoint, "stream": stream, "probe": probe,
                        "attack": attack, "n": cell.get("n"), "correct": cell.get("correct"),
                    }  # fmt: skip


def _paper(profile: str) -> list[dict]:
    """The paper's cells (row: a stream, metric: a probe), under PGD-20 and of the last weights."""
    base = experiments.profile_of(profile).base
    cells = paper_cells.cells("T7", rows=STREAMS, units=dict.fromkeys(PROBES, "percent"))
    keys = {"row": "paper", "checkpoint": "last", "attack": "pgd20"}
    return [
        keys | {"stream": cell.row, "probe": cell.metric, "accuracy": cell.value / 100}
        for cell in cells
        if (cell.dataset, cell.backbone) == (base.dataset, base.backbone)
    ]
