"""F1, F2 and F3: attention maps, the mask and what each stream knows about the class."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from fsr import experiments, statistics
from fsr.config import DATASETS
from fsr.files import MissingRecord
from fsr.plots import records, style

MAX_ROWS, OPACITY, SMOOTH = 6, 0.72, 32  # images of F1; of a map over its image; pixels to which small images grow
MAPS = {f"map_{name}": name for name in ("f", "robust", "nonrobust", "recalibrated")} | {"map_features": "output"}
PROBES = {"aux": "auxiliary head (trained with the network)", "knn": "k nearest neighbours (never trained)"}


def overlay(image: np.ndarray, small: np.ndarray) -> np.ndarray:
    """A map (h, w), stretched to its own range, over its image (3, H, W) uint8 in grey: (H', W', 3) uint8."""
    times = max(1, SMOOTH // image.shape[1])
    grey = image.mean(axis=0).repeat(times, axis=0).repeat(times, axis=1)
    map_image = Image.fromarray(np.asarray(small, dtype=np.float32))
    large = np.asarray(map_image.resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    span = np.ptp(large) or 1.0
    heat = colormaps["inferno"]((large - large.min()) / span)[..., :3]
    return np.round((1 - OPACITY) * grey[..., None] + OPACITY * 255 * heat).astype(np.uint8)


def _answers(axes: list[Axes], arrays: dict, i: int, classes: list[str]) -> None:
    """The natural and the attacked image with the network's answers; the true class at the left."""
    truth = arrays["labels"][i]
    for ax, key, answer in ((axes[0], "natural", "pred_clean"), (axes[1], "adversarial", "pred_adv")):
        ax.imshow(np.moveaxis(arrays[key][i], 0, -1), interpolation="none")
        right = arrays[answer][i] == truth
        text = f"{'right' if right else 'wrong'}: {classes[arrays[answer][i]]}"
        options: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top", "fontsize": 6.5}
        ax.text(0.5, -0.04, text, color=style.GREEN if right else style.VERMILION, **options)
    options = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 7}
    axes[0].text(-0.05, 0.5, classes[truth], transform=axes[0].transAxes, **options)


