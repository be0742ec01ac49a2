"""T7 and T9: what the streams know, and the adaptive audit."""

import pandas as pd

from fsr import experiments, statistics, store
from fsr.config import AUDIT_VERSION, Analysis, Run
from fsr.files import MissingRecord
from fsr.tables import formats, typed
from fsr.tables.frame import About, Sources, Table, make
from fsr.tables.text import NOT_RUN, missing, number, percent, quantity

STREAMS = ("f", "robust", "nonrobust", "recalibrated", "output")
STREAM_NAMES = {"f": "f", "robust": "f⁺", "nonrobust": "f⁻", "recalibrated": "f̃⁻", "output": "f̃"}
PROBES = {"aux": "auxiliary head", "knn": "k-nearest neighbours"}
STREAM_COLUMNS = [f"{probe}, {attack}" for probe in PROBES.values() for attack in ("PGD-20", "no attack")]
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


EARLIER = (
    "Of an earlier version of the audit, whose driven masks hardly moved and whose finite differences took the same "
    "directions in every step"
)


def record_of(run: Run, analysis: Analysis, sources: Sources) -> dict | None:
    """The record of an analysis; None when it was not run."""
    try:
        record, _ = store.load_analysis(run, analysis)
    except MissingRecord:
        return None
    sources.add(record)
    return record


def about(
    name: str, slug: str, title: str, profile: str, numbers: pd.DataFrame, sources: Sources, *notes: str
) -> About:
    """The part beside the cells of a table without bold cells."""
    kinds = (formats.exceptions, formats.machines, formats.rounded, formats.unnamed, formats.twice)
    return About(
        id=name, slug=slug, title=title, profile=profile, numbers=numbers,
        notes=(*notes, *filter(None, (told(sources) for told in kinds))),
        runs=tuple(sorted(sources.runs)), commits=tuple(sorted(sources.commits)),
    )  # fmt: skip


def planned(profile: str, run: Run, kind: str) -> list[Analysis]:
    """A run's analyses of this kind in this profile."""
    return [a for a in experiments.analyses(profile, "all", run) if a.kind == kind]


def stream_numbers(profile: str, sources: Sources) -> pd.DataFrame:
    """T7 as numbers: a row per checkpoint, seed, stream and probe; attack pgd20 and clean; accuracy as a fraction."""
    records = []
    for row in experiments.ROWS[profile]["streams"]:
        for run in row.runs:
            for analysis in planned(profile, run, "streams"):
                found = record_of(run, analysis, sources) or {}
                known = {(r["stream"], r["probe"], attack): r for attack, key in
                         (("pgd20", "rows"), ("clean", "rows_clean")) for r in found.get(key, [])}  # fmt: skip
                for stream in STREAMS:
                    for probe in PROBES:
                        for attack in ("pgd20", "clean"):
                            cell = known.get((stream, probe, attack), {})
                            records.append({
                                "row": row.name, "seed": run.seed, "checkpoint": analysis.checkpoint, "stream": stream,
                                "probe": probe, "attack": attack, "n": cell.get("n"), "correct": cell.get("correct"),
                            })  # fmt: skip
    frame = pd.DataFrame(records)
    frame[["n", "correct"]] = frame[["n", "correct"]].astype(float)
    return frame.assign(accuracy=frame["correct"] / frame["n"])


def streams(profile: str) -> Table:
    """T7: accuracy of every stream under PGD-20 by both probes, mean over seeds with Wilson interval."""
    experiments.profile_of(profile)
    sources = Sources()
    numbers = stream_numbers(profile, sources)
    shown = []
    for (row, checkpoint, stream), part in numbers.groupby(["row", "checkpoint", "stream"], sort=False):
        out = {"method": row, "weights": checkpoint, "stream": f"{STREAM_NAMES[stream]} ({stream})"}
        for probe, title in PROBES.items():
            for attack, words in (("pgd20", "PGD-20"), ("clean", "no attack")):
                mine = part[(part["probe"] == probe) & (part["attack"] == attack)]
                out[f"{title}, {words}"] = _over_seeds(mine)
        shown.append(out | {"n": quantity(part["n"].max(), digits=0)})
    shown += _typed_streams(profile, numbers)
    notes = (
        "Percent, with 95 % Wilson intervals at one seed's n, ± the standard deviation over seeds.",
        "The auxiliary head was trained to be wrong on f⁻ and right on f⁺ and f̃⁻, and is a guest on f and f̃: only "
        "the neighbours, which nothing was trained on, are evidence.",
    )
    return make(pd.DataFrame(shown), about("T7", "streams", "What the streams know", profile, numbers, sources, *notes))


