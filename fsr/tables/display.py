"""Tables as a reader sees them: text cells on screen, in Markdown and in LaTeX, and csv of the numbers."""

import hashlib
import html

import pandas as pd
from pandas.io.formats.style import Styler

from fsr.tables import analyses, labels, outcomes
from fsr.tables.labels import MINUS, NOT_RUN, measured, number, span

GROUP = ["data", "network", "weights"]  # said once, above the rows that share them
ROW = ["dataset", "network", "checkpoint", "row", "kind", "source"]
LONG = 60  # characters; a column with longer texts wraps
PROBES = {"aux": "auxiliary head", "knn": "k-nearest neighbours"}
COSTS = {"dataset": "data", "network": "network", "row": "method", "params": "parameters", "macs": "multiply-adds"}
COSTS |= {analyses.SECONDS: "seconds per epoch", analyses.LATENCY: "latency of 128 images, ms"}
COSTS |= {"peak_memory_mb": "peak memory, MiB", "measured_on": "latency and memory on", "machine": "trained on"}
LATEX = {"±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", MINUS: "$-$"}
LATEX |= {"†": r"$\dagger$", "‡": r"$\ddagger$"}
LATEX |= {r"\begin{tabular}": r"\resizebox{\linewidth}{!}{\begin{tabular}", r"\end{tabular}": r"\end{tabular}}"}
LEGEND = "Percent. In brackets: the 95 % interval over test images. ±: standard deviation over seeds."
GAINS = "Gains are in points, paired by image and seed; from three seeds on their interval is over seeds and images."
TIMES = "Seconds per epoch depend on what ran beside: compare methods by multiply-adds. Memory: training on 128 images."
DOUBT = "AutoAttack is in doubt, by its own warning or because another attack breaks what it leaves (csv: flags)."
MARKS = {"†": DOUBT, "‡": "the test was changed after the runs; the csv file has both."}
CSS = {"th, td": "font-size: 12px; padding: 2px 7px; text-align: right; vertical-align: top", "td": "white-space: pre"}
CSS |= {".col0": "text-align: left; white-space: normal", "td.group": "border-top: 1px solid; padding-top: 8px"}
CSS |= {"td.long": "white-space: normal; text-align: left; max-width: 26em"}
CSS |= {"caption": "text-align: left; caption-side: bottom; font-size: 12px"}


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """What a reader sees of a table of `tables.table`: every cell a text, a row per method and checkpoint."""
    return next(make for column, make in VIEWS.items() if column in frame.columns)(frame)


def _robustness(frame: pd.DataFrame) -> pd.DataFrame:
    """T1 to T6, T11: a row per method and checkpoint, a column per attack; n, seeds: of the first column that ran."""
    rows, metrics = [], [labels.metric(name) for name in frame["metric"].unique()]
    for (data, network, weights, method, kind, source), part in frame.groupby(ROW, sort=False):
        cells, stated = list(part.itertuples()), f" ({kind}: {source})" * (kind in ("rerun", "anchor"))
        row = {"data": labels.dataset(data), "network": network, "weights": weights, "method": method + stated}
        usual = next((cell for cell in cells if not pd.isna(cell.n)), None)
        if usual:
            of = f" of {usual.planned:.0f}" * (usual.seeds < usual.planned)
            row |= {"seeds": f"{usual.seeds:.0f}{of}", "n": f"{usual.n:,.0f}"}
        rows.append(row | {labels.metric(cell.metric): _measured(cell, usual) for cell in cells})
    return pd.DataFrame(rows, columns=[*GROUP, "method", *metrics, "seeds", "n"]).fillna("")


