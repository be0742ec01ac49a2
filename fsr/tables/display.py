"""Tables as a reader sees them: text cells on screen, in Markdown and in LaTeX, and csv of the numbers."""

import hashlib

import pandas as pd
from pandas.io.formats.style import Styler

from fsr.tables import inside, labels, outcomes
from fsr.tables.labels import MINUS, NOT_RUN, measured, number, span

GROUP = ["data", "network", "weights"]  # said once, above the rows that share them
ROW = ["dataset", "network", "checkpoint", "row", "kind", "source"]
LONG = 60  # characters; a column with longer texts wraps
COSTS = {"params": ("parameters", 0), "macs": ("MACs", 0), inside.SECONDS: ("seconds per epoch", 2)}
COSTS |= {inside.LATENCY: ("latency of a batch, ms", 3), "peak_memory_mb": ("peak memory, MiB", 1)}
LATEX = {"±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", MINUS: "$-$", "†": r"$\dagger$"}
LATEX |= {"f̃": r"$\tilde f$", "⁺": r"$^{+}$", "⁻": r"$^{-}$"}
LEGEND = "Percent. In brackets: the 95 % interval over test images. ±: standard deviation over seeds."
GAINS = (
    "Gains are in points, on the same images; sentences on three seeds or more use the interval over seeds and images."
)
BOLD = "Bold: the best of a column, among rows with the most seeds."
PAIRED = "A gain compares the same seeds; a row of one seed is compared with AT of that seed."
DOUBT = "†: AutoAttack is in doubt, by its own warning or because another attack breaks what it leaves (csv: flags)."
CSS = {
    "": "border-collapse: collapse",
    "th, td": "font-size: 12px; padding: 2px 7px; text-align: right; vertical-align: top",
    "td": "white-space: pre",
    ".col0": "text-align: left; white-space: normal; min-width: 12em",
    "td.best": "font-weight: bold",
    "td.group": "font-weight: bold; border-top: 1px solid; padding-top: 8px",
    "td.long": "white-space: normal; text-align: left; max-width: 26em",
    "td.empty": "color: #767676",
    "caption": "text-align: left; caption-side: bottom; font-size: 12px",
}


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """What a reader sees of a table of `tables.table`: every cell a text, a row per method and checkpoint."""
    return next(make for column, make in VIEWS.items() if column in frame.columns)(frame)


def _pivot(cells: pd.DataFrame, keys: list[str], value: str, empty="") -> pd.DataFrame:
    """A row per combination of keys and a column per cells["column"], both in their order."""
    if cells.empty:
        return pd.DataFrame(columns=keys)
    table = cells.pivot_table(value, keys, "column", aggfunc="first", sort=False)
    table = table[cells["column"].unique()].astype(object).fillna(empty)
    return cells[keys].drop_duplicates().merge(table.reset_index(), on=keys)


def _robustness(frame: pd.DataFrame, value: str = "text") -> pd.DataFrame:
    """T1 to T6: a row per method and checkpoint, a column per attack; n, seeds: of the first column that was run."""
    metrics, known = frame["metric"].unique(), list(labels.WEIGHTS)
    keys, run = [frame[name] for name in ROW], frame["n"].notna()
    counts = frame[["n", "seeds", "planned"]].where(run).groupby(keys, sort=False).transform("first")
    place = pd.factorize(frame["dataset"] + " " + frame["network"])[0]
    frame = frame.assign(usual=counts["n"], most=counts["seeds"], of=counts["planned"], place=place, best=_best(frame))
    frame = frame.assign(rank=frame["checkpoint"].map(known.index)).sort_values(["place", "rank"], kind="stable")
    cells = []
    for row in frame.itertuples():
        method = f"{row.row} ({row.kind}: {row.source})" if row.kind in ("rerun", "anchor") else row.row
        seeds = "" if pd.isna(row.most) else f"{row.most:.0f}" + f" of {row.of:.0f}" * (row.most < row.of)
        keys = [labels.dataset(row.dataset), row.network, row.checkpoint, method, seeds]
        n = "" if pd.isna(row.usual) else f"{row.usual:,.0f}"
        cells.append([*keys, n, labels.metric(row.metric), _measured(row), row.best])
    names = [labels.metric(name) for name in metrics]
    keys = [*GROUP, "method", "seeds", "n"]
    table = _pivot(pd.DataFrame(cells, columns=[*keys, "column", "text", "best"]), keys, value)
    return table[[*GROUP, "method", *names, "seeds", "n"]]


def _measured(cell) -> str:
    """`74.2 ± 0.8 [70.2, 77.9]`, then what is unusual in its row: n, seeds, † for doubt."""
    if pd.isna(cell.value):
        return NOT_RUN if pd.isna(cell.status) else cell.status
    sign, stated = cell.kind in ("gain", "difference"), cell.kind in ("paper", "rerun", "anchor", "difference")
    digits, doubt = 2 if stated or cell.n >= 5000 else 1, isinstance(cell.flags, str) and cell.flags != "none"
    text = measured(cell.value, cell.low, cell.high, cell.sd, mark="†" * doubt, digits=digits, sign=sign)
    text += "" if pd.isna(cell.n) or cell.n == cell.usual else f" n={cell.n:.0f}"
    return text if pd.isna(cell.n) or cell.seeds == cell.most else f"{text} (seeds: {cell.seeds:.0f})"


