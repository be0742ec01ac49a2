"""T1 to T6: accuracy under attack, a row per plan row and checkpoint, whether it was run or not."""

import pandas as pd

from fsr import experiments, reference
from fsr.config import Run
from fsr.experiments import Row
from fsr.files import UsageError
from fsr.tables import cells, formats, names
from fsr.tables.frame import About, Sources, Table, make
from fsr.tables.text import NOT_RUN
from fsr.tables.typed import full_size
from fsr.tables.wide import wide

KEYS = ["dataset", "backbone", "network", "checkpoint", "row", "kind", "source"]
COLUMNS = [
    *KEYS, "metric", "value", "low", "high", "sd", "n", "seeds", "planned", "p_first_seed",
    "flags", "axis", "setting", "full_size", "status",
]  # fmt: skip
TITLES = {
    "T1": ("whitebox", "White-box robustness"),
    "T2": ("deactivation", "Against deactivation"),
    "T3": ("blackbox", "Black-box attacks"),
    "T4": ("components", "Components and controls"),
    "T5": ("settings", "Settings of the module"),
    "T6": ("placement", "Where FSR sits"),
}
NOTE = (
    "Percent; in brackets the 95 % interval over images (Wilson; gains: paired bootstrap), ± the standard deviation "
    "over seeds. Bold: best of our rows for the same weights, of those with the most seeds"
)
STRONG = (
    "{}, without networks for which AutoAttack is in doubt: by a warning of its own, or because another attack on "
    "record breaks what it leaves right, more than one in a hundred of its images. Authors' protocol except AutoAttack."
)
PROTOCOL = (
    "{}. Authors' protocol alone: it cannot tell robustness from a mask that hides gradients, so bold is no verdict: "
    "AutoAttack is in T1, the audit in T9."
)
OTHERS = (
    "Transfer, DI-FGSM and TI-FGSM are crafted in float32 on another network than the attacked one: that which the "
    "column names, for DI and TI the AT twin."
)
SAME_SEEDS = (
    "A gain is over the same seeds: that of a row of one training is over that seed's network, not over the mean row."
)
SIZES = (
    "The module grows with its place: 64 hidden channels where the network has 512, in proportion elsewhere but 8 at "
    "least, on the channels that are there, so rows of T6 differ in capacity as well as in place."
)
TRAININGS = (
    "Intervals hold for these trained networks: another seed of the same method often differs by more (see ±), and a "
    "row without ± is one training. Of twenty gains without any effect one interval leaves out zero even so."
)


def _checkpoints(profile: str, kind: str, row: Row) -> list[str]:
    asked = experiments.evaluations(profile, kind, row.runs[0])
    kinds = {e.checkpoint for e in asked if e.intervention == row.intervention}
    return [name for name in experiments.CHECKPOINTS if name in kinds] or ["last"]


def _ours(profile: str, kind: str, sources: Sources) -> list[dict]:
    records = []
    for row in experiments.ROWS[profile][kind]:
        run = row.runs[0]
        for checkpoint in _checkpoints(profile, kind, row):
            keys = {
                "dataset": run.dataset, "backbone": run.backbone, "network": names.network(run),
                "checkpoint": checkpoint, "source": "this project", "axis": row.axis, "setting": row.value,
                "full_size": full_size(run),
            }  # fmt: skip
            for metric, evaluation in experiments.columns(profile, kind).items():
                here = cells.at(evaluation, checkpoint, row.intervention)
                cell = _told(cells.accuracy(row.runs, here, sources), metric, run)
                records.append({**keys, "row": row.name, "kind": "ours", "metric": metric, **cell})
            for metric, evaluation in experiments.columns(profile, kind).items() if row.plain else ():
                here = cells.at(evaluation, checkpoint, row.intervention)
                plain = cells.at(evaluation, checkpoint)
                cell = _told(cells.gain(row.runs, row.plain, here, plain, sources=sources), metric)
                name = f"{row.name}: gain over {names.method(row.plain[0].label)}"
                records.append({**keys, "row": name, "kind": "gain", "metric": metric, **cell})
    return records


def _told(cell: dict, metric: str, run: Run | None = None) -> dict:
    """An empty cell with what that means: without auxiliary logits no joint loss, and no gain is taken under it."""
    if cell["value"] is not None:
        return cell
    joint = run is not None and experiments.has_heads(run)
    return cell | {"status": "not applicable" if metric == "pgd20-joint" and not joint else NOT_RUN}


def _known(table: str, ours: list[dict]) -> list[dict]:
    """What others report for the same data set and network, in T1 and T2 (where rows are whole methods)."""
    if table not in ("T1", "T2"):
        return []
    places = {(r["dataset"], r["backbone"]) for r in ours}
    metrics = {r["metric"] for r in ours}
    known = reference.known_results()
    records = []
    for row in known[known["kind"].isin(["rerun", "anchor"])].itertuples():
        if (row.dataset, row.backbone) in places and row.metric in metrics and row.unit == "percent":
            records.append({
                "dataset": row.dataset, "backbone": row.backbone, "network": names.network(Run(backbone=row.backbone)),
                "checkpoint": row.checkpoint or "unknown", "row": names.method(row.method), "kind": row.kind,
                "source": row.source, "metric": row.metric, "value": row.value / 100, "full_size": True,
            })  # fmt: skip
    return records


