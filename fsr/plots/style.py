"""One look for every figure: a colour per method, sizes for print, shared drawing helpers."""

import functools
import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

# Okabe and Ito 2008: eight colours that stay apart for the common kinds of colour blindness.
BLUE, VERMILION, SKY, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
GREY, BROWN, OLIVE, BLACK = "#7F7F7F", "#8C5A2B", "#B8A900", "#000000"
METHODS = {"AT": BLUE, "AT + FSR": VERMILION, "TRADES": SKY, "TRADES + FSR": ORANGE, "MART": GREEN}
METHODS |= {"MART + FSR": PURPLE}
ATTACKS = {"clean": GREY, "pgd20": OLIVE, "ensemble": BROWN, "autoattack": BLACK}
CLASSES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, BROWN, SKY, GREY, OLIVE, BLACK)
STREAMS = {
    "f": "input $f$",
    "robust": "robust $f^{+}$",
    "nonrobust": "non-robust $f^{-}$",
    "recalibrated": "recalibrated $\\tilde{f}^{\\,-}$",
    "output": "output $\\tilde{f}$",
}
WIDTH = 7.2  # inches: two columns of a paper
# DejaVu Sans ships with matplotlib: the same bytes on every machine; fonttype 42: text stays text
STYLE: dict[Any, Any] = sns.axes_style("ticks") | {"font.family": "DejaVu Sans", "font.size": 8, "pdf.fonttype": 42}
STYLE |= {"axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.labelsize": 8, "legend.frameon": False}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E3E3E3"}
STYLE |= {"grid.linewidth": 0.6, "lines.linewidth": 1.4, "lines.markersize": 4.5, "axes.axisbelow": True}
STYLE |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7.5)
STYLE |= {"savefig.dpi": 150, "figure.dpi": 120}


def styled(draw: Callable[[str], Figure]) -> Callable[[str], Figure]:
    """Draw with STYLE, leave the caller's settings alone and keep no figure open."""

    @functools.wraps(draw)
    def wrapped(profile: str) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(profile)
            plt.close(figure)
            return figure

    return wrapped


def panels(rows: int, cols: int, height: float, width: float = WIDTH, **kwargs) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a grid of axes, a list of rows; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, cols, squeeze=False, **kwargs).tolist()


def percent_axis(ax: Axes) -> None:
    """Fractions stay fractions in the data; the axis shows percent."""
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def points(ax: Axes, frame: pd.DataFrame, at, color: str, *, horizontal: bool = False, linestyle: str = "") -> None:
    """`value` (fractions, drawn in points) at the places `at`, its intervals: over images thick, over seeds thin."""
    for low, high, width in (("low", "high", 2.0), ("seeds_low", "seeds_high", 0.7)):
        if low in frame and frame[low].notna().any():
            ends = 100 * frame[low], 100 * frame[high]
            (ax.hlines if horizontal else ax.vlines)(at, *ends, color=color, linewidth=width)
    values = 100 * frame["value"]
    ax.plot(*(values, at) if horizontal else (at, values), marker="o", color=color, linestyle=linestyle)


def series(ax: Axes, frame: pd.DataFrame, column: str, order: list, hue: str, colours: dict, **options) -> None:
    """Points of every value of `hue` side by side, at the place in `order` of what `column` holds."""
    shown = [name for name in colours if name in set(frame[hue])]
    for i, name in enumerate(shown):
        rows = frame[frame[hue] == name]
        at = [order.index(value) + 0.2 * (i - (len(shown) - 1) / 2) for value in rows[column]]
        points(ax, rows, at, colours[name], **options)


def key(label: str, color: str = "black", **options) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=color, label=label, **options)


def dots(labels: dict[str, str]) -> list[Line2D]:
    """Entries of a legend of points: label to colour."""
    return [key(label, color, marker="o", linestyle="") for label, color in labels.items()]


def finish(figure: Figure, note: str, handles=()) -> Figure:
    """Note below the panels, legend above them when it has at least two entries."""
    figure.set_layout_engine("constrained", h_pad=0.06, rect=(0, 0, 1, 0.985))
    lines = [textwrap.fill(line, int(17.5 * figure.get_figwidth())) for line in note.splitlines()]
    figure.supxlabel("\n".join(lines), fontsize=7, color="#555555", x=0.01, ha="left")
    if len(handles) > 1:
        figure.legend(handles=list(handles), loc="outside upper center", ncols=min(4, len(handles)))
    return figure
