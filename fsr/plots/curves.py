"""F4 to F7 and F10: training curves, and what FSR adds, in points, per setting, attack, strength and length."""

from itertools import product
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fsr import experiments, reference
from fsr.config import Run, replace
from fsr.plots import style
from fsr.plots.style import METHODS, NAMES
from fsr.tables import labels, outcomes

ROBUST = "held_robust_acc"
# F5's panels: column of a history, title
PANELS = {"train_cls": "loss: classification", "train_sep": "loss: separation", "train_rec": "loss: recalibration"}
PANELS |= {"train_adv_acc": "training images, attacked", ROBUST: "held-out images, attacked"}
PANELS["held_clean_acc"] = "held-out images, no attack"
MARKS: dict[str, Any] = {"last": {"marker": "o", "fillstyle": "none", "markersize": 7}}
MARKS |= {"best": {"marker": "*", "markersize": 8}, "EMA": {"marker": "D", "markersize": 4}}
AXES = {"tau": "temperature $\\tau$", "lambda_sep": "weight $\\lambda_{sep}$", "lambda_rec": "weight $\\lambda_{rec}$"}
AXES |= {"mask": "mask", "granularity": "one mask value per", "place": "place of the module"}
VALUE = ["value", "low", "high", "n"]


def sweeps(profile: str) -> Figure:
    """F4: what each setting and place changes against the default of the same seed, paired by image."""
    default, columns = experiments.main_pair(profile)[1], experiments.columns(profile, "settings")
    rows = [row for kind in ("settings", "placement") for row in experiments.ROWS[profile][kind] if row.axis in AXES]
    rows, colours, cells = sorted(rows, key=lambda row: (list(AXES).index(row.axis), str(row.value))), {}, []
    for row, metric in product(rows, [name for name in style.ATTACKS if name in columns]):
        colours[labels.metric(metric)] = style.ATTACKS[metric]
        text = str(row.value).replace(" + ", " +\n") + "\n(default)" * (row.runs[0] == default)
        keys = {"panel": AXES[row.axis], "setting": text, "hue": labels.metric(metric)}
        cells.append(keys | outcomes.gain(row.runs, (default,), columns[metric]))
    frame = pd.DataFrame(cells, columns=["panel", "setting", "hue", *VALUE]).dropna(subset="value")
    frame = frame[frame.groupby("panel")["setting"].transform("nunique") > 1]
    style.need(frame, profile, "varied settings")
    grid = style.facets(frame, "setting", colours).set_ylabels("against default, points")
    note = f"AT + FSR, {style.setting(profile)}, seed 0; bars: paired 95 % intervals over images"
    return style.finish(grid.figure, note)


def official(run: Run) -> pd.DataFrame:
    """The log of the authors' code as one of our histories, cut to the run's epochs; empty for other networks."""
    if (run.dataset, run.backbone, run.width, run.train_size) != ("cifar10", "resnet18", None, None):
        return pd.DataFrame()
    return reference.epoch_log().query("epoch <= @run.epochs").assign(method=NAMES[-1], seed=0)


def training_curves(profile: str, shown: tuple[str, ...] = tuple(PANELS)) -> Figure:
    """F5: losses and accuracies per epoch, AT and AT + FSR overlaid, the authors' log beside them where it applies."""
    ours = style.histories(run for row in experiments.ROWS[profile]["whitebox"][:2] for run in row.runs)
    style.need(ours, profile, "training histories")
    log, size = official(experiments.profile_of(profile).base), (2, 3, 4.4) if len(shown) > 3 else (1, len(shown), 2.8)
    figure = style.panels(*size)[0]
    for ax, column in zip(figure.axes, shown):
        for method, rows in pd.concat([ours, log]).groupby("method", sort=False):
            options: dict[str, Any] = {"color": METHODS[method], "errorbar": ("pi", 100), "legend": False}
            if column in rows and rows[column].notna().any():
                sns.lineplot(rows, x="epoch", y=column, label=method, ax=ax, **options)
        ax.set(title=PANELS[column], ylabel="", xlabel="epoch")
        if column.endswith("acc"):
            ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax = figure.axes[shown.index(ROBUST)]  # marks: last, best (the first of equal epochs) and EMA weights
    for (method, _), part in ours.groupby(["method", "seed"], sort=False):
        last, best = part.iloc[-1], part.loc[part[ROBUST].idxmax()]
        places = {"last": (last, ROBUST), "best": (best, ROBUST), "EMA": (last, f"ema_{ROBUST}")}
        for name, (epoch, column) in places.items():
            options = MARKS[name] | {"color": METHODS[method], "linestyle": "", "clip_on": False}
            ax.plot(epoch["epoch"], epoch[column], markeredgewidth=0.8, **options)
    for name, options in MARKS.items():
        ax.plot([], [], label=name, color=style.GREY, linestyle="", **options)
    note = f"{labels.setting(profile)}; lines: mean over seeds (at most {ours['seed'].nunique()}), bands: their range"
    source = "; authors' code: a third party's run of 100 epochs, its rate falls later; test images, not held-out ones"
    return style.finish(figure, note + source * bool(len(log)))