def _measured(cell, usual) -> str:
    """`74.2 ± 0.8 [70.2, 77.9]`, then † for doubt, and n and seeds where they are not the row's."""
    if pd.isna(cell.value):
        return NOT_RUN if pd.isna(cell.status) else cell.status
    mark = "†" if isinstance(cell.flags, str) and cell.flags != "none" else ""
    digits, sign = 1 if cell.n < 5000 else 2, cell.kind in ("gain", "difference")
    decides = (cell.low, cell.high) if pd.isna(cell.seeds_low) else (cell.seeds_low, cell.seeds_high)
    text = measured(cell.value, *decides, cell.sd, mark=mark, digits=digits, sign=sign)
    text += "" if pd.isna(cell.n) or cell.n == usual.n else f" n={cell.n:.0f}"
    return text if pd.isna(cell.n) or cell.seeds == usual.seeds else f"{text} (seeds: {cell.seeds:.0f})"


def _streams(frame: pd.DataFrame) -> pd.DataFrame:
    """T7: a row per checkpoint and stream, a column per probe and attack, means over seeds."""
    rows = []
    for (weights, stream), part in frame.groupby(["checkpoint", "stream"], sort=False):
        seeds = [each["seed"].nunique() for each in (part.dropna(subset="accuracy"), part)]
        row = {"weights": weights, "stream": stream.replace("nonrobust", "non-robust")}
        for (probe, attack), one in part.groupby(["probe", "attack"], sort=False):
            done = one.dropna(subset="accuracy")
            mean = outcomes.mean_of(list(done["accuracy"]), int(done["n"].min())) if len(done) else {}
            text = measured(*(mean.get(key) for key in ("value", "low", "high", "sd")))
            row[f"{PROBES[probe]}, {labels.metric(attack)}"] = text
        rows.append(row | {"seeds": " of ".join(map(str, dict.fromkeys(seeds)))})
    return pd.DataFrame(rows)


def _overhead(frame: pd.DataFrame) -> pd.DataFrame:
    """T8: a row per network without and with FSR."""

    def text(value) -> str:
        return value if isinstance(value, str) else f"{value:,.{0 if value > 1000 else 2}f}"

    frame = frame.assign(dataset=frame["dataset"].map(labels.dataset))[[*COSTS]].rename(columns=COSTS)
    return frame.map(text, na_action="ignore").fillna(NOT_RUN)


def _audits(frame: pd.DataFrame) -> pd.DataFrame:
    """T9: a row per attack group, a column per network."""
    frame = frame.assign(column=frame["row"] + ", " + frame["checkpoint"], group=frame["item"].replace(analyses.GROUPS))
    table = frame.pivot_table("text", "group", "column", aggfunc="first", sort=False).astype(object)
    ran = set(frame["column"][frame["version"].notna()])
    absent = {column: "not applicable" if column in ran else NOT_RUN for column in table}  # AT has no mask to drive
    return table.fillna(absent).rename_axis("attack group").reset_index()


def _verdict(frame: pd.DataFrame) -> pd.DataFrame:
    """T10: a row per claim."""
    rows = []
    for cell in frame.itertuples():
        shape = {"digits": 2, "sign": cell.unit == "points"}
        stated = "words only" if pd.isna(cell.stated) else f"{number(cell.stated, **shape)} {cell.unit}"
        ours = NOT_RUN if pd.isna(cell.ours) else f"{number(cell.ours, **shape)} {cell.unit}"
        ours += "" if pd.isna(cell.low) else " " + span(cell.low, cell.high, **shape)
        claim = f"{cell.id}. {cell.claim}".replace("`", "") + "‡" * bool(cell.changed_after_the_runs)
        rows.append([claim, cell.verdict, cell.kind, stated, ours, str(cell.seeds), cell.reason])
    return pd.DataFrame(rows, columns=["claim", "verdict", "by", "stated", "ours", "seeds", "why"])


VIEWS = {"metric": _robustness, "stream": _streams, "macs": _overhead, "item": _audits, "verdict": _verdict}


