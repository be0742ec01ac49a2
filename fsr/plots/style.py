"""One look for every figure, and what figures read from records."""

import textwrap
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments, store, tables
from fsr.files import MissingRecord
from fsr.tables import labels, outcomes

# Okabe and Ito 2008: eight colours that stay apart for the common kinds of colour blindness.
BLUE, VERMILION, SKY, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
GREY, BROWN, OLIVE, BLACK = "#7F7F7F", "#8C5A2B", "#B8A900", "#000000"
NAMES = ("AT", "AT + FSR", "TRADES", "TRADES + FSR", "MART", "MART + FSR", "AT + FSR, authors' code")
METHODS = dict(zip(NAMES, (BLUE, VERMILION, SKY, ORANGE, GREEN, PURPLE, BLACK)))
ATTACKS = {"clean": GREY, "pgd20": OLIVE, "ensemble": BROWN, "autoattack": BLACK}
CLASSES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, BROWN, SKY, GREY, OLIVE, BLACK)
STREAMS = {"f": "input $f$", "robust": "robust $f^{+}$", "nonrobust": "non-robust $f^{-}$"}
STREAMS |= {"recalibrated": "recalibrated $\\tilde{f}^{\\,-}$", "output": "output $\\tilde{f}$"}
WIDTH = 7.2  # inches: two columns of a paper
# DejaVu Sans ships with matplotlib: the same bytes on every machine; fonttype 42: text stays text
STYLE: dict[Any, Any] = sns.axes_style("ticks") | {"font.family": "DejaVu Sans", "font.size": 8, "pdf.fonttype": 42}
STYLE |= {"axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.labelsize": 8, "legend.frameon": False}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E3E3E3"}
STYLE |= {"grid.linewidth": 0.6, "lines.linewidth": 1.4, "lines.markersize": 4.5, "axes.axisbelow": True}
STYLE |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7.5)
STYLE |= {"savefig.dpi": 150, "figure.dpi": 120}


def panels(rows: int, cols: int, height: float, width: float = WIDTH, **kwargs) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a grid of axes, a list of rows; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, cols, squeeze=False, **kwargs).tolist()


def points(ax: Axes, frame: pd.DataFrame, at, color: str, label: str = "") -> None:
    """`value` (fractions, drawn in points) at the places `at`, with its interval."""
    ax.vlines(at, 100 * frame["low"], 100 * frame["high"], color, linewidth=2)
    ax.plot(at, 100 * frame["value"], marker="o", color=color, linestyle="", label=label)


def facets(frame: pd.DataFrame, at: str, colours: dict[str, str]) -> sns.FacetGrid:
    """A panel per `panel`: points of every `hue` side by side at the places of `at`, and a line at zero."""
    count = frame["panel"].nunique()
    grid = sns.FacetGrid(frame, col="panel", col_wrap=min(3, count), sharex=False)
    grid.figure.set_size_inches(WIDTH, 2.7 * -(-count // 3))
    for panel, part in frame.groupby("panel"):
        ax, (places, order) = grid.axes_dict[panel], pd.factorize(part[at])
        drawn = [hue for hue in colours if hue in set(part["hue"])]
        for i, hue in enumerate(drawn):
            selected = (part["hue"] == hue).to_numpy()
            points(ax, part[selected], places[selected] + 0.2 * (i - (len(drawn) - 1) / 2), colours[hue], hue)
        ax.set_xticks(range(len(order)), order, rotation=90 if len(order) > 4 else 0)
    grid.refline(y=0, color="black", linestyle="-", linewidth=0.8)
    return grid.set_titles("{col_name}").set_xlabels("")


def finish(figure: Figure, note: str) -> Figure:
    """Note below the panels, above them a legend of everything labelled when it has at least two entries."""
    figure.set_layout_engine("constrained", h_pad=0.06, rect=(0, 0, 1, 0.985))
    text = textwrap.fill(note, int(17.5 * figure.get_figwidth()))
    figure.supxlabel(text, fontsize=7, color="#555555", x=0.01, ha="left")
    entries = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels())}
    if len(entries) > 1:
        figure.legend(entries.values(), entries, loc="outside upper center", ncols=min(6, len(entries)))
    return figure


def need(rows: Any, profile: str, what: str) -> None:
    """MissingRecord where a figure has nothing to draw."""
    if len(rows) == 0:
        raise MissingRecord(f"no {what} recorded; `python -m fsr run-all --profile {profile}` makes what is planned")


def setting(profile: str, checkpoint: str = "") -> str:
    """`CIFAR-10, ResNet-18, 40 epochs, EMA weights`: with these weights, by default those that the profile reports."""
    weights = labels.WEIGHTS[checkpoint or experiments.profile_of(profile).report_checkpoint]
    return f"{labels.setting(profile)}, {weights}"


def cells(profile: str, name: str, **columns) -> pd.DataFrame:
    """The recorded cells of a table whose columns have these values, one or a list; low, high: as in `decided`."""
    frame = tables.table(profile, name)
    for column, value in columns.items():
        frame = frame[frame[column].isin(np.atleast_1d(value))]
    if "value" not in frame:
        return frame[frame["correct"].notna()]
    low, high = (frame[f"seeds_{end}"].fillna(frame[end]) for end in ("low", "high"))
    return frame.assign(low=low, high=high)[frame["value"].notna()]


def analyses(profile: str, runs, kind: str) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """Records and arrays of the planned analyses of this kind; MissingRecord for none, or one of other weights."""
    plan = [(run, one) for run in runs for one, _ in tables.analyses.recorded(profile, run, kind)]
    if mixed := [run for run, one in plan if outcomes.of_other_weights(run, one)]:
        raise MissingRecord(outcomes.advice(profile, mixed))
    records = [store.load_analysis(*pair) for pair in plan if store.has_record(*pair)]
    need(records, profile, kind)
    return records


def histories(runs) -> pd.DataFrame:
    """Histories of the trained runs, one row per epoch, with the run's method in words and its seed; may be empty."""
    collected = [pd.DataFrame()]
    for run in runs:
        with suppress(MissingRecord):
            collected.append(store.history(run).assign(method=labels.method(run.label), seed=run.seed))
    return pd.concat(collected, ignore_index=True)
