"""F4 to F7 and F10: training curves, and what FSR adds, in points, per setting, attack, strength and length."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments, reference
from fsr.config import Evaluation, Run
from fsr.plots import style
from fsr.plots.style import METHODS
from fsr.tables import labels, outcomes

DASHED, ROBUST = (4, 1.5), "held_robust_acc"
LOSSES = {"train_cls": "", "train_robust": (4, 1, 1, 1), "train_sep": DASHED, "train_rec": (1, 1)}  # column: dashes
PANELS: dict[str, dict[str, Any]] = {"loss terms": LOSSES, "training images, attacked": {"train_adv_acc": ""}}
PANELS |= {"held-out images": {ROBUST: "", "held_clean_acc": DASHED}}
WORDS = {"train_cls": "loss: classification", "train_robust": "loss: robust term", "train_sep": "loss: separation"}
WORDS |= {"train_rec": "loss: recalibration", "held_clean_acc": "accuracy: clean"}
LOG = {"train_adv_loss": "train_cls", "train_sep_loss": "train_sep", "train_rec_loss": "train_rec"}
LOG |= {"train_adv_acc": "train_adv_acc", "test_pgd10_acc": ROBUST}  # the authors' log -> our histories
EDGE = {"markeredgecolor": "black", "markeredgewidth": 0.5, "linestyle": ""}
MARKS = {"last": EDGE | {"marker": "o", "markersize": 6, "fillstyle": "none"}}
MARKS |= {"best": EDGE | {"marker": "*", "markersize": 7}, "ema": EDGE | {"marker": "D", "markersize": 3}}
AXES = {"tau": "temperature $\\tau$", "lambda_sep": "weight $\\lambda_{sep}$", "lambda_rec": "weight $\\lambda_{rec}$"}
AXES |= {"mask": "mask", "granularity": "one mask value per", "place": "place of the module"}
VALUES = {"gumbel": "soft,\nnoise", "soft": "soft,\nno noise", "hard": "hard,\nnoise"}


def official(run: Run) -> pd.DataFrame:
    """The log of the authors' code as one of our histories, cut to the run's epochs; empty for other networks."""
    if (run.dataset, run.backbone, run.width, run.train_size) != ("cifar10", "resnet18", None, None):
        return pd.DataFrame()
    log = reference.epoch_log()[["epoch", *LOG]].rename(columns=LOG)
    log[["train_adv_acc", ROBUST]] /= 100
    return log[log["epoch"] <= run.epochs].assign(method="authors' code", seed=0)


def _curves(ax: Axes, frame: pd.DataFrame, title: str) -> None:
    """A line per method and column, mean over seeds, its band from the lowest to the highest seed."""
    long = frame.melt(["epoch", "method", "seed"], [name for name in PANELS[title] if name in frame]).dropna()
    if long.empty:
        text = "TRADES trains against\nits own KL attack:\nnot comparable"
        ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color="#666666")
        return ax.set_axis_off()
    look: dict = {"hue": "method", "palette": METHODS, "style": "variable", "dashes": PANELS[title]}
    sns.lineplot(long, x="epoch", y="value", errorbar=("pi", 100), legend=False, ax=ax, **look)
    ax.locator_params("x", nbins=5, integer=True, min_n_ticks=1)
    if title != "loss terms":
        ax.set_ylim(-0.02, 1.02)
        style.percent_axis(ax)


def marks(ax: Axes, frame: pd.DataFrame, tested: pd.DataFrame | None = None) -> None:
    """last, best (the first of equal epochs) and EMA of every training, or at their epochs the values of T1's cells."""
    for (method, _), part in frame.dropna(subset=[ROBUST]).groupby(["method", "seed"]):
        last, best = part.iloc[-1], part.loc[part[ROBUST].idxmax()]
        heights = {"last": last[ROBUST], "best": best[ROBUST], "ema": last[f"ema_{ROBUST}"]}
        if tested is not None:
            heights = tested[tested["row"] == method].drop_duplicates("checkpoint").set_index("checkpoint")["value"]
        for mark, look in MARKS.items():
            look = look | ({"markeredgecolor": METHODS[method]} if mark == "last" else {})
            epoch, height = (best if mark == "best" else last)["epoch"], heights.get(mark, float("nan"))
            ax.plot(epoch, height, color=METHODS[method], clip_on=False, zorder=4, **look)


