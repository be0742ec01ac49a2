"""F5, and F10 of a study with few images: what a training shows epoch by epoch."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fsr import experiments, reference
from fsr.config import Run
from fsr.plots import records, style
from fsr.tables import labels

LOSSES: dict[str, tuple[str, Any]] = {
    "train_cls": ("loss: classification", "-"),
    "train_robust": ("loss: robust term", (0, (4, 1, 1, 1))),
    "train_sep": ("loss: separation", (0, (4, 1.5))),
    "train_rec": ("loss: recalibration", (0, (1, 1))),
}
CLEAN_DASH = (0, (4, 1.5))
MARKS = {"last": ("o", 6), "best": ("*", 7), "ema": ("D", 3)}  # all three can fall on one point and are still seen
OFFICIAL = {  # the authors' log -> our histories
    "train_adv_loss": "train_cls",
    "train_sep_loss": "train_sep",
    "train_rec_loss": "train_rec",
    "train_adv_acc": "train_adv_acc",
    "test_pgd10_acc": "held_robust_acc",
}


def official(run: Run) -> pd.DataFrame:
    """The log of the authors' code as one of our histories, cut to the run's epochs; empty for other networks."""
    if (run.dataset, run.backbone, run.width, run.train_size) != ("cifar10", "resnet18", None, None):
        return pd.DataFrame()
    log = reference.epoch_log().rename(columns=OFFICIAL)[["epoch", *OFFICIAL.values()]]
    log[["train_adv_acc", "held_robust_acc"]] /= 100
    return log[log["epoch"] <= run.epochs].assign(method="authors' code", seed=0)


def _colour(method: str) -> str:
    return style.METHODS.get(method, style.BLACK)  # what the palette lacks, and the authors' code


def _curve(ax: Axes, frame: pd.DataFrame, column: str, dash="-") -> None:
    """One line per method, mean over seeds, its band from the lowest to the highest seed."""
    if column in frame and frame[column].notna().any():
        palette = {method: _colour(method) for method in frame["method"].unique()}
        options: dict = {"hue": "method", "palette": palette, "errorbar": ("pi", 100), "legend": False}
        sns.lineplot(frame, x="epoch", y=column, ax=ax, linestyle=dash, **options)
        ax.set(xlabel="", ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def _marks(ax: Axes, frame: pd.DataFrame, cells: pd.DataFrame | None = None) -> None:
    """last, best (the first of equal epochs) and EMA of every training, or at their epochs the values of T1's cells."""
    robust = "held_robust_acc"
    for (method, _), part in frame[frame[robust].notna()].groupby(["method", "seed"]):
        last, best = part.iloc[-1], part.loc[part[robust].idxmax()]
        heights = {"last": last[robust], "best": best[robust], "ema": last["ema_held_robust_acc"]}
        if cells is not None:
            heights = cells[cells["row"] == method].drop_duplicates("checkpoint").set_index("checkpoint")["value"]
        for mark, (shape, size) in MARKS.items():
            options: dict = {"marker": shape, "markersize": size, "color": _colour(method), "linestyle": ""}
            options |= {"markeredgecolor": "black", "markeredgewidth": 0.5, "clip_on": False, "zorder": 4}
            ring = {"markeredgecolor": _colour(method), "fillstyle": "none"} if mark == "last" else {}
            epoch = (best if mark == "best" else last)["epoch"]
            ax.plot(epoch, heights.get(mark, float("nan")), **options | ring)


def _row(axes: list[Axes], frame: pd.DataFrame, log: pd.DataFrame, pgd: pd.DataFrame) -> None:
    """One method with and without FSR: losses, accuracy on attacked training images, on held-out images."""
    losses, training, held = axes
    both = pd.concat([frame, log], ignore_index=True)
    for column, (_, dash) in LOSSES.items():
        _curve(losses, both, column, dash)
    _curve(held, frame, "held_clean_acc", CLEAN_DASH)
    if frame["method"].iloc[0].startswith("TRADES"):
        _marks(held, frame[frame["seed"] == frame["seed"].min()], pgd)
        text = "TRADES trains against\nits own KL attack:\nnot comparable"
        training.text(0.5, 0.5, text, ha="center", va="center", transform=training.transAxes, color="#666666")
        training.set_axis_off()
    else:
        _curve(training, both, "train_adv_acc")
        _curve(held, both, "held_robust_acc")
        _marks(held, frame)
    for ax in (training, held):
        ax.set_ylim(-0.02, 1.02)
        style.percent_axis(ax)


