"""F4 to F7 and F10: training curves, and what FSR adds, in points, per setting, attack, strength and length."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fsr import experiments, reference
from fsr.config import Evaluation, Run
from fsr.plots import style
from fsr.plots.style import METHODS
from fsr.tables import labels, outcomes

VALUE = ["value", "low", "high", "seeds_low", "seeds_high", "n", "seeds"]
DASHED, ROBUST = (4, 1.5), "held_robust_acc"
# Panels of F5: column of a history, its words in the legend, its dashes.
LOSSES: tuple[Any, ...] = (
    ("train_cls", "loss: classification", ""),
    ("train_robust", "loss: robust term", (4, 1, 1, 1)),
)
LOSSES += (("train_sep", "loss: separation", DASHED), ("train_rec", "loss: recalibration", (1, 1)))
HELD_OUT = ((ROBUST, "", ""), ("held_clean_acc", "accuracy: clean", DASHED))
PANELS: dict[str, Any] = {"loss terms": LOSSES, "training images, attacked": (("train_adv_acc", "", ""),)}
PANELS["held-out images"] = HELD_OUT
LOG = {"train_adv_loss": "train_cls", "train_sep_loss": "train_sep", "train_rec_loss": "train_rec"}
LOG |= {"train_adv_acc": "train_adv_acc", "test_pgd10_acc": ROBUST}  # the authors' log -> our histories
EDGE: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.5, "linestyle": ""}
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
    dashes = {column: dash for column, _, dash in PANELS[title] if column in frame}
    long = frame.melt(["epoch", "method", "seed"], list(dashes)).dropna()
    if long.empty:
        text = "TRADES trains against\nits own KL attack:\nnot comparable"
        ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color="#666666")
        return ax.set_axis_off()
    look: dict = {"hue": "method", "palette": METHODS, "style": "variable", "dashes": dashes, "errorbar": ("pi", 100)}
    sns.lineplot(long, x="epoch", y="value", legend=False, ax=ax, **look)
    ax.locator_params("x", nbins=5, integer=True, min_n_ticks=1)
    if title != "loss terms":
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))


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
            words = f"{method}: {title}" if title == "loss terms" and len(frames) > 1 else title if i == 0 else ""
            ax.set(title=words, xlabel="epoch" if i == len(grid) - 1 else "", ylabel="")
        marks(axes[-1], first if own else frame, pgd if own else None)
    everything, corner, seeds = pd.concat([*frames, log]), grid[0][0], max(frame["seed"].nunique() for frame in frames)
    for method in everything["method"].unique():
        corner.plot([], [], color=METHODS[method], label=method)
    for column, words, dash in (term for title in titles for term in PANELS[title]):
        if words and column in everything:
            corner.plot([], [], color="black", linestyle=(0, dash) if dash else "-", label=words)
    for mark, look in MARKS.items():
        corner.plot([], [], color="white", label=mark.replace("ema", "EMA"), **look)
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
    rows: list[Any] = [
        row for kind in ("settings", "placement") for row in experiments.ROWS[profile][kind] if row.axis in AXES
    ]
    cells, metrics = [], {name: labels.metric(name) for name in style.ATTACKS if name in columns}
    for row in sorted(rows, key=lambda row: (list(AXES).index(row.axis), str(row.value).count("+"), str(row.value))):
        usual, text = row.runs[0] == default, VALUES.get(row.value, str(row.value)).removesuffix(".0")
        text = text.replace("layer", "").replace("block", "") + ("\n(default)" if usual else "")
        for metric, words in metrics.items():
            cell = {"value": 0.0} if usual else outcomes.gain(row.runs, (default,), columns[metric])
            cells.append({"panel": AXES[row.axis], "setting": text, "hue": words} | cell)
    frame = pd.DataFrame(cells, columns=["panel", "setting", "hue", *VALUE]).dropna(subset="value")
    frame = frame[frame.groupby("panel")["setting"].transform("nunique") > 1]
    style.need(frame, profile, "varied settings")
    grid = style.facets(frame, "setting", {words: style.ATTACKS[name] for name, words in metrics.items()})
    grid.set(xlabel="").set_ylabels("against default, points")
    note = f"AT + FSR, {style.setting(profile)}, seed 0; bars: paired 95 % intervals over images"
    return style.finish(grid.figure, note)


def attack_strength(profile: str) -> Figure:
    """F6: PGD accuracy against eps, which must fall to zero, and steps, which must not rise; below, FSR's gain."""
    (plain, both), cells, eps = experiments.main_pair(profile), [], experiments.profile_of(profile).base.eps
    scale, unit = (255, "/255") if eps < 0.1 else (1, "")
    for one in experiments.evaluations(profile, "strength", plain):
        axis, x = ("eps", scale * (one.eps or 0)) if one.steps is None else ("steps", one.steps)
        made = {"AT": outcomes.accuracy((plain,), one), "AT + FSR": outcomes.accuracy((both,), one)}
        made["gain"] = outcomes.gain((both,), (plain,), one)
        cells += [{"axis": axis, "x": x, "method": method} | cell for method, cell in made.items()]
    frame = pd.DataFrame(cells, columns=["axis", "x", "method", *VALUE]).dropna(subset="value").sort_values("x")
    style.need(frame[frame["x"] > 0], profile, "attacks of several strengths")
    figure, grid = style.panels(2, 2, 4.4, sharex="col", height_ratios=[2, 1])
    (left, right), (left_below, right_below) = grid
    for axis, top, below in zip(("eps", "steps"), *grid):
        for method, rows in frame[frame["axis"] == axis].groupby("method"):
            if method == "gain":
                style.points(below, rows, rows["x"], METHODS["AT + FSR"])
                continue
            top.fill_between(rows["x"], rows["low"], rows["high"], color=METHODS[method], alpha=0.15, linewidth=0)
            top.plot(rows["x"], rows["value"], color=METHODS[method], marker="o", label=method)
        top.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        below.axhline(0, color="black", linewidth=0.8)
        (left if axis == "eps" else left_below).axvline(scale * eps, color=style.GREY, linestyle=":", linewidth=1)
    steps = sorted(set(frame.loc[frame["axis"] == "steps", "x"]))
    left.set(title="radius, 20 steps", ylabel="accuracy", ylim=(-0.02, 1.02))
    right.set(title=f"steps, eps {scale * eps:g}{unit}", xscale="log")
    left_below.set(title="AT + FSR − AT", xlabel="eps, in 1/255" if unit else "eps", ylabel="points")
    right_below.set(title="AT + FSR − AT", xlabel="steps of PGD", xticks=steps, xticklabels=[f"{x:g}" for x in steps])
    right_below.minorticks_off()
    note = f"{style.setting(profile)}, seed 0, {int(frame['n'].min()):,} images; step 0.1 eps, no random start; "
    return style.finish(figure, note + "95 % intervals; dotted: the usual eps")