def _typed_streams(profile: str, numbers: pd.DataFrame) -> list[dict[str, str]]:
    """The paper's cells under PGD-20 (row: a stream, metric: a probe) and ours minus them at full size."""
    base, shown = experiments.profile_of(profile).base, []
    for cell in typed.cells("T7", rows=STREAMS, units=dict.fromkeys(PROBES, "percent")):
        if (cell.dataset, cell.backbone) == (base.dataset, base.backbone):
            chosen = (numbers["checkpoint"] == "last") & (numbers["stream"] == cell.row)
            mine = numbers[chosen & (numbers["probe"] == cell.metric) & (numbers["attack"] == "pgd20")]
            ours = 100 * mine["accuracy"].mean()
            texts = typed.pair(ours, cell.value, full_size=typed.full_size(base), digits=2)
            for name, text in zip(("paper", "ours minus paper"), texts):
                keys = {"method": name, "weights": "last", "stream": f"{STREAM_NAMES[cell.row]} ({cell.row})"}
                shown.append(
                    dict.fromkeys(STREAM_COLUMNS, "") | keys | {f"{PROBES[cell.metric]}, PGD-20": text, "n": ""}
                )
    return shown


def _over_seeds(part: pd.DataFrame) -> str:
    done = part.dropna(subset="accuracy")
    if done.empty:
        return NOT_RUN
    mean, n = float(done["accuracy"].mean()), int(done["n"].min())
    text = percent(mean, *statistics.wilson(min(mean * n, n), n))
    if len(done) > 1:
        head, tail = text.split(" ", 1)
        text = f"{head} ± {number(100 * float(done['accuracy'].std(ddof=1)))} {tail}"
    return text if len(done) == len(part) else f"{text} ({len(done)} of {len(part)} seeds)"


def audit_numbers(profile: str, sources: Sources) -> pd.DataFrame:
    """T9 as numbers: a row per network and group, `correct` of `n` images still right; reason where not applicable."""
    records = []
    for row in experiments.ROWS[profile]["audit"]:
        for analysis in planned(profile, row.runs[0], "audit"):
            found = record_of(row.runs[0], analysis, sources) or {}
            keys = {"row": row.name, "checkpoint": analysis.checkpoint, "budget": analysis.budget}
            records += [keys | cell for cell in _audit_cells(found)]
    frame = pd.DataFrame(records)
    frame[["n", "correct", "value"]] = frame[["n", "correct", "value"]].astype(float)
    return frame


def earlier_audits(profile: str) -> list[str]:
    """Rows of T9 whose record is of an earlier version of the audit."""
    found = []
    for row in experiments.ROWS[profile]["audit"]:
        records = [record_of(row.runs[0], planned_, Sources()) for planned_ in planned(profile, row.runs[0], "audit")]
        if any(record is not None and record.get("version", 1) < AUDIT_VERSION for record in records):
            found.append(row.name)
    return found


def _audit_cells(found: dict) -> list[dict]:
    """Protocol, every group (a reason where it does not apply), worst case, then flags and indicators."""
    n, groups, left_out = found.get("n"), dict(found.get("groups", {})), found.get("not_applicable", {})
    groups |= {name: cell for name, cell in found.get("attacks", {}).items() if name in GROUPS}  # the control
    whole = {name: why for name, why in left_out.items() if "/" not in name}
    cells = [{"item": "authors' protocol", "n": n, "correct": found.get("authors_protocol")}]
    for name in [*groups, *(name for name in whole if name not in groups)] or GROUPS:
        cell = groups.get(name, {})
        cells.append({"item": name, "n": cell.get("n"), "correct": cell.get("correct"), "text": whole.get(name)})
    if "noise" in whole:
        cells.append({"item": "noise/own", "text": whole["noise"]})
    elif found:
        own = found.get("details", {}).get("noise", {}).get("noisy_accuracy")  # older records do not have it
        cells.append({"item": "noise/own", "n": n, "correct": None if own is None else round(own * n)})
    cells.append({"item": "worst case", "n": n, "correct": found.get("worst_case")})
    flags = [name for name, on in found.get("flags", {}).items() if on is True]
    cells.append({"item": "AutoAttack's flags", "text": (", ".join(flags) or "none") if found else None})
    cells += [{"item": f"indicator: {name}", "value": value} for name, value in found.get("indicators", {}).items()]
    if found.get("clean"):
        cells.append({"item": UNBROKEN, "value": found["worst_case"] / found["clean"]})
    return [{"n": None, "correct": None, "value": None, "text": None, **cell} for cell in cells]


