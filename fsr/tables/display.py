"""Tables as a reader sees them: text cells, and a Styler with the data set, network and weights as headings."""

import hashlib
from collections.abc import Callable

import pandas as pd
from pandas.io.formats.style import Styler

from fsr import statistics
from fsr.tables import audits, labels, overhead
from fsr.tables.formatting import NOT_RUN, missing, number, percent, quantity, span

GROUP = ["data", "network", "weights"]  # said once, above the rows that share them
ROW = ["dataset", "network", "checkpoint", "row", "kind", "source"]
LONG = 60  # characters; a column with longer texts wraps
STREAM_NAMES = {"f": "f", "robust": "f⁺", "nonrobust": "f⁻", "recalibrated": "f̃⁻", "output": "f̃"}
PROBE_NAMES = {"aux": "auxiliary head", "knn": "k-nearest neighbours"}
COST_NAMES = ("parameters", "MACs", "seconds per epoch", "latency of a batch, ms", "peak memory, MiB")
CSS = [
    {"selector": "", "props": "border-collapse: collapse"},
    {"selector": "th, td", "props": "font-size: 12px; padding: 2px 7px; text-align: right; vertical-align: top"},
    {"selector": "td", "props": "white-space: pre"},
    {"selector": ".col0", "props": "text-align: left; white-space: normal; min-width: 12em"},
    {"selector": "td.best", "props": "font-weight: bold"},
    {"selector": "td.group", "props": "font-weight: bold; border-top: 1px solid; padding-top: 8px"},
    {"selector": "td.long", "props": "white-space: normal; text-align: left; max-width: 26em"},
    {"selector": "td.empty", "props": "color: #767676"},
    {"selector": "caption", "props": "text-align: left; caption-side: bottom; font-size: 12px"},
]


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """What a reader sees of a table of `tables.table`: every cell a text, a row per method and checkpoint."""
    return next(make for column, make in VIEWS.items() if column in frame.columns)(frame)


