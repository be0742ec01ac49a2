"""F7: what FSR adds to each method, in points."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fsr import experiments
from fsr.experiments import Row
from fsr.plots import readings, style, words
from fsr.tables.frame import Sources

MARKS = {"at": ("o", style.BLUE), "trades": ("s", style.GREEN), "mart": ("D", style.PURPLE)}


def _networks(profile: str) -> dict[tuple[str, str], list[Row]]:
    """T1's rows with FSR by data set and network."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in readings.gain_rows(profile):
        run = row.runs[0]
        groups.setdefault((words.dataset(run.dataset), words.network(run)), []).append(row)
    return groups


def _was_run(profile: str, row: Row) -> bool:
    return any(readings.gain(profile, row, attack) is not None for attack in readings.columns(profile))


def _panel(ax: Axes, profile: str, rows: list[Row]) -> None:
    columns = readings.columns(profile)
    rows = [row for row in rows if _was_run(profile, row)]
    offsets = [0.24 * (i - (len(rows) - 1) / 2) for i in range(len(rows))]
    drawn, empty = False, set()
    for row, offset in zip(rows, offsets, strict=True):
        marker, colour = MARKS[row.runs[0].method]
        for i, attack in enumerate(columns):
            gain = readings.gain(profile, row, attack)
            if gain is None:
                if not any(readings.gain(profile, other, attack) for other in rows):
                    empty.add(i)
                continue
            drawn = True
            low, high = 100 * (gain.mean - gain.low), 100 * (gain.high - gain.mean)
            y = i + offset
            look: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 2, "linewidth": 1.1, "zorder": 3}
            ax.errorbar(100 * gain.mean, y, xerr=[[low], [high]], **look)
            if len(gain.seeds) > 1:
                seeds = [100 * one for one in gain.seeds]
                ax.plot(seeds, [y] * len(seeds), "|", color=colour, markersize=6, alpha=0.6)
    if not drawn:
        style.not_run(ax)
        return
    for i in empty:
        ax.text(0, i, " not run", ha="left", va="center", fontsize=6.5, color="#666666")
    ax.axvline(0, color="black", linewidth=0.9, zorder=1)
    ax.set_yticks(range(len(columns)), [words.metric(a) for a in columns])
    ax.set(ylim=(len(columns) - 0.5, -0.5), xlabel="gain of + FSR in points")
    ax.grid(axis="y", visible=False)


@style.styled
def gains(profile: str) -> Figure:
    """F7: the gain of + FSR per column, method and network, with paired 95 % bootstrap intervals over images."""
    planned = _networks(profile)
    groups = {key: rows for key, rows in planned.items() if any(_was_run(profile, row) for row in rows)}
    left_out = [", ".join(key) for key in planned.keys() - groups.keys()] if groups else []
    groups = groups or dict([next(iter(planned.items()))])
    cols = min(3, len(groups))
    lines = -(-len(groups) // cols)
    fig, grid = style.panels(lines, cols, 3.05 * lines + 0.5)
    axes = [ax for line in grid for ax in line]
    for ax, ((dataset, network), rows) in zip(axes, groups.items(), strict=False):
        _panel(ax, profile, rows)
        ax.set_title(f"{dataset}\n{network}")  # on two lines, or neighbours meet
    drawn = [ax for ax in axes[: len(groups)] if ax.lines]
    limits = [end for ax in drawn for end in ax.get_xlim()]
    for ax in drawn:
        ax.set_xlim(min(limits), max(limits))  # one scale: a point means the same everywhere
    for ax in axes[len(groups) :]:
        style.blank(ax)
    for line in grid:
        for ax in line[1:]:
            ax.set_yticklabels([])
    shown = [row for rows in groups.values() for row in rows if _was_run(profile, row)]
    methods = dict.fromkeys(row.runs[0].method for row in shown)
    looks = {words.method(m): MARKS[m] for m in methods}
    handles = [Line2D([], [], marker=m, color=c, linestyle="", label=name) for name, (m, c) in looks.items()]
    found = (readings.gain(profile, row, attack) for row in shown for attack in readings.columns(profile))
    if any(gain is not None and len(gain.seeds) > 1 for gain in found):
        handles.append(Line2D([], [], marker="|", color=style.GREY, linestyle="", label="one seed of several"))
    if handles:
        fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    told = f"right of zero: better with FSR; {readings.weights(profile)}; bars: paired 95 % interval over "
    told += _images(profile) + _twice(profile, shown)
    style.foot(fig, told + (f"\nnot run: {'; '.join(sorted(left_out))}" if left_out else ""))
    return fig


def _twice(profile: str, rows: list[Row]) -> str:
    """Which rows' columns are of two trainings, on a line of its own; nothing where none is."""
    found = []
    for row in rows:
        sources = Sources()
        for attack in readings.columns(profile):
            readings.gain(profile, row, attack, sources=sources)
        found += [words.method(row.runs[0].label)] if sources.mixed() else []
    return f"\ntrained again between two columns, so do not compare its columns: {', '.join(found)}" if found else ""


def _images(profile: str) -> str:
    """How many test images the columns have, and AutoAttack."""
    counts = [readings.images(profile, name) for name in ("pgd20", experiments.profile_of(profile).autoattack)]
    told = ["all" if count is None else f"{count:,}" for count in counts]
    return f"{told[0]} test images" + (f" (AutoAttack: {told[1]})" if told[0] != told[1] else "")
