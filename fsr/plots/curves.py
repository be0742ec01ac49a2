"""F5: training curves, twins side by side."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fsr import experiments, store
from fsr.config import Run
from fsr.experiments import Row
from fsr.files import MissingRecord
from fsr.plots import readings, style, words

LOSSES = {
    "train_cls": ("classification", style.BLACK),
    "train_robust": ("robust term", style.BLUE),
    "train_sep": ("separation", style.ORANGE),
    "train_rec": ("recalibration", style.GREEN),
}
TRACES: dict[str, tuple[str, str, Any]] = {
    "held_clean_acc": ("clean", style.SKY, "-"),
    "held_robust_acc": ("under attack", style.VERMILION, "-"),
    "ema_held_robust_acc": ("under attack, EMA", style.PURPLE, (0, (4, 2))),
    "train_adv_acc": ("training images, under attack", style.GREY, ":"),
}
MARKS = {"last": ("o", "none"), "best": ("*", style.VERMILION), "EMA": ("D", style.PURPLE)}  # last: a ring


def history(run: Run) -> pd.DataFrame | None:
    """A run's history, or None when it was not trained yet."""
    try:
        return store.history(run)
    except MissingRecord:
        return None


def epoch_axis(ax: Axes) -> None:
    """Whole epochs only, also when there is just one."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def _marker(frame: pd.DataFrame) -> str:
    """So few epochs that lines alone would hardly be seen get points as well."""
    return "." if len(frame) < 4 else ""


def draw_losses(ax: Axes, frame: pd.DataFrame) -> None:
    """Every loss term of a history, unweighted."""
    for name, (label, colour) in LOSSES.items():
        if name in frame and frame[name].notna().any():
            ax.plot(frame["epoch"], frame[name], color=colour, marker=_marker(frame), label=label)


def draw_accuracy(ax: Axes, frame: pd.DataFrame, alpha: float = 1.0) -> None:
    """Accuracies of a history; alpha below 1 for the seeds behind the first."""
    for name, (label, colour, dash) in TRACES.items():
        if name in frame and frame[name].notna().any():
            width = 1.5 if alpha == 1 else 0.8
            look: dict[str, Any] = {
                "color": colour,
                "linestyle": dash,
                "linewidth": width,
                "alpha": alpha,
                "label": label,
                "marker": _marker(frame),
            }
            ax.plot(frame["epoch"], frame[name], **look)
    if alpha == 1:
        _mark(ax, frame)


def _mark(ax: Axes, frame: pd.DataFrame) -> None:
    final = len(frame) - 1
    spots = [("last", "held_robust_acc", final), ("EMA", "ema_held_robust_acc", final)]
    if "held_robust_acc" in frame and frame["held_robust_acc"].notna().any():
        spots.append(("best", "held_robust_acc", int(frame["held_robust_acc"].to_numpy().argmax())))  # first on ties
    for mark, name, at in spots:
        if name in frame and pd.notna(frame[name].iloc[at]):
            ax.plot(frame["epoch"].iloc[at], frame[name].iloc[at], zorder=6 if mark == "EMA" else 5, **_look(mark))


def _look(mark: str) -> dict[str, Any]:
    marker, fill = MARKS[mark]
    edge = style.BLACK if fill == "none" else "white"
    size = {"last": 11, "best": 11, "EMA": 3.5}[mark]  # all three can fall on one point and are still seen
    line = {"markeredgecolor": edge, "markeredgewidth": 0.8 if mark == "last" else 0.4, "linestyle": ""}
    return line | {"marker": marker, "markerfacecolor": fill, "markersize": size, "clip_on": False}


def _pair(axes: list[Axes], runs: tuple[Run, ...], title: str) -> None:
    frames = [frame for frame in map(history, runs) if frame is not None]
    for ax, text in zip(axes, (f"{title}: loss", "accuracy"), strict=True):
        ax.set_title(text)
    if not frames:
        for ax in axes:
            style.not_run(ax)
        return
    draw_losses(axes[0], frames[0])
    for i, frame in reversed(list(enumerate(frames))):
        draw_accuracy(axes[1], frame, 1.0 if i == 0 else 0.35)
    axes[1].set_ylim(-0.02, 1.02)
    style.percent_axis(axes[1])
    for ax in axes:
        epoch_axis(ax)


def _legend(fig: Figure) -> None:
    lines = [Line2D([], [], color=colour, label=f"loss: {label}") for label, colour in LOSSES.values()]
    lines += [Line2D([], [], color=c, linestyle=dash, label=label) for label, c, dash in TRACES.values()]
    drawn = {str(line.get_label()) for ax in fig.axes for line in ax.get_lines()}
    marks = [Line2D([], [], label=name, **_look(name)) for name in MARKS]
    shown = [line for line in lines if str(line.get_label()).removeprefix("loss: ") in drawn]
    if shown:
        fig.legend(handles=[*shown, *marks], loc="outside upper center", ncols=4)


def curve_rows(profile: str) -> list[Row]:
    """T1's rows with FSR on the main data set and backbone: AT, then TRADES and MART where they are planned."""
    base = experiments.profile_of(profile).base
    return [
        row
        for row in readings.gain_rows(profile)
        if (row.runs[0].dataset, row.runs[0].backbone) == (base.dataset, base.backbone)
    ]


@style.styled
def training_curves(profile: str) -> Figure:
    """F5: loss terms and held-out accuracies per epoch; last, best and EMA marked; other seeds pale."""
    planned = curve_rows(profile)
    rows = [row for row in planned if any(history(run) is not None for run in (*row.plain, *row.runs))] or planned[:1]
    fig = style.figure(1.95 * len(rows) + 1.0)
    grid = fig.subplots(len(rows), 4, squeeze=False)
    for line, row in zip(grid.tolist(), rows, strict=True):
        line[2].sharey(line[0])
        name = words.method(row.runs[0].method)
        _pair([line[0], line[1]], row.plain, name)
        _pair([line[2], line[3]], row.runs, f"{name} + FSR")
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    _legend(fig)
    left_out = ", ".join(words.method(row.runs[0].method) for row in planned if row not in rows)
    told = "accuracies: held-out images, each method under its own training attack; bold: seed 0, pale: other seeds"
    style.foot(fig, told + (f"; not run: {left_out}" if left_out else ""))
    return fig
