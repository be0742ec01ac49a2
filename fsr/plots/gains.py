"""F4, F6, F7 and F10: what FSR adds, in points: per setting, strength of the attack, attack and training length."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fsr import experiments
from fsr.config import Evaluation
from fsr.plots import records, style
from fsr.plots.curves import overfitting
from fsr.tables import labels, outcomes

AXES = {
    "tau": "temperature $\\tau$",
    "lambda_sep": "weight $\\lambda_{sep}$",
    "lambda_rec": "weight $\\lambda_{rec}$",
    "mask": "mask",
    "granularity": "one mask value per",
    "place": "place of the module",
}
VALUES = {"gumbel": "soft,\nnoise", "soft": "soft,\nno noise", "hard": "hard,\nnoise"}


def _recorded(cells: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(cells)
    return frame.dropna(subset="value") if "value" in frame else frame.iloc[:0]


def _differences(profile: str) -> pd.DataFrame:
    """Every recorded setting against the default of the same seed: axis, setting, metric, value, low, high."""
    default, columns = experiments.main_pair(profile)[1], experiments.columns(profile, "settings")
    rows = experiments.ROWS[profile]["settings"] + experiments.ROWS[profile]["placement"]
    cells = []
    for row in (row for row in rows if row.axis in AXES):
        for metric in (metric for metric in style.ATTACKS if metric in columns):
            same = row.runs[0] == default
            cell = {"value": 0.0} if same else outcomes.gain(row.runs, (default,), columns[metric])
            cells.append({"axis": row.axis, "setting": row.value, "metric": metric, "default": same} | cell)
    return _recorded(cells)


def _label(value, default: bool) -> str:
    text = f"{value:g}" if isinstance(value, float) else VALUES.get(value, value)
    return text.replace("layer", "").replace("block", "") + ("\n(default)" if default else "")


def sweeps(profile: str) -> Figure:
    """F4: what each setting and place changes against the default, paired by image, one training each."""
    frame = _differences(profile)
    varied = [axis for axis in AXES if len(frame) and frame.loc[frame["axis"] == axis, "setting"].nunique() > 1]
    if not varied:
        raise records.nothing(profile, "varied settings")
    grid = sns.FacetGrid(frame, col="axis", col_order=varied, col_wrap=3, sharex=False, height=2.3)
    grid.figure.set_size_inches(style.WIDTH, 2.3 * -(-len(varied) // 3) + 0.5)
    for axis, ax in grid.axes_dict.items():
        part = frame[frame["axis"] == axis]
        default = dict(zip(part["setting"], part["default"]))
        values = sorted(default, key=lambda v: (isinstance(v, str) and v.count("+"), v))
        style.series(ax, part, "setting", values, "metric", style.ATTACKS)
        ax.set_xticks(range(len(values)), [_label(value, default[value]) for value in values])
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(AXES[axis])
    grid.set_xlabels("").set_ylabels("against default, points")
    handles = style.dots({labels.metric(m): c for m, c in style.ATTACKS.items() if m in set(frame["metric"])})
    note = f"AT + FSR, {records.setting(profile)}, seed 0; bars: paired 95 % intervals over images"
    return style.finish(grid.figure, note, handles)


def strength(profile: str) -> pd.DataFrame:
    """The sweep of attacks on the main pair: axis (eps, steps), x, method or `difference`, value, low, high, n.

    eps 0 is no attack; the difference is paired.
    """
    (plain, both), cells = experiments.main_pair(profile), []
    for evaluation in experiments.evaluations(profile, "strength", plain):
        at = {"axis": "eps" if evaluation.steps is None else "steps", "x": evaluation.steps or evaluation.eps or 0.0}
        cells += [at | {"method": "AT"} | outcomes.accuracy((plain,), evaluation)]
        cells += [at | {"method": "AT + FSR"} | outcomes.accuracy((both,), evaluation)]
        cells += [at | {"method": "difference"} | outcomes.gain((both,), (plain,), evaluation)]
    return _recorded(cells).sort_values(["axis", "method", "x"]) if cells else pd.DataFrame(columns=["x"])


def attack_strength(profile: str) -> Figure:
    """F6: PGD accuracy against eps, which must fall to zero, and steps, which must not rise; below, FSR's gain."""
    base, frame = experiments.profile_of(profile).base, strength(profile)
    if not frame["x"].any():
        raise records.nothing(profile, "attacks of several strengths")
    scale, unit = (255, "/255") if base.eps < 0.1 else (1, "")
    figure, grid = style.panels(2, 2, 4.4, sharex="col", height_ratios=[2, 1])
    for axis, top, below in zip(("eps", "steps"), *grid):
        for method, rows in frame[frame["axis"] == axis].groupby("method"):
            x = rows["x"] * (scale if axis == "eps" else 1)
            if method == "difference":
                style.points(below, rows, x, style.METHODS["AT + FSR"])
                continue
            colour = style.METHODS[method]
            top.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
            top.plot(x, rows["value"], color=colour, marker="o", label=method)
        below.axhline(0, color="black", linewidth=0.8)
        below.set_title("AT + FSR − AT")
        style.percent_axis(top)
    (left, right), (left_below, right_below) = grid
    left.set(title="radius, 20 steps", ylabel="accuracy", ylim=(-0.02, 1.02))
    right.set(title=f"steps, eps {scale * base.eps:g}{unit}", xscale="log")
    for ax in (left, left_below):
        ax.axvline(scale * base.eps, color=style.GREY, linestyle=":", linewidth=1)
    left_below.set(xlabel="eps, in 1/255" if unit else "eps", ylabel="points")
    steps = sorted(set(frame.loc[frame["axis"] == "steps", "x"]))
    right_below.set(xlabel="steps of PGD")
    right_below.set_xticks(steps, [f"{x:g}" for x in steps])
    right_below.minorticks_off()
    note = f"{records.setting(profile)}, seed 0, {int(frame['n'].min()):,} images; step 0.1 eps, no random start; "
    return style.finish(figure, note + "95 % intervals; dotted: the usual eps", left.get_legend_handles_labels()[0])


