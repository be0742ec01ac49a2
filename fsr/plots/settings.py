"""F4 and F6: paired differences over the module's settings and over the strength of the attack."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fsr import experiments, statistics, store
from fsr.config import Run
from fsr.files import MissingRecord
from fsr.plots import records, style
from fsr.tables import names

AXES = {
    "tau": "temperature $\\tau$",
    "lambda_sep": "weight $\\lambda_{sep}$",
    "lambda_rec": "weight $\\lambda_{rec}$",
    "mask": "mask",
    "granularity": "one mask value per",
    "place": "place of the module",
}
VALUES = {"gumbel": "soft,\nnoise", "soft": "soft,\nno noise", "hard": "hard,\nnoise"}


def _differences(profile: str) -> pd.DataFrame:
    """Every recorded setting against the default of the same seed: axis, setting, metric, value, low, high."""
    default, found = experiments.main_pair(profile)[1], []
    columns = experiments.columns(profile, "settings")
    for row in (*experiments.ROWS[profile]["settings"], *experiments.ROWS[profile]["placement"]):
        for metric, evaluation in columns.items():
            if row.axis not in AXES or names_of(metric) not in style.ATTACKS:
                continue
            cell = {"axis": row.axis, "setting": row.value, "metric": names_of(metric), "value": 0.0}
            if row.runs[0] != default:
                try:
                    cell |= records.paired(row.runs, (default,), evaluation)
                except MissingRecord:
                    continue
            found.append(cell)
    return pd.DataFrame(found)


def names_of(metric: str) -> str:
    """The metric without the mark of a shortened AutoAttack."""
    return metric.removesuffix("-ci")


def _label(value, default) -> str:
    text = f"{value:g}" if isinstance(value, float) else VALUES.get(value, value)
    text = text.replace("layer", "").replace("block", "")
    return f"{text}\n(default)" if default else text


@style.styled
def sweeps(profile: str) -> Figure:
    """F4: what each setting and place changes against the default, paired by image, one training each."""
    frame = _differences(profile)
    varied = [axis for axis in AXES if frame.loc[frame["axis"] == axis, "setting"].nunique() > 1]
    if not varied:
        raise records.nothing(profile, "varied settings")
    frame = frame[frame["axis"].isin(varied)]
    grid = sns.FacetGrid(frame, col="axis", col_order=varied, col_wrap=3, sharex=False, height=2.3)
    grid.figure.set_size_inches(style.WIDTH, 2.3 * -(-len(varied) // 3) + 0.5)
    metrics = [metric for metric in style.ATTACKS if metric in set(frame["metric"])]
    for axis, ax in grid.axes_dict.items():
        part = frame[frame["axis"] == axis]
        values = sorted(set(part["setting"]), key=lambda v: (isinstance(v, str) and v.count("+"), v))
        for i, metric in enumerate(metrics):
            rows = part[part["metric"] == metric]
            at = [values.index(value) + 0.13 * (i - (len(metrics) - 1) / 2) for value in rows["setting"]]
            style.points(ax, rows, at, style.ATTACKS[metric])
        unchanged = set(part.loc[part["low"].isna(), "setting"])
        ax.set_xticks(range(len(values)), [_label(value, value in unchanged) for value in values])
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(AXES[axis])
    grid.set_xlabels("").set_ylabels("against default, points")
    handles = [
        Line2D([], [], color=style.ATTACKS[metric], marker="o", linestyle="", label=names.metric(metric))
        for metric in metrics
    ]
    note = f"AT + FSR, {records.setting(profile)}, seed 0; bars: paired 95 % intervals over images"
    return style.finish(grid.figure, note, handles)


def strength(profile: str, axis: str) -> pd.DataFrame:
    """PGD accuracy of the main pair against `eps` or `steps`: method, x, value, low, high, n; eps 0 is no attack."""
    found = []
    for row in experiments.ROWS[profile]["strength"]:
        for x, evaluation in _planned(profile, row.runs[0], axis):
            if store.has_evaluation(row.runs[0], evaluation):
                right = records.correct(row.runs[0], evaluation)
                low, high = statistics.wilson(int(right.sum()), len(right))
                cell = {"method": row.name, "x": x, "value": right.mean(), "low": low, "high": high}
                found.append(cell | {"n": len(right)})
    return pd.DataFrame(found, columns=["method", "x", "value", "low", "high", "n"]).sort_values(["method", "x"])


def _planned(profile: str, run: Run, axis: str) -> list:
    planned = experiments.evaluations(profile, "strength", run)
    found = [(getattr(e, axis), e) for e in planned if getattr(e, axis) is not None]
    return found + [(0.0, e) for e in planned if e.attack == "clean" and axis == "eps"]


def _paired(profile: str, axis: str) -> pd.DataFrame:
    plain, both = (row.runs for row in experiments.ROWS[profile]["strength"])
    found = []
    for x, evaluation in sorted(_planned(profile, plain[0], axis), key=lambda each: each[0]):
        try:
            found.append({"x": x} | records.paired(both, plain, evaluation))
        except MissingRecord:
            continue
    return pd.DataFrame(found, columns=["x", "value", "low", "high"])


@style.styled
def attack_strength(profile: str) -> Figure:
    """F6: PGD accuracy against eps, which must fall to zero, and steps, which must not rise; below, FSR's gain."""
    base = experiments.profile_of(profile).base
    curves = {axis: strength(profile, axis) for axis in ("eps", "steps")}
    if all(curve.loc[curve["x"] > 0].empty for curve in curves.values()):
        raise records.nothing(profile, "attacks of several strengths")
    scale, unit = (255, "eps, in 1/255") if base.eps < 0.1 else (1, "eps")
    figure, grid = style.panels(2, 2, 4.4, sharex="col", height_ratios=[2, 1])
    for column, (axis, curve) in enumerate(curves.items()):
        top, below = grid[0][column], grid[1][column]
        times = scale if axis == "eps" else 1
        for method, rows in curve.groupby("method", sort=False):
            colour = style.METHODS[method]
            top.fill_between(times * rows["x"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
            top.plot(times * rows["x"], rows["value"], color=colour, marker="o", label=method)
        rows = _paired(profile, axis)
        style.points(below, rows, times * rows["x"], style.METHODS["AT + FSR"])
        below.set_title("AT + FSR − AT")
        below.axhline(0, color="black", linewidth=0.8)
        style.percent_axis(top)
    (left, right), (left_below, right_below) = grid
    left.set(title="radius, 20 steps", ylabel="accuracy", ylim=(-0.02, 1.02))
    right.set(title=f"steps, eps {scale * base.eps:g}" + ("/255" if scale > 1 else ""), xscale="log")
    for ax in (left, left_below):
        ax.axvline(scale * base.eps, color=style.GREY, linestyle=":", linewidth=1)
    left_below.set(xlabel=unit, ylabel="points")
    right_below.set(xlabel="steps of PGD")
    right_below.set_xticks(steps := sorted(set(curves["steps"]["x"])), [f"{x:g}" for x in steps])
    right_below.minorticks_off()
    images = int(min(curve["n"].min() for curve in curves.values() if len(curve)))
    note = f"{records.setting(profile)}, seed 0, {images:,} images; step 0.1 eps, no random start; 95 % intervals"
    return style.finish(figure, note + "; dotted: the usual eps", left.get_legend_handles_labels()[0])