def audit_lines(record: dict) -> list[str]:
    """One audit's record as lines for a terminal, in T9's order and words."""
    numbers = pd.DataFrame(_audit_cells(record))
    cells = {cell.item: cell for cell in numbers.itertuples()}
    names = {item: GROUPS.get(item, item.replace("_", " ")) for item in _items(numbers)}
    width = max(len(name) for name in names.values())
    return [f"{name:{width}}  {_audit_text(cells.get(item))}" for item, name in names.items()]


def audit(profile: str) -> Table:
    """T9: accuracy per attack group and in the worst case over all of them, per network."""
    experiments.profile_of(profile)
    sources = Sources()
    numbers = audit_numbers(profile, sources)
    columns = list(dict.fromkeys(zip(numbers["row"], numbers["checkpoint"])))
    cells = {(r.row, r.checkpoint, r.item): r for r in numbers.itertuples()}
    shown = []
    for item in _items(numbers):
        out = {"attack group": GROUPS.get(item, item.replace("_", " "))}
        for row, checkpoint in columns:
            out[f"{row}, {checkpoint}"] = _audit_text(cells.get((row, checkpoint, item)))
        shown.append(out)
    budget = ", ".join(sorted(set(numbers["budget"].dropna())))
    notes = (
        f"Percent of images still right, with 95 % Wilson intervals; budget: {budget} (quick: AutoAttack with 20 steps "
        "and 300 queries, Square alone with 1,000, 40 steps elsewhere; full: AutoAttack standard, Square with 20,000). "
        "Every attack is crafted in float32 (TF32 on a GPU) and judged in float32, so row 1 is not "
        "T1's. A group breaks an image when one of its attacks "
        "does; the worst case is over every group and the protocol. FSR is given more attacks: groups 2, 3 and 7, the "
        "joint logits of group 4, and in group 5 its own twins with m = 1 and with R = 0, which a network without FSR "
        "does not have. So compare columns by the worst case, not by these groups. The network with its training "
        "noise on is another one, judged by the mean of its draws, and not part of the worst case.",
        "Indicators are shares of the images that are right when clean; high values say that attacks failed to attack. "
        "Transfer failure is the share where an attack fools a smooth student and not the network: an image that "
        f"nothing breaks may count too, so a network that holds has a high value; read it beside '{UNBROKEN}'.",
    )
    earlier = earlier_audits(profile)
    old = [f"{EARLIER}: {', '.join(earlier)}."] if earlier else []
    return make(pd.DataFrame(shown), about("T9", "audit", "Adaptive audit", profile, numbers, sources, *notes, *old))


def _items(numbers: pd.DataFrame) -> list[str]:
    """Every item once: groups, then the worst case, flags, indicators and what to read them against at the end."""
    items = list(dict.fromkeys(numbers["item"]))
    indicators = [i for i in items if i.startswith("indicator")]
    last = ["worst case", "AutoAttack's flags", *indicators, *(i for i in items if i == UNBROKEN)]
    order = list(GROUPS)
    found = (i for i in items if i not in last)
    return [*sorted(found, key=lambda item: order.index(item) if item in order else -1), *last]


def _audit_text(cell) -> str:
    if cell is None:
        return NOT_RUN
    if isinstance(cell.text, str):
        return cell.text if cell.item.startswith("Auto") else f"not applicable: {cell.text}"
    if not missing(cell.value):
        return f"{cell.value:.2f}"
    if missing(cell.correct) or missing(cell.n):
        return NOT_RUN
    n, correct = int(cell.n), int(cell.correct)
    return f"{percent(correct / n, *statistics.wilson(correct, n))} (n = {n:,})"