def headed(text: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """The cells of `wide` with a heading row above every group, and which rows are headings."""
    if text.empty:
        text = pd.DataFrame({"table": ["this profile plans no such rows"]})
    keys = [name for name in GROUP if name in text]
    rest, rows = text.columns.drop(keys), []
    for values, part in text.groupby(keys, sort=False) if keys else ():
        rows.append([", ".join(labels.WEIGHTS.get(value, value) for value in values), *[""] * (len(rest) - 1)])
        rows += part[rest].to_numpy().tolist()
    text = pd.DataFrame(rows, columns=rest) if keys else text
    return text, (text.iloc[:, 1:] == "").all(axis=1)


def legend(frame: pd.DataFrame) -> str:
    """What percent, brackets and the marks mean in a table; empty where it has none of them."""
    columns = {"metric": [LEGEND, GAINS], "stream": [LEGEND], "macs": [TIMES]}
    parts, text = [part for name in columns if name in frame for part in columns[name]], wide(frame).to_csv()
    return " ".join([*parts, *(f"{mark}: {meaning}" for mark, meaning in MARKS.items() if mark in text)])


def show(frame: pd.DataFrame) -> Styler:
    """A table for the screen: groups under headings; rows that were not run are counted below it."""
    text, note = wide(frame), legend(frame)
    empty = text.drop(columns=GROUP, errors="ignore").iloc[:, 1:].isin(["", NOT_RUN, "not applicable"]).all(axis=1)
    if empty.any() and not empty.all():
        text, note = text[~empty], f"{note} {empty.sum()} rows have not been run; the csv file lists them."
    text, heading = headed(text)
    long = [name for name in text.columns[1:] if text[name].str.len().max() > LONG]
    classes = pd.DataFrame({name: heading.map({True: "group", False: "long" * (name in long)}) for name in text})
    lines = text.map(lambda cell: html.escape(cell).replace(" [", "<br>[" if len(cell) <= LONG else " ["))
    lines.isetitem(0, lines.iloc[:, 0].mask(heading, "<b>" + lines.iloc[:, 0] + "</b>"))
    for name in (text.columns[0], *long):  # in the cells: JupyterLab drops the style sheet of a notebook from elsewhere
        lines[name] = '<div style="text-align: left; min-width: 12em">' + lines[name] + "</div>"
    styler = Styler(lines, uuid=hashlib.sha256(text.to_csv().encode()).hexdigest()[:8], cell_ids=False)
    styler.hide(axis="index").format_index(escape="html", axis=1).set_td_classes(classes)
    styles = CSS | {f"th.col{text.columns.get_loc(name)}": "text-align: left" for name in long}
    return styler.set_table_styles([{"selector": name, "props": css} for name, css in styles.items()]).set_caption(note)


def csv_text(frame: pd.DataFrame) -> str:
    """Counts whole, other numbers with six significant digits; empty where nothing was run."""
    return frame.convert_dtypes().to_csv(index=False, float_format="%.6g", lineterminator="\n")


def markdown(frame: pd.DataFrame, title: str, notes: list[str]) -> str:
    """Title, table with headings in bold, notes."""
    text, heading = headed(wide(frame).map(lambda cell: cell.replace("|", "\\|")))
    text.iloc[:, 0] = text.iloc[:, 0].mask(heading, "**" + text.iloc[:, 0] + "**")
    return "\n\n".join([f"# {title}", text.to_markdown(index=False, disable_numparse=True), *notes]) + "\n"


def latex(frame: pd.DataFrame, title: str, label: str, notes: list[str]) -> str:
    """A booktabs table, shrunk to the line; needs the packages booktabs and graphicx."""
    text, heading = headed(wide(frame))
    styler = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    styler.map(lambda cell: "textbf:--rwrap;", subset=(heading, text.columns[:1]))
    sizes = "".join("p{5cm}" if text[column].str.len().max() > LONG else "l" for column in text)
    table = styler.to_latex(hrules=True, column_format=sizes, caption=title, label=label, position_float="centering")
    for symbol, command in LATEX.items():
        table = table.replace(symbol, command)
    return "\n".join(["% needs the packages booktabs and graphicx", table, *(f"% {note}" for note in notes)]) + "\n"
