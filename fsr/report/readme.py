"""The part of README that states results: written from records, never typed."""

from pathlib import Path

import pandas as pd

from fsr import experiments, statistics, store, tables
from fsr.config import Evaluation, Run
from fsr.files import UsageError, write_bytes
from fsr.reference import MIN_SEEDS
from fsr.report import findings as prose
from fsr.report.findings.text import budget
from fsr.report.speed import speed
from fsr.tables import cells, labels
from fsr.tables.formatting import NOT_RUN, missing, number, span
from fsr.tables.frame import Sources

BEGIN, END = "<!-- results -->", "<!-- /results -->"
ROWS = (
    "AT", "AT + FSR", "AT + FSR: gain over AT",
    "TRADES", "TRADES + FSR: gain over TRADES", "MART", "MART + FSR: gain over MART",
    "recalibration without L_sep", "recalibration without L_rec", "recalibration without either", "separation only",
    "same-capacity residual, no mask", "auxiliary heads only", "m = 1 at test (FSR bypassed)", "shuffled mask at test",
)  # fmt: skip
LARGER = ("headline", "headline40", "mini")  # shown once they have results, the most telling first
FIGURES = {"What FSR adds": "F7-gains", "Training curves": "F5-training-curves"}
AGAINST = "this row's Ensemble minus AT + FSR's, same seeds"
COLUMNS = {"clean": "no attack", "pgd20": "PGD-20", "ensemble": "Ensemble", "autoattack": "AutoAttack"}


def _text(cell: dict, gain: bool) -> str:
    """Percent and its 95 % interval: value, low and high are fractions, value None or NaN where it was not run."""
    if missing(cell["value"]):
        return NOT_RUN
    value, low, high = (100 * float(cell[name]) for name in ("value", "low", "high"))
    return f"{number(value, sign=gain)} {span(low, high, sign=gain)}"


def _cell(found: pd.DataFrame, gain: bool, seeds: float) -> str:
    """The one row that has a value, and of how many seeds where the row has more; not run otherwise."""
    found = found[found["value"].notna()]
    if found.empty:
        return NOT_RUN
    mine = found.iloc[0]["seeds"]
    return _text(found.iloc[0], gain) + (f" ({mine:.0f} of {seeds:.0f} seeds)" if mine < seeds else "")


def _about(frame: pd.DataFrame) -> str:
    """How the numbers were made, and how many of the planned seeds of the main pair are in them."""
    rows = [frame[(frame["row"] == name) & (frame["metric"] == "clean")] for name in ROWS[:3]]
    plain, both, paired = (int(row.iloc[0]["seeds"]) if len(row) else 0 for row in rows)
    planned = int(rows[2].iloc[0]["planned"]) if len(rows[2]) else 0
    seeds = "mean over a row's seeds" if paired == planned else f"{paired} of {planned} seeds so far"
    if not plain == both == paired:
        seeds = f"of {planned} planned seeds AT has {plain} so far, AT + FSR {both}; gains are on those that both have"
    ensemble = "Ensemble: right without attack and under FGSM, PGD-20, PGD-100 and C&W at once."
    return f"Percent, 95 % interval over test images (Wilson; gains: paired bootstrap), {seeds}. {ensemble}"


def _audit(profile: str) -> str:
    if tables.table(profile, "T9")["correct"].notna().any():
        return prose.audit(profile)
    return f"The adaptive audit has not been run on it yet. {budget(profile)}"


def _against_full(profile: str) -> dict[str, str]:
    """T4's rows minus AT + FSR under Ensemble on the same seeds: rows have unequal numbers of them."""
    rows = [row for row in experiments.ROWS[profile]["components"] if row.name in ROWS]
    full = next(row for row in rows if row.name == ROWS[1])
    wanted, found = experiments.columns(profile, "components")["ensemble"], {}
    for row in rows:
        cell = cells.gain(row.runs, full.runs, cells.at(wanted, wanted.checkpoint, row.intervention), wanted)
        found[row.name] = _text(cell, True)
    return found | {ROWS[1]: "", ROWS[2]: ""}


def _over_seeds(profile: str) -> list[str]:
    """The gain's Student's t interval over seeds, as a row; none with fewer seeds than a verdict needs."""
    row = next(row for row in experiments.ROWS[profile]["whitebox"] if row.name == ROWS[1])
    known, texts = experiments.columns(profile, "whitebox"), []
    for metric in COLUMNS:
        wanted = known.get(experiments.profile_of(profile).autoattack if metric == "autoattack" else metric)
        found = cells.gain(row.runs, row.baseline, wanted).get("per_seed", []) if wanted else []
        _, sd, low, high, _ = statistics.seed_summary(found) if len(found) >= MIN_SEEDS else [None] * 5
        texts.append(span(100 * low, 100 * high, sign=True) if sd and low is not None and high is not None else "")
    return [f"| {ROWS[2]}, interval over seeds | | {' | '.join(texts)} | |"] if any(texts) else []