def _best(frame: pd.DataFrame) -> pd.Series:
    """Our best cells, if two differ, among rows with the most seeds; a network in AutoAttack's doubt wins nothing."""
    network = [frame[name] for name in ROW if name != "checkpoint"]
    doubted = frame["flags"].fillna("none").ne("none").groupby(network, sort=False).transform("any")
    ours = frame[(frame["kind"] == "ours") & frame["value"].notna() & ~doubted]
    column = ["dataset", "network", "checkpoint", "metric"]
    ours = ours[ours["seeds"] == ours.groupby(column)["seeds"].transform("max")]
    groups = ours.groupby(column)["value"]
    best = ours[(ours["value"] == groups.transform("max")) & (groups.transform("nunique") > 1)]
    return pd.Series(frame.index.isin(best.index), index=frame.index)


def _streams(frame: pd.DataFrame) -> pd.DataFrame:
    """T7: a row per checkpoint and stream, a column per probe and attack, means over seeds."""
    cells, keys = [], ["row", "checkpoint", "stream"]
    frame = frame.assign(most=frame.groupby(keys, sort=False)["n"].transform("max"))
    for (row, weights, stream, probe, attack), part in frame.groupby([*keys, "probe", "attack"], sort=False):
        done, most, paper = part.dropna(subset="accuracy"), part["most"].iloc[0], row == "paper"
        text = measured(done["accuracy"].mean())
        if len(done) and not paper:
            mean = outcomes.mean_of(list(done["accuracy"]), int(done["n"].min()))
            text = measured(mean["value"], mean["low"], mean["high"], mean["sd"])
            text += "" if len(done) == len(part) else f" ({len(done)} of {len(part)} seeds)"
        cell = {"weights": weights, "stream": f"{inside.STREAMS[stream]} ({stream})" + ": paper" * paper, "text": text}
        cell["n"] = "" if paper else NOT_RUN if pd.isna(most) else f"{most:,.0f}"
        cells.append(cell | {"column": f"{inside.PROBES[probe]}, {labels.metric(attack)}"})
    table = _pivot(pd.DataFrame(cells), ["weights", "stream", "n"], "text")
    return table[[*table.columns.drop("n"), "n"]]


def _overhead(frame: pd.DataFrame) -> pd.DataFrame:
    """T8: a row per network without and with FSR, and what FSR adds in percent."""
    rows = []
    for cell in frame.to_dict("records"):
        empty = "" if pd.isna(cell["fsr"]) else NOT_RUN
        known = [(cell[name], digits) for name, (_, digits) in COSTS.items()]
        texts = [empty if pd.isna(v) else number(v, digits=d) if d else f"{v:,.0f}" for v, d in known]
        rows.append([labels.dataset(cell["dataset"]), cell["network"], cell["row"], *texts])
    for (dataset, network), pair in frame.dropna(subset="fsr").groupby(["dataset", "network"], sort=False):
        if len(pair) == 2:
            more = [
                (value, NOT_RUN if value is not None else "not comparable") for value in inside.added(pair).values()
            ]
            texts = [empty if pd.isna(v) else f"{number(v, digits=2, sign=True)} %" for v, empty in more]
            rows.append([labels.dataset(dataset), network, "added by FSR", *texts])
    table = pd.DataFrame(rows, columns=[*GROUP[:2], "method", *(title for title, _ in COSTS.values())])
    return table.sort_values(GROUP[:2], key=lambda names: pd.factorize(names)[0], kind="stable", ignore_index=True)


def _audits(frame: pd.DataFrame) -> pd.DataFrame:
    """T9: a row per attack group, a column per network."""
    cells = inside.shown(frame.assign(column=frame["row"] + ", " + frame["checkpoint"]))
    return _pivot(cells.rename(columns={"title": "attack group"}), ["attack group"], "shown", NOT_RUN)


def _verdict(frame: pd.DataFrame) -> pd.DataFrame:
    """T10: a row per claim."""

    def value(amount: float, unit: str) -> str:
        return "" if pd.isna(amount) else f"{number(amount, digits=2, sign=unit == 'points')} {unit}"

    rows = []
    for cell in frame.itertuples():
        ours = value(cell.ours, cell.unit) or NOT_RUN
        ours += "" if pd.isna(cell.low) else " " + span(cell.low, cell.high, digits=2, sign=cell.unit == "points")
        stated = value(cell.stated, cell.unit) or "words only"
        rows.append([f"{cell.id}. {cell.claim}", cell.kind, stated, ours, str(cell.seeds), cell.verdict, cell.reason])
    return pd.DataFrame(rows, columns=["claim", "by", "stated", "ours", "seeds", "verdict", "why"])


