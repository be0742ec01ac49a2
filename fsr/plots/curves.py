"""F5, the second half of F10, and the curves of one training."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fsr import experiments, reference, store
from fsr.config import Run
from fsr.plots import records, style
from fsr.tables import labels

LOSSES = {"train_cls": "classification", "train_robust": "robust term", "train_sep": "separation"}
LOSSES |= {"train_rec": "recalibration"}
DASHES = dict(zip(LOSSES, ("-", (0, (4, 1, 1, 1)), (0, (4, 1.5)), (0, (1, 1)))))
CLEAN_DASH = (0, (4, 1.5))
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
    percent = ["train_adv_acc", "held_robust_acc"]
    log[percent] /= 100
    return log[log["epoch"] <= run.epochs].assign(method="authors' code", seed=0)


def _curve(ax: Axes, frame: pd.DataFrame, column: str, dash="-") -> None:
    """One line per method, mean over seeds, its band from the lowest to the highest seed."""
    if column in frame and frame[column].notna().any():
        palette = {method: style.colour(method) for method in frame["method"].unique()}
        options = {"hue": "method", "palette": palette, "errorbar": ("pi", 100), "legend": False}
        sns.lineplot(frame, x="epoch", y=column, ax=ax, linestyle=dash, **options)
        ax.set(xlabel="", ylabel="")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def _marks(ax: Axes, frame: pd.DataFrame) -> None:
    """last, best (the first of equal epochs, seed by seed) and EMA of every training."""
    for (method, _), part in frame[frame["held_robust_acc"].notna()].groupby(["method", "seed"]):
        if method == "authors' code":
            continue
        spots = {"last": part.iloc[-1], "best": part.loc[part["held_robust_acc"].idxmax()], "ema": part.iloc[-1]}
        for mark, row in spots.items():
            _mark(ax, mark, row["epoch"], row["ema_held_robust_acc" if mark == "ema" else "held_robust_acc"], method)


def _mark(ax: Axes, mark: str, x: float, y: float, method: str) -> None:
    options: dict = {"clip_on": False, "zorder": 4, "linestyle": "", "markeredgecolor": "black", "markeredgewidth": 0.5}
    options |= {"markeredgecolor": style.colour(method), "fillstyle": "none"} if mark == "last" else {}
    size = {"last": 6, "best": 7, "ema": 3}[mark]  # all three can fall on one point and are still seen
    ax.plot(x, y, marker=style.MARKERS[mark], color=style.colour(method), markersize=size, **options)


def _under_pgd(ax: Axes, frame: pd.DataFrame, cells: pd.DataFrame) -> None:
    """PGD-20 on test images (T1's cells) at last, best and EMA, of methods that train against another attack."""
    for method, part in frame.groupby("method"):
        at = {"last": part["epoch"].max(), "ema": part["epoch"].max()}
        at["best"] = part.loc[part["held_robust_acc"].idxmax(), "epoch"]
        for row in cells[cells["row"] == method].drop_duplicates("checkpoint").itertuples():
            _mark(ax, row.checkpoint, at[row.checkpoint], row.value, method)


def _row(axes: list[Axes], frame: pd.DataFrame, log: pd.DataFrame, pgd: pd.DataFrame) -> None:
    """One method with and without FSR: losses, accuracy on attacked training images, on held-out images."""
    losses, training, held = axes
    both = pd.concat([frame, log], ignore_index=True)
    for column, dash in DASHES.items():
        _curve(losses, both, column, dash)
    _curve(held, frame, "held_clean_acc", CLEAN_DASH)
    if "TRADES" in frame["method"].iloc[0]:
        _under_pgd(held, frame, pgd)
        text = "TRADES trains against\nits own KL attack:\nnot comparable"
        training.text(0.5, 0.5, text, ha="center", va="center", transform=training.transAxes, color="#666666")
        style.blank(training)
    else:
        _curve(training, both, "train_adv_acc")
        _curve(held, both, "held_robust_acc")
        _marks(held, frame)
    for ax in (training, held):
        ax.set_ylim(-0.02, 1.02)
        style.percent_axis(ax)
    losses.set_ylabel(frame["method"].iloc[0])


def _figure(frames: list[pd.DataFrame], log: pd.DataFrame, pgd: pd.DataFrame, note: str) -> Figure:
    """A row of panels per method; the log stands in the first."""
    figure, grid = style.panels(len(frames), 3, 1.9 * len(frames) + 1.0)
    for i, (axes, frame) in enumerate(zip(grid, frames)):
        _row(axes, frame, log.iloc[: None if i == 0 else 0], pgd)
    for ax, title in zip(grid[0], ("loss terms", "training images, attacked", "held-out images")):
        ax.set_title(title)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    methods = dict.fromkeys(m for frame in (*frames, log) if len(frame) for m in frame["method"])
    handles = [style.key(method, style.colour(method)) for method in methods]
    recorded = [name for name in LOSSES if any(name in frame for frame in frames)]
    handles += [style.key(f"loss: {LOSSES[name]}", linestyle=DASHES[name]) for name in recorded]
    handles += [style.key("accuracy: clean", linestyle=CLEAN_DASH)]
    options = {"color": "white", "markeredgecolor": "black", "linestyle": ""}
    handles += [style.key(mark.replace("ema", "EMA"), marker=shape, **options) for mark, shape in style.MARKERS.items()]
    return style.finish(figure, note, handles)


@style.styled
def training_curves(profile: str) -> Figure:
    """F5: losses, accuracy on attacked training images and on held-out images per epoch, AT and AT + FSR overlaid."""
    base = experiments.profile_of(profile).base
    rows = [row for row in experiments.ROWS[profile]["whitebox"] if row.baseline]
    here = [row for row in rows if (row.runs[0].dataset, row.runs[0].backbone) == (base.dataset, base.backbone)]
    frames = [frame for row in here if len(frame := records.histories(row.baseline + row.runs))]
    if not frames:
        raise records.nothing(profile, "training histories")
    log, seeds = official(base), max(frame["seed"].nunique() for frame in frames)
    note = records.setting(profile, weights=False)
    note += f"; lines: mean over seeds (up to {seeds}), bands: their range" if seeds > 1 else "; one seed"
    if len(log):
        note += "\nauthors' code: another person's run of 100 epochs, its rate falls later; tested under PGD-10"
    if any("TRADES" in frame["method"].iloc[0] for frame in frames):
        note += "\nTRADES: the marks are accuracies under PGD-20 on test images"
    return _figure(frames, log, records.frame(profile, "T1", kind="ours", metric="pgd20"), note)


@style.styled
def training(run: Run) -> Figure:
    """The same panels of one run, so far; MissingRecord when it has not begun."""
    frame = store.history(run).assign(method=labels.method(run.label), seed=run.seed)
    note = f"{labels.dataset(run.dataset)}, {labels.network(run)}, seed {run.seed}"
    return _figure([frame], pd.DataFrame(), pd.DataFrame(columns=["row"]), note)


@style.styled
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
    handles = [style.key(method, style.colour(method)) for method in dict.fromkeys(frame["method"])]
    size, seeds = experiments.profile_of(profile).base.train_size, frame["seed"].nunique()
    note = f"{records.setting(profile, weights=False)}, {size:,} training images, {seeds} seeds: mean and range"
    return style.finish(figure, note + "; ring: last, star: best, diamond: EMA", handles)