def gains(profile: str) -> Figure:
    """F7: the gain of FSR per attack, method and network, with paired 95 % intervals over images."""
    reported = experiments.profile_of(profile).report_checkpoint
    frame = records.frame(profile, "T1", kind="gain", checkpoint=reported)
    if frame.empty:
        raise records.nothing(profile, "gains")
    data = frame["dataset"].map(labels.dataset)
    where = data + ", " + frame["network"] if data.nunique() > 1 else frame["network"]
    frame = frame.assign(method=frame["row"].str.split(":").str[0], where=where)
    attacks, count = list(frame["metric"].unique()), where.nunique()
    colours = {method: style.METHODS[method] for method in frame["method"].unique()}
    grid = sns.FacetGrid(frame, col="where", col_wrap=min(3, count), height=2.9)
    grid.figure.set_size_inches(style.WIDTH if count > 1 else 5.2, 2.9 * -(-count // 3))
    for place, ax in grid.axes_dict.items():
        part = frame[frame["where"] == place]
        style.series(ax, part, "metric", attacks, "method", colours, horizontal=True)
        for metric in set(attacks) - set(part["metric"]):
            ax.text(0, attacks.index(metric), " not run", va="center", fontsize=7, color="#666666")
    grid.refline(x=0, color="black", linestyle="-", linewidth=0.8).set_titles("{col_name}")
    grid.set(
        yticks=range(len(attacks)),
        yticklabels=[labels.metric(attack) for attack in attacks],
        ylim=(len(attacks) - 0.5, -0.5),
    )
    names = {f"{method} − {method.removesuffix(' + FSR')}": colour for method, colour in colours.items()}
    grid.set_xlabels("gain in points" if len(names) > 1 else f"{next(iter(names))}, points").set_ylabels("")
    most = int(frame["n"].max())
    fewer = frame[frame["n"] < most].groupby("metric", sort=False)["n"].min()
    note = f"{records.setting(profile, network=False)}, {most:,} test images"
    note += "".join(f" ({labels.metric(name)}: {int(n):,})" for name, n in fewer.items())
    thin = "; thin: over seeds too" if frame["seeds_low"].notna().any() else ""
    return style.finish(grid.figure, f"{note}; bars: paired 95 % over images{thin}", style.dots(names))


def _by_length(profile: str) -> pd.DataFrame:
    """Gain in Ensemble per training length and checkpoint: this profile's runs, then full-width pairs of the data."""
    base, cells = experiments.profile_of(profile).base, []
    for name, chosen in experiments.PROFILES.items():
        if name != profile and (chosen.scope != "pair" or chosen.base.dataset != base.dataset):
            continue
        of = experiments.ROWS[name]
        pairs = [row for row in of["whitebox"] if row.baseline and row.runs[0].method == "at"][:1]
        pairs += [row for row in of["settings"] if row.axis == "epochs"]
        for run, row in {row.runs[0].epochs: (row.runs[0], row) for row in pairs}.values():
            for checkpoint in experiments.CHECKPOINTS:
                evaluation = Evaluation(attack="ensemble", checkpoint=checkpoint, images=chosen.images)
                cell = {"network": labels.network(run), "epochs": run.epochs, "checkpoint": checkpoint}
                cell |= {"own": name == profile} | outcomes.gain(row.runs, row.baseline, evaluation)
                cells.append(cell)
    return _recorded(cells)


def training_length(profile: str) -> Figure:
    """F10: the gain of FSR in Ensemble against training epochs; for a study of overfitting, its training curves."""
    if experiments.profile_of(profile).scope == "study":
        return overfitting(profile)
    frame = _by_length(profile)
    if frame.empty or frame.loc[frame["own"], "epochs"].nunique() < 2:
        raise records.nothing(profile, "trainings of several lengths")
    figure, (axes,) = style.panels(1, 3, 2.7, sharex=True, sharey=True)
    networks = dict(zip(frame["network"].unique(), (style.VERMILION, style.BLACK, style.GREEN)))
    lengths = sorted(frame["epochs"].unique())
    for ax, checkpoint in zip(axes, experiments.CHECKPOINTS):
        for network, colour in networks.items():
            rows = frame[(frame["network"] == network) & (frame["checkpoint"] == checkpoint)].sort_values("epochs")
            style.points(ax, rows, rows["epochs"], colour, linestyle="-")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=labels.WEIGHTS[checkpoint], xlabel="training epochs", xscale="log")
        ax.set_xticks(lengths, [str(length) for length in lengths])
        ax.minorticks_off()
    axes[0].set_ylabel("AT + FSR − AT, points")
    note = f"{labels.dataset(experiments.profile_of(profile).base.dataset)}, Ensemble, {frame['seeds'].min()} to "
    note += f"{frame['seeds'].max()} seeds; bars: paired 95 % intervals over images; thin: over seeds too"
    return style.finish(figure, note, style.dots(networks))