def training_curves(profile: str, titles: tuple[str, ...] = tuple(PANELS)) -> Figure:
    """F5: losses, accuracy on attacked training images and on held-out images per epoch, AT and AT + FSR overlaid."""
    base = experiments.profile_of(profile).base
    rows = [row for row in experiments.ROWS[profile]["whitebox"] if row.baseline]
    here = [row for row in rows if (row.runs[0].dataset, row.runs[0].backbone) == (base.dataset, base.backbone)]
    frames = [frame for row in here if len(frame := style.histories(row.baseline + row.runs))]
    style.need(frames, profile, "training histories")
    log, pgd = official(base), style.cells(profile, "T1", kind="ours", metric="pgd20")
    figure, grid = style.panels(len(frames), len(titles), 1.9 * len(frames) + 1.0)
    for i, (axes, frame) in enumerate(zip(grid, frames)):
        method, first = frame["method"].iloc[0], frame[frame["seed"] == frame["seed"].min()]
        own = method.startswith("TRADES")  # trained and held out under its own attack: the marks are T1's
        shown = frame.drop(columns=["train_adv_acc", ROBUST]) if own else pd.concat([frame, log if i == 0 else None])
        for ax, title in zip(axes, titles):
            _curves(ax, shown, title)
            own_title = f"{method}: {title}" if title == "loss terms" and len(frames) > 1 else title if i == 0 else ""
            ax.set(title=own_title, xlabel="epoch" if i == len(grid) - 1 else "", ylabel="")
        marks(axes[-1], first if own else frame, pgd if own else None)
    everything, corner = pd.concat([*frames, log]), grid[0][0]
    for method in everything["method"].unique():
        corner.plot([], [], color=METHODS[method], label=method)
    for column, dash in (pair for title in titles for pair in PANELS[title].items()):
        if column in WORDS and column in everything:
            corner.plot([], [], color="black", linestyle=(0, dash) if dash else "-", label=WORDS[column])
    for mark, look in MARKS.items():
        corner.plot([], [], color="white", label=mark.replace("ema", "EMA"), **look)
    seeds = max(frame["seed"].nunique() for frame in frames)
    images = f", {base.train_size:,} training images" if base.train_size else ""
    note = f"{labels.dataset(base.dataset)}, {labels.network(base)}, {base.epochs} epochs{images}; "
    note += f"lines: mean over seeds (up to {seeds}), bands: their range" if seeds > 1 else "one seed"
    if len(log):
        note += "\nauthors' code: another person's run of 100 epochs, its rate falls later; tested under PGD-10"
    if "TRADES" in set(everything["method"]):
        note += "\nTRADES: the marks are accuracies under PGD-20 on test images"
    return style.finish(figure, note)


