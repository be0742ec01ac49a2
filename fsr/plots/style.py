"""One look for every figure: sizes for print, colours for colour-blind readers, and an honest empty panel."""

import functools
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito 2008: eight colours that stay apart for the common kinds of colour blindness.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#7F7F7F"

PLAIN, WITH_FSR = BLUE, VERMILION
TEN = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, "#8C5A2B", SKY, GREY, "#B8A900", BLACK)  # ten classes, labelled as well
CLEAN, ATTACKED = SKY, VERMILION

STYLE: dict[Any, Any] = seaborn.axes_style("ticks") | {  # seaborn's look, and what print and these panels ask for
    "patch.force_edgecolor": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same bytes on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # text stays text: searchable, and accepted by every publisher
    "mathtext.fontset": "dejavusans",
}
OF_EMA = "EMA weights, seed 0"  # of the figures that look inside one network
WIDTH = 7.2  # inches: the width of a two-column page


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under our settings and leave the caller's matplotlib as it was."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches; no pyplot, so that nothing is shown twice or kept in memory."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(rows: int, cols: int, height: float, **kwargs) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a grid of axes, always a list of rows."""
    fig = figure(height)
    return fig, fig.subplots(rows, cols, squeeze=False, **kwargs).tolist()


def blank(ax: Axes) -> None:
    """No axes, ticks or grid: a place for a picture or a text."""
    ax.set_axis_off()
    ax.grid(False)


def not_run(ax: Axes, what: str = "") -> None:
    """A panel whose records are missing says so, in words, and shows no number."""
    said(ax, "not run" + (f"\n{what}" if what else ""))


def said(ax: Axes, text: str) -> None:
    """A panel with nothing to draw holds words instead."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, color="#BBBBBB", linestyle=(0, (4, 3)))
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#666666", fontsize=8)


def percent_axis(ax: Axes, which: str = "y") -> None:
    """Fractions stay fractions in the data; the axis shows percent."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def foot(fig: Figure, text: str) -> None:
    """One grey line below the panels: what the reader must know to trust the figure."""
    fig.supxlabel(text, fontsize=7, color="#555555", x=0.01, ha="left")