VIEWS = {"metric": _robustness, "stream": _streams, "macs": _overhead, "item": _audits, "verdict": _verdict}


def texts(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(text cells with a heading row above every group, class of each cell: group, best, empty or "")."""
    text = wide(frame)
    if text.empty:
        text = pd.DataFrame({"table": ["this profile plans no such rows"]})
    classes = text.map(lambda cell: "empty" if cell in (NOT_RUN, "not applicable") else "")
    if "metric" in frame and len(frame):
        classes = classes.mask(_robustness(frame, "best").eq(True), "best")
    keys = [name for name in GROUP if name in text]
    if not keys:
        return text, classes
    rest, rows, marks = text.columns.drop(keys), [], []
    for values, part in text.groupby(keys, sort=False):
        heading = ", ".join(labels.WEIGHTS.get(value, value) for value in values)
        rows += [[heading, *[""] * (len(rest) - 1)], *part[rest].to_numpy().tolist()]
        marks += [["group"] * len(rest), *classes.loc[part.index, rest].to_numpy().tolist()]
    return pd.DataFrame(rows, columns=rest), pd.DataFrame(marks, columns=rest)


def legend(frame: pd.DataFrame) -> str:
    """What percent, brackets, ±, bold and † mean in a table; empty where it has none of them."""
    if "metric" not in frame:
        return LEGEND if "stream" in frame else ""
    seeds, flags = frame.query("kind == 'ours' and value.notna()")["seeds"].nunique(), frame["flags"].fillna("none")
    return " ".join([LEGEND, GAINS, BOLD, *[PAIRED] * (seeds > 1), *[DOUBT] * bool(flags.ne("none").any())])


def show(frame: pd.DataFrame) -> Styler:
    """A table for the screen: groups under headings, best in bold; rows that were not run are counted below it."""
    text, classes = texts(frame)
    values, heading = classes.iloc[:, 1:], classes.iloc[:, 0] == "group"
    empty = ((values == "empty") | (text.iloc[:, 1:] == "")).all(axis=1) & (values == "empty").any(axis=1)
    left_out = int(empty.sum()) if empty.sum() < (~heading).sum() else 0
    if left_out:  # and the headings that have no row left
        heading, kept = heading[~empty], ~empty
        kept[heading.index[heading & heading.shift(-1, fill_value=True)]] = False
        text, classes = (part[kept].reset_index(drop=True) for part in (text, classes))
    for column in text.columns[1:]:
        if text[column].str.len().max() > LONG:
            classes[column] = classes[column].where(classes[column] != "", "long")
    broken = text.map(lambda cell: cell.replace(" [", "\n[") if len(cell) <= LONG else cell)
    styler = Styler(broken, uuid=hashlib.sha256(text.to_csv().encode()).hexdigest()[:8], cell_ids=False)
    styler.hide(axis="index").format(escape="html").format_index(escape="html", axis=1)
    styler.set_td_classes(classes).set_table_styles([{"selector": name, "props": css} for name, css in CSS.items()])
    told = [legend(frame), f"{left_out} rows have not been run; the csv file lists them." if left_out else ""]
    return styler.set_caption(" ".join(filter(None, told)))


def csv_text(frame: pd.DataFrame) -> str:
    """Counts whole, other numbers with six significant digits; empty where nothing was run."""

    def digits(value):
        if not isinstance(value, float) or pd.isna(value):
            return value
        return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"

    return frame.astype(object).map(digits).to_csv(index=False, lineterminator="\n")


def markdown(frame: pd.DataFrame, title: str, notes: list[str]) -> str:
    """Title, table with best cells and headings in bold, notes."""
    text, classes = texts(frame)
    marked = text.map(lambda cell: cell.replace("|", "\\|"))
    marked = marked.where(~classes.isin(["best", "group"]) | (marked == ""), "**" + marked + "**")
    return "\n\n".join([f"# {title}", marked.to_markdown(index=False, disable_numparse=True), *notes]) + "\n"


def latex(frame: pd.DataFrame, title: str, label: str, notes: list[str]) -> str:
    """A booktabs table, shrunk to the line; needs the packages booktabs and graphicx."""
    text, classes = texts(frame)
    bold = (classes.isin(["best", "group"]) & (text != "")).replace({True: "textbf:--rwrap;", False: ""})
    styler = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    sizes = "".join("p{5cm}" if len(text) and text[column].str.len().max() > LONG else "l" for column in text)
    tabular = styler.apply(lambda _: bold, axis=None).to_latex(hrules=True, column_format=sizes).rstrip()
    for symbol, command in LATEX.items():
        tabular = tabular.replace(symbol, command)
    lines = [f"% needs \\usepackage{{booktabs,graphicx}}\n\\begin{{table}}\n\\centering\n\\caption{{{title}.}}"]
    lines += [rf"\label{{tab:{label}}}", r"\resizebox{\linewidth}{!}{%", tabular + "}", r"\end{table}"]
    return "\n".join([*lines, *(f"% {note}" for note in notes)]) + "\n"