def _heads(frame: pd.DataFrame) -> list[str]:
    """Column titles; one that saw fewer images says how many."""
    shown = frame[(frame["row"] == ROWS[0]) & frame["n"].notna()].drop_duplicates("metric", keep="last")
    images = shown.set_index("metric")["n"]
    return [
        f"{title} (n = {images[name]:,.0f})" if name in images and images[name] < images.max() else title
        for name, title in COLUMNS.items()
    ]


def _same_images(profile: str) -> str | None:
    """Ensemble on AutoAttack's images, where those are fewer: only these two can be compared."""
    columns, shares = experiments.columns(profile, "whitebox"), []
    rows = {row.name: row for row in reversed(experiments.ROWS[profile]["whitebox"])}  # the main network's come first
    strong = columns[experiments.profile_of(profile).autoattack]
    found = {}
    for name in ROWS[:2]:
        mine = {run.seed: cells.shared(run, columns["ensemble"], strong) for run in rows[name].runs}
        found[name] = {seed: float(o.mean()) for seed, o in mine.items() if o is not None}
        sizes = {len(o) for o in mine.values() if o is not None}
        if not sizes or cells.accuracy(rows[name].runs, columns["ensemble"], Sources())["n"] in sizes:
            return None
    common = set.intersection(*map(set, found.values()))
    if not common:
        return None
    for name, values in found.items():
        shares.append(f"{name} {number(100 * sum(values[seed] for seed in common) / len(common))} %")
    seeds = "" if len(common) == max(map(len, found.values())) else f" (the {len(common)} seeds that both have)"
    return f"On AutoAttack's images Ensemble leaves{seeds}: {', '.join(shares)}."


def _table(profile: str, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Markdown lines, a row per row of ROWS that was run, and the names of those that are planned and were not."""
    planned = {row.name for row in experiments.ROWS[profile]["components"]}
    heads = [labels.WEIGHTS[experiments.profile_of(profile).report_checkpoint], "seeds", *_heads(frame), AGAINST]
    lines, against, left_out = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], _against_full(profile), []
    for row in ROWS:
        here = frame[frame["row"] == row].drop_duplicates("metric", keep="last")
        seeds = here["seeds"].max()
        texts = [_cell(here[here["metric"] == metric], "gain" in row, seeds) for metric in COLUMNS]
        if row not in ROWS[:3] and set(texts) == {NOT_RUN}:
            left_out += [row] if row in planned else []
            continue
        count = "0" if missing(seeds) else f"{seeds:.0f}"
        lines.append(f"| {row} | {count} | {' | '.join(texts)} | {against.get(row, '')} |")
        lines += _over_seeds(profile) if row == ROWS[2] else []
    return lines, left_out


def results(profile: str) -> str:
    """A short table of T1's and T4's rows on the main network, of one kind of weights, and the audit, as markdown."""
    frame = pd.concat([tables.table(profile, name) for name in ("T4", "T1")])
    frame = frame[frame["checkpoint"] == experiments.profile_of(profile).report_checkpoint]
    frame = frame[frame["kind"].isin(["ours", "gain"])]
    frame = frame[frame["network"] == frame["network"].iloc[0]]
    lines, left_out = _table(profile, frame)
    gap = f"Not run yet: {'; '.join(left_out)}." if left_out else None
    notes = [note for note in (_about(frame), _same_images(profile), gap, _audit(profile)) if note]
    where = f"Every table and figure: [the report](results/report/{profile}.html), [tables](results/tables/{profile}), "
    where += f"[figures](figures/{profile})"
    where += f", [executed notebooks](results/notebooks/{profile})." if profile == "demo" else "."
    figures = [f"![{title}](figures/{profile}/{name}.png)" for title, name in FIGURES.items()]
    return "\n".join([f"## Results (`{profile}`)", "", *lines, "", *notes, "", where, "", "\n\n".join(figures)])


def _has_results(profile: str) -> bool:
    wanted = Evaluation(attack="clean", images=experiments.profile_of(profile).images)
    return all(store.has_evaluation(run, wanted) for run in experiments.main_pair(profile))


def _full_plan() -> str:
    """How much of the plan at the paper's size has been trained at all."""
    some = experiments.SETS["paper"]["all"]
    done = sum(store.is_trained(run) for run in some)
    data, nets = (list(dict.fromkeys(found)) for found in zip(*((r.dataset, r.backbone) for r in some), strict=True))
    told = ", ".join([*map(labels.dataset, data), *(labels.network(Run(backbone=net)) for net in nets)])
    count = "none has" if not done else f"{done} {'has' if done == 1 else 'have'}"
    return f"Of the whole plan at the paper's size (`paper`: {told}; {len(some)} trainings) {count} been run."


def block() -> str:
    """All that README says about results: demo, each larger profile whose main pair is finished, and the speed."""
    parts = [results(name) for name in LARGER if _has_results(name)]
    return "\n\n".join(text for text in [*parts, results("demo"), _full_plan(), speed()] if text)


def rewrite(path: Path) -> bool:
    """Put the results between README's two marks; True when it changed.  UsageError when the marks are missing."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise UsageError(f"{path} has no {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    new = f"{head}{BEGIN}\n{block()}\n{END}{rest.split(END, 1)[1]}"
    if new != text:
        write_bytes(path, new.encode())
    return new != text
