"""F4 and F6: paired differences over the module's settings and over the strength of the attack."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fsr import experiments
from fsr.files import MissingRecord
from fsr.plots import records, style
from fsr.tables import labels

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
    default, collected = experiments.main_pair(profile)[1], []
    columns = experiments.columns(profile, "settings")
    for row in (*experiments.ROWS[profile]["settings"], *experiments.ROWS[profile]["placement"]):
        for metric in style.ATTACKS:
            if row.axis not in AXES or metric not in columns:
                continue
            cell = {"axis": row.axis, "setting": row.value, "metric": metric, "value": 0.0}
            if row.runs[0] != default:
                try:
                    cell |= records.paired(row.runs, (default,), columns[metric])
                except MissingRecord:
                    continue
            collected.append(cell)
    return pd.DataFrame(collected, columns=["axis", "setting", "metric", "value", "low", "high"])


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
    handles = style.dots({labels.metric(metric): style.ATTACKS[metric] for metric in metrics})
    note = f"AT + FSR, {records.setting(profile)}, seed 0; bars: paired 95 % intervals over images"
    return style.finish(grid.figure, note, handles)


def strength(profile: str) -> pd.DataFrame:
    """The sweep of attacks on the main pair: axis (eps, steps), x, method or `difference`, value, low, high, n.

    eps 0 is no attack; the difference is paired.
    """
    (plain, both), collected = experiments.main_pair(profile), []
    for evaluation in experiments.evaluations(profile, "strength", plain):
        axis = "eps" if evaluation.steps is None else "steps"
        at = {"axis": axis, "x": evaluation.steps or evaluation.eps or 0.0}
        try:
            collected += [at | {"method": "AT"} | records.accuracy(plain, evaluation)]
            collected += [at | {"method": "AT + FSR"} | records.accuracy(both, evaluation)]
            collected += [at | {"method": "difference"} | records.paired((both,), (plain,), evaluation)]
        except MissingRecord:
            continue
    frame = pd.DataFrame(collected, columns=["axis", "x", "method", "value", "low", "high", "n"])
    return frame.sort_values(["axis", "method", "x"])


@style.styled
def attack_strength(profile: str) -> Figure:
    """F6: PGD accuracy against eps, which must fall to zero, and steps, which must not rise; below, FSR's gain."""
    base, frame = experiments.profile_of(profile).base, strength(profile)
    if not frame["x"].any():
        raise records.nothing(profile, "attacks of several strengths")
    scale, unit = (255, "eps, in 1/255") if base.eps < 0.1 else (1, "eps")
    figure, grid = style.panels(2, 2, 4.4, sharex="col", height_ratios=[2, 1])
    for axis, top, below in zip(("eps", "steps"), *grid):
        for method, rows in frame[frame["axis"] == axis].groupby("method"):
            x = rows["x"] * (scale if axis == "eps" else 1)
            if method == "difference":
                style.points(below, rows, x, style.colour("AT + FSR"))
                continue
            top.fill_between(x, rows["low"], rows["high"], color=style.colour(method), alpha=0.15, linewidth=0)
            top.plot(x, rows["value"], color=style.colour(method), marker="o", label=method)
        below.axhline(0, color="black", linewidth=0.8)
        below.set_title("AT + FSR − AT")
        style.percent_axis(top)
    (left, right), (left_below, right_below) = grid
    left.set(title="radius, 20 steps", ylabel="accuracy", ylim=(-0.02, 1.02))
    right.set(title=f"steps, eps {scale * base.eps:g}" + ("/255" if scale > 1 else ""), xscale="log")
    for ax in (left, left_below):
        ax.axvline(scale * base.eps, color=style.GREY, linestyle=":", linewidth=1)
    left_below.set(xlabel=unit, ylabel="points")
    right_below.set(xlabel="steps of PGD")
    right_below.set_xticks(steps := sorted(set(frame.loc[frame["axis"] == "steps", "x"])), [f"{x:g}" for x in steps])
    right_below.minorticks_off()
    note = f"{records.setting(profile)}, seed 0, {int(frame['n'].min()):,} images; step 0.1 eps, no random start; "
    return style.finish(figure, note + "95 % intervals; dotted: the usual eps", left.get_legend_handles_labels()[0])