def attack_strength(profile: str) -> Figure:
    """F6: PGD accuracy against eps, which must fall to zero, and steps, which must not rise; below, FSR's gain."""
    (at, fsr), cells = experiments.main_pair(profile), []
    for one in experiments.evaluations(profile, "strength", at):
        axis, x = ("radius", (one.eps or 0) / at.eps) if one.steps is None else ("steps", one.steps)
        made = {"AT": outcomes.accuracy((at,), one), "AT + FSR": outcomes.accuracy((fsr,), one)}
        made["gain"] = outcomes.gain((fsr,), (at,), one)
        cells += [{"axis": axis, "x": x, "method": method} | cell for method, cell in made.items()]
    frame = pd.DataFrame(cells, columns=["axis", "x", "method", *VALUE]).dropna(subset="value").sort_values("x")
    style.need(frame[frame["x"] > 0], profile, "attacks of several strengths")
    figure, grid = style.panels(2, 2, 4.4, sharex="col", height_ratios=[2, 1])
    for (axis, words), top, below in zip({"radius": "eps / usual eps", "steps": "steps of PGD"}.items(), *grid):
        for method, rows in frame[frame["axis"] == axis].groupby("method"):
            if method == "gain":
                style.points(below, rows, rows["x"], METHODS["AT + FSR"])
                continue
            top.fill_between(rows["x"], rows["low"], rows["high"], color=METHODS[method], alpha=0.15, linewidth=0)
            top.plot(rows["x"], rows["value"], color=METHODS[method], marker="o", label=method)
        top.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        top.set(ylabel="accuracy", xscale="log" if axis == "steps" else "linear")
        if axis == "steps":
            below.set_xticks(ticks := frame[frame["axis"] == axis]["x"].unique(), [f"{x:g}" for x in ticks])
            below.minorticks_off()
        below.axhline(0, color="black", linewidth=0.8)
        below.set(title="AT + FSR − AT", xlabel=words, ylabel="points")
    note = f"{style.setting(profile)}, seed 0, {int(frame['n'].min()):,} images; usual: eps {at.eps:.3g}, 20 steps, "
    note += "step 0.1 eps (10 steps reach eps), no random start; 95 % intervals"
    note += "; points that one network lacks were not run" * (frame["method"].value_counts().nunique() > 1)
    return style.finish(figure, note)


def gains(profile: str) -> Figure:
    """F7: the gain of FSR per attack, method and network, with paired 95 % intervals."""
    chosen = experiments.profile_of(profile)
    frame = style.cells(profile, "T1", kind="gain", checkpoint=chosen.report_checkpoint)
    style.need(frame, profile, "gains")
    panel = frame["dataset"].map(lambda name: labels.data(replace(chosen.base, dataset=name)))
    hue = frame["row"].str.replace(": gain over ", " − ")
    frame = frame.assign(panel=panel + ", " + frame["network"], hue=hue, attack=frame["metric"].map(labels.metric))
    grid = style.facets(frame, "attack", {name: METHODS[name.split(" − ")[0]] for name in hue.unique()})
    grid.set_ylabels("gain of FSR in points" if hue.nunique() > 1 else f"{hue.iloc[0]}, points")
    images = " to ".join(dict.fromkeys(f"{n:,.0f}" for n in (frame["n"].min(), frame["n"].max())))
    note = f"{chosen.base.epochs} epochs, {labels.WEIGHTS[chosen.report_checkpoint]}, {images} test images; "
    return style.finish(grid.figure, note + "bars: paired 95 % intervals over images, and over seeds from three on")


def training_length(profile: str) -> Figure:
    """F10: the gain of FSR in Ensemble against training epochs; of a study of overfitting, its training curves."""
    chosen, row = experiments.profile_of(profile), "AT + FSR: gain over AT"
    if chosen.scope == "study":
        return training_curves(profile, ("train_adv_acc", ROBUST))
    frame = style.cells(profile, "T5", kind="gain", axis="epochs", metric="ensemble")
    style.need(frame["setting"].unique()[1:], profile, "trainings of several lengths")
    for name, other in experiments.PROFILES.items():  # full-width pairs of the same data
        if name != profile and (other.scope, other.base.dataset) == ("pair", chosen.base.dataset):
            pair = style.cells(name, "T1", kind="gain", row=row, metric="ensemble")
            frame = pd.concat([frame, pair.assign(setting=other.base.epochs)])
    frame = frame.assign(panel=frame["checkpoint"].map(labels.WEIGHTS), hue=frame["network"]).sort_values("setting")
    colours = dict(zip(frame["hue"].unique(), (style.VERMILION, style.BLACK, style.GREEN)))
    grid = style.facets(frame, "setting", colours)
    grid.set_xlabels("training epochs").set_ylabels("AT + FSR − AT, points")
    note = f"{labels.dataset(chosen.base.dataset)}, Ensemble; bars: paired 95 % intervals over images, "
    return style.finish(grid.figure, note + "from three seeds on over seeds too")