def _paper(table: str, ours: list[dict]) -> list[dict]:
    """The paper's own cells and our difference to them, beside the `last` weights, which the authors' code keeps.

    A difference is taken only at the paper's own size. A cell that no row or column of any profile has is a typing
    error: UsageError names its line.
    """
    typed = reference.paper_values()
    typed = typed[typed["table"] == table]
    kind = TITLES[table][0]
    plans = [(name, row) for name in experiments.PROFILES for row in experiments.ROWS[name][kind]]
    rows = {(row.runs[0].dataset, row.runs[0].backbone, row.name) for _, row in plans}
    metrics = {metric for name in experiments.PROFILES for metric in experiments.columns(name, kind)}
    index = {(r["dataset"], r["backbone"], r["row"], r["metric"]): r for r in ours if r["checkpoint"] == "last"}
    records = []
    for cell in typed.itertuples():
        where = f"{reference.paper_file()}, line {cell.line}"
        if (cell.dataset, cell.backbone, cell.row) not in rows:
            raise UsageError(f"{where}: {table} has no row {cell.row!r} for {cell.dataset}, {cell.backbone}")
        if cell.metric not in metrics or cell.unit != "percent":
            raise UsageError(f"{where}: {table} has no column {cell.metric!r} in {cell.unit}; use percent")
        mine = index.get((cell.dataset, cell.backbone, cell.row, cell.metric))
        if mine is None:
            continue
        base = {key: mine[key] for key in (*KEYS, "metric", "full_size")} | {"source": "paper"}
        theirs = {"network": names.network(Run(backbone=cell.backbone)), "full_size": True}
        records.append(base | theirs | {"kind": "paper", "row": f"{cell.row}: paper", "value": cell.value / 100})
        same = mine["full_size"] and mine["value"] is not None
        difference = mine["value"] - cell.value / 100 if same else None
        status = None if same else NOT_RUN if mine["full_size"] else "not comparable"
        name = f"{cell.row}: ours minus paper"
        records.append(base | {"kind": "difference", "row": name, "value": difference, "status": status})
    return records


def long(name: str, profile: str, sources: Sources) -> pd.DataFrame:
    """T1 to T6 as numbers: a row per (network, checkpoint, row, kind, metric), values as fractions.

    kind: ours, gain, paper, difference, rerun, anchor; value is NaN where nothing was run.
    """
    experiments.profile_of(profile)
    ours = _ours(profile, TITLES[name][0], sources)
    frame = pd.DataFrame([*ours, *_paper(name, ours), *_known(name, ours)], columns=COLUMNS)
    numbers = ["value", "low", "high", "sd", "n", "seeds", "planned", "p_first_seed"]
    frame[numbers] = frame[numbers].astype(float)
    return frame


def table(name: str, profile: str) -> Table:
    """One of T1 to T6 of a profile, whatever of it has been run."""
    sources = Sources()
    frame = long(name, profile, sources)
    shown, bold = wide(frame)
    kind, title = TITLES[name]
    strong = experiments.profile_of(profile).autoattack in experiments.columns(profile, kind)
    lead = (STRONG if strong else PROTOCOL if name != "T3" else "{}.").format(NOTE)
    notes = (lead, *_extra_notes(frame, name, profile, sources))
    about = About(
        id=name, slug=kind, title=title, profile=profile, numbers=frame, bold=bold, notes=notes,
        runs=tuple(sorted(sources.runs)), commits=tuple(sorted(sources.commits)),
    )  # fmt: skip
    return make(shown, about)


def _guessing(frame: pd.DataFrame) -> str:
    """Rows that are no better than guessing on clean images, as a sentence: their other columns compare nothing."""
    clean = frame[(frame["kind"] == "ours") & (frame["metric"] == "clean") & frame["value"].notna()]
    lost = [cell.row for cell in clean.itertuples() if cells.guesses(cell.low, cell.dataset)]
    return f"{cells.GUESSING.capitalize()}: {', '.join(dict.fromkeys(lost))}." if lost else ""


def made(frame: pd.DataFrame, profile: str, sources: Sources) -> list[str]:
    """How the networks and the images of a frame came about, where that matters for reading it, as sentences."""
    crafted = formats.note(profile, sources)
    told = (crafted, _guessing(frame), formats.machines(sources), formats.rounded(sources), formats.unnamed(sources))
    return list(filter(None, (*told, formats.twice(sources))))


def _extra_notes(frame: pd.DataFrame, name: str, profile: str, sources: Sources) -> list[str]:
    notes = made(frame, profile, sources)
    if frame.loc[frame["kind"] == "gain", "value"].notna().any():
        notes += [SAME_SEEDS, TRAININGS]
    if name == "T3":
        notes.append(OTHERS)
    if name == "T6":
        notes.append(SIZES)
    if name == "T4":
        notes.append("m = 1 and R = 0 at test are one network computed in two ways, f̃ = f: equal rows are a check.")
    if frame["kind"].isin(["rerun", "anchor"]).any():
        notes.append("Rows that name a source are what others report, at full size and their own budget.")
    if name in ("T1", "T2") and not frame["full_size"].all():
        notes.append("Ours is smaller or trained for fewer epochs than the paper's: it cannot confirm its numbers.")
    if not (frame["kind"] == "paper").any():
        notes.append("The paper's own cells: none given (results/paper_values.csv).")
    return notes