def training_curves(profile: str) -> Figure:
    """F5: losses, accuracy on attacked training images and on held-out images per epoch, AT and AT + FSR overlaid."""
    base = experiments.profile_of(profile).base
    rows = [row for row in experiments.ROWS[profile]["whitebox"] if row.baseline]
    here = [row for row in rows if (row.runs[0].dataset, row.runs[0].backbone) == (base.dataset, base.backbone)]
    frames = [frame for row in here if len(frame := records.histories(row.baseline + row.runs))]
    if not frames:
        raise records.nothing(profile, "training histories")
    log, pgd = official(base), records.frame(profile, "T1", kind="ours", metric="pgd20")
    figure, grid = style.panels(len(frames), 3, 1.9 * len(frames) + 1.0)
    for i, (axes, frame) in enumerate(zip(grid, frames)):
        _row(axes, frame, log if i == 0 else log.iloc[:0], pgd)
        axes[0].set_title(f"{frame['method'].iloc[0]}: loss terms" if len(frames) > 1 else "loss terms")
    grid[0][1].set_title("training images, attacked")
    grid[0][2].set_title("held-out images")
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    everything = pd.concat([*frames, log])
    handles = [style.key(method, _colour(method)) for method in everything["method"].unique()]
    handles += [style.key(text, linestyle=dash) for name, (text, dash) in LOSSES.items() if name in everything]
    handles += [style.key("accuracy: clean", linestyle=CLEAN_DASH)]
    options = {"color": "white", "markeredgecolor": "black", "linestyle": ""}
    handles += [style.key(mark.replace("ema", "EMA"), marker=shape, **options) for mark, (shape, _) in MARKS.items()]
    seeds = max(frame["seed"].nunique() for frame in frames)
    note = f"{labels.dataset(base.dataset)}, {labels.network(base)}, {base.epochs} epochs; "
    note += f"lines: mean over seeds (up to {seeds}), bands: their range" if seeds > 1 else "one seed"
    if len(log):
        note += "\nauthors' code: another person's run of 100 epochs, its rate falls later; tested under PGD-10"
    if "TRADES" in set(everything["method"]):
        note += "\nTRADES: the marks are accuracies under PGD-20 on test images"
    return style.finish(figure, note, handles)


def overfitting(profile: str) -> Figure:
    """F10 of a study with few images: accuracy under attack on training and held-out images over epochs."""
    rows = [row for row in experiments.ROWS[profile]["whitebox"] if row.name in ("AT", "AT + FSR")]
    frame = records.histories([run for row in rows for run in row.runs])
    if frame.empty:
        raise records.nothing(profile, "training histories")
    figure, (axes,) = style.panels(1, 2, 2.9, sharey=True)
    columns = {"train_adv_acc": "training images, attacked", "held_robust_acc": "held-out images, attacked"}
    for ax, (column, title) in zip(axes, columns.items()):
        _curve(ax, frame, column)
        ax.set(title=title, xlabel="epoch")
        style.percent_axis(ax)
    _marks(axes[1], frame)
    handles = [style.key(method, _colour(method)) for method in frame["method"].unique()]
    base, seeds = experiments.profile_of(profile).base, frame["seed"].nunique()
    note = f"{labels.dataset(base.dataset)}, {labels.network(base)}, {base.epochs} epochs, {base.train_size:,} training"
    note += f" images, {seeds} seeds: mean and range; ring: last, star: best, diamond: EMA"
    return style.finish(figure, note, handles)