def fooled_first(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Positions of the images that are right when clean and wrong under attack; of all images where there is none."""
    right = arrays["pred_clean"] == arrays["labels"]
    fooled = np.flatnonzero(right & (arrays["pred_adv"] != arrays["labels"]))
    return fooled if len(fooled) else np.arange(len(right))


@style.styled
def attention_maps(profile: str) -> Figure:
    """F1: images that the attack fools, with the attention maps of f, f+, f-, recalibrated f- and the output."""
    run = experiments.main_pair(profile)[1]
    record, arrays = records.analysis(profile, run, "maps")
    shown = fooled_first(arrays)[:MAX_ROWS]
    figure, grid = style.panels(len(shown), 2 + len(MAPS), 1.1 * len(shown) + 0.65)
    for axes, i in zip(grid, shown):
        for ax in axes:
            style.blank(ax)
        _answers(axes, arrays, i, record["class_names"])
        for ax, key in zip(axes[2:], MAPS):
            ax.imshow(overlay(arrays["adversarial"][i], arrays[key][i]), interpolation="none")
    titles = ["natural", "adversarial", *(style.STREAMS[name].replace(" ", "\n", 1) for name in MAPS.values())]
    for ax, title in zip(grid[0], titles):
        ax.set_title(title, loc="center", fontsize=7.5)
    note = f"AT + FSR, {records.setting(profile, 'ema')}, PGD-20; {len(shown)} of the first {record['n']} test images\n"
    maps = "maps: mean over channels of |feature| on the adversarial image, each stretched to its own range"
    return style.finish(figure, note + maps)


def mask_records(profile: str) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """Mask analyses of the trained temperatures, rising."""
    rows: list[Any] = [row for row in experiments.ROWS[profile]["settings"] if row.axis == "tau"]
    histograms = []
    for row in sorted(rows, key=lambda row: row.value):
        try:
            histograms.append(records.analysis(profile, row.runs[0], "masks"))
        except MissingRecord:
            continue
    return histograms


@style.styled
def mask_histograms(profile: str) -> Figure:
    """F2: the distribution of the mask on clean and adversarial images, and its saturated share, per temperature."""
    histograms = mask_records(profile)
    if not histograms:
        raise records.nothing(profile, "masks")
    figure, (axes,) = style.panels(
        1, len(histograms), 2.6, sharey=True, width=min(style.WIDTH, 3.2 + 1.4 * len(histograms))
    )
    for ax, (record, arrays) in zip(axes, histograms):
        saturated = []
        for key, colour, dash in (("clean", style.CLEAN, "-"), ("adv", style.ATTACKED, (0, (3, 1.5)))):
            share = arrays[f"hist_{key}"] / arrays[f"hist_{key}"].sum()
            ax.stairs(share, arrays["edges"], color=colour, linewidth=1.6, linestyle=dash)
            saturated.append(f"{100 * record[f'saturated_{key}']:.1f}")
        ax.set(xlim=(0, 1), xlabel="mask value $m$", yscale="log", xticks=[0, 0.5, 1])
        sentence = f"saturated: clean {saturated[0]} %,\nadversarial {saturated[1]} %"
        ax.set_title(f"$\\tau$ = {record['tau']:g}\n{sentence}", fontsize=7.5)
    axes[0].set_ylabel("share of activations")
    handles = [Patch(color=style.CLEAN, label="clean images"), Patch(color=style.ATTACKED, label="adversarial images")]
    note = f"AT + FSR, {records.setting(profile, 'ema')}, seed 0, no noise;\n"
    return style.finish(figure, note + "saturated: m below 0.05 or above 0.95", handles)


def stream_shares(profile: str) -> tuple[pd.DataFrame, str]:
    """T7 under PGD-20 of the first recorded weights: value, low, high, n, seeds per stream and probe; the checkpoint.

    The interval is Wilson's at the mean over seeds and the images of one seed.
    """
    frame = records.frame(profile, "T7", attack="pgd20")
    if frame.empty:
        raise records.nothing(profile, "streams")
    checkpoint = next(name for name in ("last", "ema") if name in set(frame["checkpoint"]))
    frame = frame[frame["checkpoint"] == checkpoint]
    cells = frame.groupby(["stream", "probe"]).agg(value=("accuracy", "mean"), n=("n", "min"), seeds=("seed", "count"))
    limits = [statistics.wilson(row.value * row.n, int(row.n)) for row in cells.itertuples()]
    return cells.assign(low=[low for low, _ in limits], high=[high for _, high in limits]), checkpoint


def _step_text(profile: str, checkpoint: str) -> str:
    """What the nearest neighbours find more in the recalibrated than in the non-robust stream, seed by seed."""
    frame = records.frame(profile, "T7", attack="pgd20", checkpoint=checkpoint, probe="knn")
    wide = frame.pivot(index="seed", columns="stream", values="accuracy")
    steps = 100 * (wide["recalibrated"] - wide["nonrobust"])
    summary = statistics.seed_summary(steps)
    sentence = f" [{summary.low:+.2f}, {summary.high:+.2f}] over {len(steps)} seeds" if len(steps) > 2 else ""
    sentence = f"{summary.mean:+.2f} points".replace("-", "−") + sentence.replace("-", "−")
    return f"recalibrated minus non-robust, by neighbours: {sentence}" + ("" if len(steps) > 1 else ", one seed")


@style.styled
def stream_bars(profile: str) -> Figure:
    """F3: accuracy of every stream under PGD-20 by two probes, and the step from non-robust to recalibrated."""
    cells, checkpoint = stream_shares(profile)
    figure, ((ax,),) = style.panels(1, 1, 2.9)
    colour = style.METHODS["AT + FSR"]
    options_of: dict[str, Any] = {"aux": {"facecolor": "white", "hatch": "///"}, "knn": {"facecolor": colour}}
    for (stream, probe), row in cells.iterrows():
        x = list(style.STREAMS).index(stream) + (-0.2 if probe == "aux" else 0.2)
        ax.bar(x, row["value"], 0.37, edgecolor=colour, **options_of[probe])
        bars = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        ax.errorbar(x, row["value"], bars, color="black", linewidth=0.9, capsize=2)
        ax.text(x, row["high"] + 0.01, f"{100 * row['value']:.1f}", ha="center", va="bottom", fontsize=7)
    chance = 1 / DATASETS[experiments.profile_of(profile).base.dataset].classes
    ax.axhline(chance, color=style.GREY, linestyle=":")
    ax.text(1.005, chance, "chance", transform=ax.get_yaxis_transform(), va="center", fontsize=7, color=style.GREY)
    ax.set_xticks(range(len(style.STREAMS)), list(style.STREAMS.values()))
    ax.set(ylim=(0, 1.2 * cells["high"].max()), ylabel="accuracy under PGD-20")
    ax.set_title(_step_text(profile, checkpoint))
    ax.grid(axis="x", visible=False)
    style.percent_axis(ax)
    handles = [Patch(edgecolor=colour, label=PROBES[probe], **options) for probe, options in options_of.items()]
    seeds = f"mean of {int(cells['seeds'].max())} seeds" if cells["seeds"].max() > 1 else "one seed"
    note = f"AT + FSR, {records.setting(profile, checkpoint)}, {seeds}"
    return style.finish(figure, f"{note}; bars: 95 % intervals over {int(cells['n'].min()):,} images", handles)