def gains(profile: str) -> Figure:
    """F7: the gain of FSR per attack, method and network, with paired 95 % intervals over images."""
    frame = style.cells(profile, "T1", kind="gain", checkpoint=experiments.profile_of(profile).report_checkpoint)
    style.need(frame, profile, "gains")
    data = frame["dataset"].map(labels.dataset) + ", " if frame["dataset"].nunique() > 1 else ""
    hue, attack = frame["row"].str.replace(": gain over ", " − "), frame["metric"].map(labels.metric)
    frame = frame.assign(hue=hue, panel=data + frame["network"], attack=attack)
    colours = {name: METHODS[name.split(" − ")[0]] for name in hue.unique()}
    grid = style.facets(frame, "attack", colours, horizontal=True)
    attacks = list(attack.unique())
    for panel, ax in grid.axes_dict.items():
        for missing in (name for name in attacks if name not in set(attack[frame["panel"] == panel])):
            ax.text(0, attacks.index(missing), " not run", va="center", fontsize=7, color="#666666")
    grid.set(ylim=(len(attacks) - 0.5, -0.5), ylabel="")
    grid.set_xlabels("gain in points" if len(colours) > 1 else f"{next(iter(colours))}, points")
    most = int(frame["n"].max())
    fewer = frame[frame["n"] < most].groupby("attack", sort=False)["n"].min()
    images = f"{most:,} test images" + "".join(f" ({name}: {int(n):,})" for name, n in fewer.items())
    thin = "; thin: over seeds too" if frame["seeds_low"].notna().any() else ""
    note = f"{style.setting(profile, network=False)}, {images}; bars: paired 95 % over images{thin}"
    return style.finish(grid.figure, note)


def by_length(profile: str) -> pd.DataFrame:
    """Gain in Ensemble per training length and checkpoint: this profile's runs, then full-width pairs of the data."""
    base, cells = experiments.profile_of(profile).base, []
    for name, chosen in experiments.PROFILES.items():
        of = (
            experiments.ROWS[name]
            if name == profile or (chosen.scope, chosen.base.dataset) == ("pair", base.dataset)
            else {}
        )
        pairs = [row for row in of.get("whitebox", ()) if row.baseline and row.runs[0].method == "at"][:1]
        pairs += [row for row in of.get("settings", ()) if row.axis == "epochs"]
        for row, checkpoint in ((row, checkpoint) for row in pairs for checkpoint in experiments.CHECKPOINTS):
            evaluation = Evaluation(attack="ensemble", checkpoint=checkpoint, images=chosen.images)
            cell = {"hue": labels.network(row.runs[0]), "epochs": row.runs[0].epochs, "own": name == profile}
            cell |= {"panel": labels.WEIGHTS[checkpoint]}
            cells.append(cell | outcomes.gain(row.runs, row.baseline, evaluation))
    frame = pd.DataFrame(cells, columns=["panel", "hue", "epochs", "own", *VALUE]).dropna(subset="value")
    return frame.drop_duplicates(["own", "hue", "epochs", "panel"], keep="last").sort_values("epochs", kind="stable")


def training_length(profile: str) -> Figure:
    """F10: the gain of FSR in Ensemble against training epochs; for a study of overfitting, its training curves."""
    if experiments.profile_of(profile).scope == "study":
        return training_curves(profile, tuple(PANELS)[1:])
    frame = by_length(profile)
    style.need(frame["epochs"][frame["own"]].unique()[1:], profile, "trainings of several lengths")
    colours = dict(zip(frame["hue"].unique(), (style.VERMILION, style.BLACK, style.GREEN)))
    grid = style.facets(frame, "epochs", colours)
    grid.set(xlabel="training epochs").set_ylabels("AT + FSR − AT, points")
    seeds = f"{frame['seeds'].min():.0f} to {frame['seeds'].max():.0f} seeds"
    note = f"{labels.dataset(experiments.profile_of(profile).base.dataset)}, Ensemble, {seeds}; "
    return style.finish(grid.figure, note + "bars: paired 95 % intervals over images; thin: over seeds too")