def sweeps(profile: str) -> Figure:
    """F4: what each setting and place changes against the default of the same seed, paired by image."""
    default, columns = experiments.main_pair(profile)[1], experiments.columns(profile, "settings")
    rows = experiments.ROWS[profile]["settings"] + experiments.ROWS[profile]["placement"]
    cells, colours = [], {labels.metric(metric): colour for metric, colour in style.ATTACKS.items()}
    for row in sorted(rows, key=lambda row: (str(row.value).count("+"), str(row.value))):
        usual, text = row.runs[0] == default, VALUES.get(row.value, str(row.value)).removesuffix(".0")
        text = text.replace("layer", "").replace("block", "") + ("\n(default)" if usual else "")
        for metric in [name for name in style.ATTACKS if name in columns] if row.axis in AXES else ():
            cell = {"value": 0.0} if usual else outcomes.gain(row.runs, (default,), columns[metric])
            cells.append({"axis": AXES[row.axis], "setting": text, "hue": labels.metric(metric)} | cell)
    frame = style.recorded(cells).groupby("axis").filter(lambda part: part["setting"].nunique() > 1)
    style.need(frame, profile, "varied settings")
    varied = [axis for axis in AXES.values() if axis in set(frame["axis"])]
    grid = sns.FacetGrid(frame, col="axis", col_order=varied, col_wrap=3, sharex=False, height=2.3)
    grid.figure.set_size_inches(style.WIDTH, 2.3 * -(-len(varied) // 3) + 0.5)
    for axis, ax in grid.axes_dict.items():
        part = frame[frame["axis"] == axis]
        style.series(ax, part, "setting", list(part["setting"].unique()), colours)
    grid.refline(y=0, color="black", linestyle="-", linewidth=0.8).set_titles("{col_name}")
    grid.set(xlabel="").set_ylabels("against default, points")
    note = f"AT + FSR, {style.setting(profile)}, seed 0; bars: paired 95 % intervals over images"
    return style.finish(grid.figure, note)


def attack_strength(profile: str) -> Figure:
    """F6: PGD accuracy against eps, which must fall to zero, and steps, which must not rise; below, FSR's gain."""
    (plain, both), cells, base = experiments.main_pair(profile), [], experiments.profile_of(profile).base
    scale, unit = (255, "/255") if base.eps < 0.1 else (1, "")
    for evaluation in experiments.evaluations(profile, "strength", plain):
        axis, x = ("eps", scale * (evaluation.eps or 0)) if evaluation.steps is None else ("steps", evaluation.steps)
        made = {"AT": outcomes.accuracy((plain,), evaluation), "AT + FSR": outcomes.accuracy((both,), evaluation)}
        made["AT + FSR − AT"] = outcomes.gain((both,), (plain,), evaluation)
        cells += [{"axis": axis, "x": x, "method": method} | cell for method, cell in made.items()]
    frame = style.recorded(cells).sort_values("x")
    style.need(frame[frame["x"] > 0], profile, "attacks of several strengths")
    figure, ((left, right), (left_below, right_below)) = style.panels(2, 2, 4.4, sharex="col", height_ratios=[2, 1])
    for (axis, method), rows in frame.groupby(["axis", "method"]):
        top, below = (left, left_below) if axis == "eps" else (right, right_below)
        if method not in METHODS:
            style.points(below, rows, rows["x"], METHODS["AT + FSR"])
            continue
        top.fill_between(rows["x"], rows["low"], rows["high"], color=METHODS[method], alpha=0.15, linewidth=0)
        top.plot(rows["x"], rows["value"], color=METHODS[method], marker="o", label=method)
        style.percent_axis(top)
    for ax in (left_below, right_below):
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title("AT + FSR − AT")
    for ax in (left, left_below):
        ax.axvline(scale * base.eps, color=style.GREY, linestyle=":", linewidth=1)
    left.set(title="radius, 20 steps", ylabel="accuracy", ylim=(-0.02, 1.02))
    right.set(title=f"steps, eps {scale * base.eps:g}{unit}")
    left_below.set(xlabel="eps, in 1/255" if unit else "eps", ylabel="points")
    right_below.set(xlabel="steps of PGD")
    style.log_axis(right_below, frame.loc[frame["axis"] == "steps", "x"])
    note = f"{style.setting(profile)}, seed 0, {int(frame['n'].min()):,} images; step 0.1 eps, no random start; "
    return style.finish(figure, note + "95 % intervals; dotted: the usual eps")


def gains(profile: str) -> Figure:
    """F7: the gain of FSR per attack, method and network, with paired 95 % intervals over images."""
    frame = style.cells(profile, "T1", kind="gain", checkpoint=experiments.profile_of(profile).report_checkpoint)
    style.need(frame, profile, "gains")
    data = frame["dataset"].map(labels.dataset) + ", " if frame["dataset"].nunique() > 1 else ""
    frame = frame.assign(hue=frame["row"].str.replace(": gain over ", " − "), where=data + frame["network"])
    frame["metric"] = frame["metric"].map(labels.metric)
    attacks, count = list(frame["metric"].unique()), frame["where"].nunique()
    colours = {name: METHODS[name.split(" − ")[0]] for name in frame["hue"].unique()}
    grid = sns.FacetGrid(frame, col="where", col_wrap=min(3, count), height=2.9)
    grid.figure.set_size_inches(style.WIDTH if count > 1 else 5.2, 2.9 * -(-count // 3))
    for place, ax in grid.axes_dict.items():
        part = frame[frame["where"] == place]
        style.series(ax, part, "metric", attacks, colours, horizontal=True)
        for metric in set(attacks) - set(part["metric"]):
            ax.text(0, attacks.index(metric), " not run", va="center", fontsize=7, color="#666666")
    grid.refline(x=0, color="black", linestyle="-", linewidth=0.8).set_titles("{col_name}")
    grid.set(ylim=(len(attacks) - 0.5, -0.5), ylabel="")
    grid.set_xlabels("gain in points" if len(colours) > 1 else f"{next(iter(colours))}, points")
    most = int(frame["n"].max())
    fewer = frame[frame["n"] < most].groupby("metric", sort=False)["n"].min()
    note = f"{style.setting(profile, network=False)}, {most:,} test images"
    note += "".join(f" ({name}: {int(n):,})" for name, n in fewer.items())
    thin = "; thin: over seeds too" if frame["seeds_low"].notna().any() else ""
    return style.finish(grid.figure, f"{note}; bars: paired 95 % over images{thin}")


def by_length(profile: str) -> pd.DataFrame:
    """Gain in Ensemble per training length and checkpoint: this profile's runs, then full-width pairs of the data."""
    base, cells = experiments.profile_of(profile).base, []
    for name, chosen in experiments.PROFILES.items():
        if name == profile or (chosen.scope == "pair" and chosen.base.dataset == base.dataset):
            rows = [row for row in experiments.ROWS[name]["whitebox"] if row.baseline and row.runs[0].method == "at"][
                :1
            ]
            rows += [row for row in experiments.ROWS[name]["settings"] if row.axis == "epochs"]
            for row, checkpoint in ((row, name) for row in rows for name in experiments.CHECKPOINTS):
                evaluation, run = (
                    Evaluation(attack="ensemble", checkpoint=checkpoint, images=chosen.images),
                    row.runs[0],
                )
                cell = {"network": labels.network(run), "epochs": run.epochs, "checkpoint": checkpoint}
                cells.append(cell | {"own": name == profile} | outcomes.gain(row.runs, row.baseline, evaluation))
    return style.recorded(cells).drop_duplicates(["own", "network", "epochs", "checkpoint"], keep="last")


def training_length(profile: str) -> Figure:
    """F10: the gain of FSR in Ensemble against training epochs; for a study of overfitting, its training curves."""
    if experiments.profile_of(profile).scope == "study":
        return training_curves(profile, tuple(PANELS)[1:])
    frame = by_length(profile)
    style.need(range(frame.loc[frame["own"].eq(True), "epochs"].nunique() - 1), profile, "trainings of several lengths")
    figure, (axes,) = style.panels(1, 3, 2.7, sharex=True, sharey=True)
    colours = dict(zip(frame["network"].unique(), (style.VERMILION, style.BLACK, style.GREEN)))
    for ax, checkpoint in zip(axes, experiments.CHECKPOINTS):
        for network, rows in frame[frame["checkpoint"] == checkpoint].sort_values("epochs").groupby("network"):
            style.points(ax, rows, rows["epochs"], colours[network], network, linestyle="-")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=labels.WEIGHTS[checkpoint], xlabel="training epochs")
        style.log_axis(ax, frame["epochs"])
    axes[0].set_ylabel("AT + FSR − AT, points")
    note = f"{labels.dataset(experiments.profile_of(profile).base.dataset)}, Ensemble, {frame['seeds'].min()} to "
    note += f"{frame['seeds'].max()} seeds; bars: paired 95 % intervals over images; thin: over seeds too"
    return style.finish(figure, note)