def texts(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(text cells with a heading row above every group, class of each cell: group, best, empty or "")."""
    text = wide(frame)
    if text.empty:
        text = pd.DataFrame({"table": ["this profile plans no such rows"]})
    classes = text.map(lambda cell: "empty" if cell in (NOT_RUN, "not applicable") else "")
    if "metric" in frame and len(frame):
        best = _robustness(frame.assign(best=_best(frame)), lambda cell, usual: cell.best)
        classes = classes.mask(best.eq(True), "best")
    keys = [name for name in GROUP if name in text]
    if not keys:
        return text, classes
    rest, parts = text.columns.drop(keys), []
    for values, part in text.groupby(keys, sort=False):
        named = dict(zip(keys, values))
        named = {key: labels.WEIGHTS.get(value, value) if key == "weights" else value for key, value in named.items()}
        heading = pd.DataFrame([[", ".join(filter(None, named.values())), *[""] * (len(rest) - 1)]], columns=rest)
        group = pd.DataFrame([["group"] * len(rest)], columns=rest)
        parts.append((pd.concat([heading, part[rest]]), pd.concat([group, classes.loc[part.index, rest]])))
    return tuple(pd.concat(some, ignore_index=True) for some in zip(*parts))  # type: ignore[return-value]


def show(frame: pd.DataFrame) -> Styler:
    """A table of `tables.table` for the screen: groups under headings, intervals on a line of their own, best in bold.

    Rows that have not been run are counted below it; the csv has them one by one.
    """
    text, classes = texts(frame)
    values = classes.iloc[:, 1:]
    empty = ((values == "empty") | (text.iloc[:, 1:] == "")).all(axis=1) & (values == "empty").any(axis=1)
    rows = int((classes.iloc[:, 0] != "group").sum())
    left_out = int(empty.sum()) if empty.sum() < rows else 0
    if left_out:
        text, classes = _without(text, classes, empty)
    for column in text.columns[1:]:
        if text[column].str.len().max() > LONG:
            classes[column] = classes[column].where(classes[column] != "", "long")
    broken = text.map(lambda cell: cell.replace(" [", "\n[") if len(cell) <= LONG else cell)
    styler = Styler(broken, uuid=hashlib.sha256(text.to_csv().encode()).hexdigest()[:8], cell_ids=False)
    styler.hide(axis="index").format(escape="html").format_index(escape="html", axis=1)
    styler.set_td_classes(classes).set_table_styles(CSS)
    return styler.set_caption(f"{left_out} rows have not been run; the csv file lists them.") if left_out else styler


def _without(text: pd.DataFrame, classes: pd.DataFrame, empty: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Without empty rows, and without the headings that have no row left."""
    heading = classes.loc[~empty].iloc[:, 0] == "group"
    kept = heading.index[~(heading & heading.shift(-1, fill_value=True))]
    return text.loc[kept].reset_index(drop=True), classes.loc[kept].reset_index(drop=True)


def measured(cell, usual) -> str:
    """One cell of T1 to T6: `74.2 ± 0.8 [70.2, 77.9]`, then what is unusual in its row: n, seeds, † for doubt."""
    if missing(cell.value):
        return NOT_RUN if missing(cell.status) else cell.status
    sign, stated = cell.kind in ("gain", "difference"), cell.kind in ("paper", "rerun", "anchor", "difference")
    digits = 2 if stated or cell.n >= 5000 else 1
    text = number(100 * cell.value, digits=digits, sign=sign)
    text += "†" if isinstance(cell.flags, str) and cell.flags != "none" else ""
    text += "" if missing(cell.sd) else f" ± {100 * cell.sd:.{digits}f}"
    text += "" if missing(cell.low) else " " + span(100 * cell.low, 100 * cell.high, digits=digits, sign=sign)
    text += "" if missing(cell.n) or cell.n == usual.n else f" n={cell.n:.0f}"
    return text if missing(cell.n) or cell.seeds == usual.seeds else f"{text} (seeds: {cell.seeds:.0f})"


def _robustness(frame: pd.DataFrame, shown: Callable = measured) -> pd.DataFrame:
    """A row per method and checkpoint, a column per attack; n and seeds are those of the first column that was run."""
    metrics = list(dict.fromkeys(frame["metric"]))
    usual = frame.dropna(subset="n").groupby(ROW, sort=False)[["n", "seeds", "planned"]].first()
    rows = {key: part for key, part in frame.groupby(ROW, sort=False)}
    places, kinds = list(dict.fromkeys(key[:2] for key in rows)), list(labels.WEIGHTS)
    order = sorted(rows, key=lambda k: (places.index(k[:2]), kinds.index(k[2]) if k[2] in kinds else len(kinds)))
    text = []
    for key in order:
        first = usual.loc[key] if key in usual.index else pd.Series({"n": None, "seeds": None, "planned": None})
        cells = {cell.metric: shown(cell, first) for cell in rows[key].itertuples()}
        text.append(_left(key) | {labels.metric(m): cells.get(m, "") for m in metrics} | _counts(first))
    return pd.DataFrame(text)


def _left(key: tuple) -> dict[str, str]:
    dataset, network, weights, row, kind, source = key
    name = f"{row} ({kind}: {source})" if kind in ("rerun", "anchor") else row
    return {"data": labels.dataset(dataset), "network": network, "weights": weights, "method": name}


def _counts(usual) -> dict[str, str]:
    if missing(usual["n"]):
        return {"seeds": "", "n": ""}
    seeds = f"{usual['seeds']:.0f}" + (f" of {usual['planned']:.0f}" if usual["seeds"] < usual["planned"] else "")
    return {"seeds": seeds, "n": f"{usual['n']:,.0f}"}


def _best(frame: pd.DataFrame) -> pd.Series:
    """Best cells of our rows: in a column of one data set, network and checkpoint, among rows with the most seeds.

    There must be two that differ. A network for which AutoAttack is in doubt wins with none of its weights.
    """
    network = [name for name in ROW if name != "checkpoint"]
    doubt = frame["flags"].notna() & (frame["flags"] != "none")
    doubted = frame.assign(doubt=doubt).groupby(network, sort=False)["doubt"].transform("any")
    ours = frame[(frame["kind"] == "ours") & frame["value"].notna() & ~doubted]
    column = ["dataset", "network", "checkpoint", "metric"]
    ours = ours[ours["seeds"] == ours.groupby(column)["seeds"].transform("max")]
    groups = ours.groupby(column)["value"]
    best = ours[(ours["value"] == groups.transform("max")) & (groups.transform("nunique") > 1)]
    return pd.Series(frame.index.isin(best.index), index=frame.index)


def _streams(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per checkpoint and stream, a column per probe and attack."""
    rows = []
    for (row, checkpoint, stream), part in frame.groupby(["row", "checkpoint", "stream"], sort=False):
        name = f"{STREAM_NAMES[stream]} ({stream})"
        out = {"weights": checkpoint, "stream": name if row != "paper" else f"{name}: paper"}
        for probe, title in PROBE_NAMES.items():
            for attack, words in (("pgd20", "PGD-20"), ("clean", "no attack")):
                cell = part[(part["probe"] == probe) & (part["attack"] == attack)]
                out[f"{title}, {words}"] = _over_seeds(cell) if len(cell) else ""
        rows.append(out | {"n": "" if row == "paper" else quantity(part["n"].max(), digits=0)})
    return pd.DataFrame(rows)


def _over_seeds(part: pd.DataFrame) -> str:
    """Mean over seeds with Wilson's interval at one seed's n, and the standard deviation over seeds."""
    done = part.dropna(subset="accuracy")
    if done.empty or done["n"].isna().all():
        return percent(done["accuracy"].mean())
    mean, n = float(done["accuracy"].mean()), int(done["n"].min())
    low, high = statistics.wilson(min(mean * n, n), n)
    spread = f" ± {number(100 * float(done['accuracy'].std(ddof=1)))}" if len(done) > 1 else ""
    seeds = "" if len(done) == len(part) else f" ({len(done)} of {len(part)} seeds)"
    return f"{number(100 * mean)}{spread} {span(100 * low, 100 * high)}{seeds}"


def _overhead(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per network without and with FSR, and what FSR adds in percent."""
    rows = []
    for (dataset, network), part in frame.groupby(["dataset", "network"], sort=False):
        keys = {"data": labels.dataset(dataset), "network": network}
        for cell in part.to_dict("records"):
            theirs = missing(cell["fsr"])
            values = [quantity(cell[k], digits=d) for k, d in zip(overhead.COST, (0, 0, 2, 3, 1))]
            cells = ["" if theirs and value == NOT_RUN else value for value in values]
            rows.append(keys | {"method": cell["row"]} | dict(zip(COST_NAMES, cells)))
        both = {bool(cell["fsr"]): cell for cell in part.dropna(subset="fsr").to_dict("records")}
        if len(both) == 2:
            added = [_added(both[False], both[True], name) for name in overhead.COST]
            rows.append(keys | {"method": "added by FSR"} | dict(zip(COST_NAMES, added)))
    return pd.DataFrame(rows)


def _added(without: dict, with_fsr: dict, name: str) -> str:
    """What FSR adds, in percent; seconds only of trainings that had one kind of device to themselves."""
    if missing(without[name]) or missing(with_fsr[name]):
        return NOT_RUN
    same = without["timed"] and with_fsr["timed"] and without["trained_on"] == with_fsr["trained_on"]
    if name == "train_seconds_per_epoch" and not same:
        return "not comparable"
    return f"{number(100 * (with_fsr[name] / without[name] - 1), digits=2, sign=True)} %"


def _audits(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per attack group, a column per network."""
    columns = list(dict.fromkeys(zip(frame["row"], frame["checkpoint"])))
    known = {(cell.row, cell.checkpoint, cell.item): cell for cell in frame.itertuples()}
    rows = [
        {"attack group": audits.title(item)}
        | {f"{row}, {weights}": audits.text(known.get((row, weights, item))) for row, weights in columns}
        for item in audits.items(frame)
    ]
    return pd.DataFrame(rows)


def _verdict(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per claim."""

    def value(number_, unit: str) -> str:
        return "" if missing(number_) else f"{number(number_, digits=2, sign=unit == 'points')} {unit}"

    rows = []
    for cell in frame.itertuples():
        ours = value(cell.ours, cell.unit) or NOT_RUN
        ours += "" if missing(cell.low) else " " + span(cell.low, cell.high, digits=2, sign=cell.unit == "points")
        stated = value(cell.stated, cell.unit) or "words only"
        row = {"claim": f"{cell.id}. {cell.claim}", "by": cell.kind, "stated": stated, "ours": ours}
        rows.append(row | {"seeds": str(cell.seeds), "verdict": cell.verdict, "why": cell.reason})
    return pd.DataFrame(rows)


VIEWS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "metric": _robustness,
    "stream": _streams,
    "macs": _overhead,
    "item": _audits,
    "verdict": _verdict,
}
