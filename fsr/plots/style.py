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
from fsr.config import Run
from fsr.files import MissingRecord
from fsr.tables import labels

# Okabe and Ito 2008: eight colours that stay apart for the common kinds of colour blindness.
BLUE, VERMILION, SKY, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
GREY, BROWN, OLIVE, BLACK = "#7F7F7F", "#8C5A2B", "#B8A900", "#000000"
NAMES = ("AT", "AT + FSR", "TRADES", "TRADES + FSR", "MART", "MART + FSR", "authors' code")
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


def points(ax: Axes, frame: pd.DataFrame, at, color: str, label: str = "", *, horizontal: bool = False) -> None:
    """`value` (fractions, drawn in points) at the places `at`, its intervals: over images thick, over seeds thin."""
    for low, high, width in (("low", "high", 2.0), ("seeds_low", "seeds_high", 0.7)):
        if low in frame:
            (ax.hlines if horizontal else ax.vlines)(at, 100 * frame[low], 100 * frame[high], color, linewidth=width)
    places = (100 * frame["value"], at) if horizontal else (at, 100 * frame["value"])
    ax.plot(*places, marker="o", color=color, linestyle="", label=label)


def facets(frame: pd.DataFrame, at: str, colours: dict[str, str], *, horizontal: bool = False) -> sns.FacetGrid:
    """A panel per `panel`: points of every `hue` side by side at the places of `at`, and a line at zero."""
    count, height = frame["panel"].nunique(), 2.9 if horizontal else 2.5
    grid = sns.FacetGrid(frame, col="panel", col_wrap=min(3, count), sharex=horizontal, height=height)
    grid.figure.set_size_inches(WIDTH if count > 1 else 5.2, height * -(-count // 3))
    for panel, ax in grid.axes_dict.items():
        part = frame[frame["panel"] == panel]
        order = list((frame if horizontal else part)[at].unique())
        shown = [hue for hue in colours if hue in set(part["hue"])]
        for i, hue in enumerate(shown):
            rows = part[part["hue"] == hue]
            places = rows[at].map(order.index) + 0.2 * (i - (len(shown) - 1) / 2)
            points(ax, rows, places, colours[hue], hue, horizontal=horizontal)
        (ax.set_yticks if horizontal else ax.set_xticks)(range(len(order)), order)
    zero = {"x" if horizontal else "y": 0}
    return grid.refline(**zero, color="black", linestyle="-", linewidth=0.8).set_titles("{col_name}")


def finish(figure: Figure, note: str) -> Figure:
    """Note below the panels, above them a legend of everything labelled when it has at least two entries."""
    figure.set_layout_engine("constrained", h_pad=0.06, rect=(0, 0, 1, 0.985))
    lines = [textwrap.fill(line, int(17.5 * figure.get_figwidth())) for line in note.splitlines()]
    figure.supxlabel("\n".join(lines), fontsize=7, color="#555555", x=0.01, ha="left")
    found = [ax.get_legend_handles_labels() for ax in figure.axes]
    known = {label: handle for handles, names in found for handle, label in zip(handles, names)}
    if len(known) > 1:
        figure.legend(known.values(), known, loc="outside upper center", ncols=min(4, len(known)))
    return figure


def need(found: Any, profile: str, what: str) -> None:
    """MissingRecord where a figure has nothing to draw."""
    if len(found) == 0:
        raise MissingRecord(f"no {what} recorded in {profile}; `python -m fsr run-all --profile {profile}` makes them")


def setting(profile: str, checkpoint: str | None = None, *, network: bool = True) -> str:
    """`CIFAR-10, ResNet-18, 40 epochs, EMA weights`: data set, network, epochs and weights (the reported) in words."""
    chosen = experiments.profile_of(profile)
    parts = [labels.dataset(chosen.base.dataset), labels.network(chosen.base)][: 2 if network else 1]
    return ", ".join([*parts, f"{chosen.base.epochs} epochs", labels.WEIGHTS[checkpoint or chosen.report_checkpoint]])


def cells(profile: str, name: str, **equal) -> pd.DataFrame:
    """The recorded cells of a table whose columns equal the given values."""
    frame = tables.table(profile, name)
    same = (frame[list(equal)] == pd.Series(equal)).all(axis=1)
    return frame[same & frame["accuracy" if name == "T7" else "value"].notna()]


def analysis(profile: str, run: Run, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Record and arrays of the planned analysis of the EMA weights; MissingRecord when there is none."""
    planned = [a for a in experiments.analyses(profile, "all", run) if (a.kind, a.checkpoint) == (kind, "ema")]
    found = [store.load_analysis(run, one) for one in planned if store.has_analysis(run, one)]
    found = [(record, arrays) for record, arrays in found if "not_applicable" not in record]
    need(found, profile, f"{kind} of {run.label}")
    return found[0]


def histories(runs) -> pd.DataFrame:
    """Histories of the trained runs, one row per epoch, with the run's method in words and its seed; may be empty."""
    collected = [pd.DataFrame()]
    for run in runs:
        with suppress(MissingRecord):
            collected.append(store.history(run).assign(method=labels.method(run.label), seed=run.seed))
    return pd.concat(collected, ignore_index=True)
