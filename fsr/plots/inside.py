"""F1, F2 and F3: attention maps, the mask and what each stream knows about the class."""

from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fsr import experiments, statistics
from fsr.config import DATASETS
from fsr.files import MissingRecord
from fsr.plots import records, style

MAX_ROWS, OPACITY = 6, 0.72  # images of F1; of a map over its image
PROBES = {"aux": "auxiliary head (trained with the network)", "knn": "k nearest neighbours (never trained)"}
COLOURS = {"clean": style.GREY, "adv": style.BROWN}


def _picture(ax: Axes, image: np.ndarray, answer: int, truth: int, classes: list[str]) -> None:
    """An image (3, H, W) with the network's answer below it."""
    ax.imshow(np.moveaxis(image, 0, -1), interpolation="none")
    text, colour = ("right", style.GREEN) if answer == truth else ("wrong", style.VERMILION)
    options: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top", "fontsize": 6.5}
    ax.text(0.5, -0.04, f"{text}: {classes[answer]}", color=colour, **options)


def fooled_first(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Positions of the images that are right when clean and wrong under attack; of all images where there is none."""
    right = arrays["pred_clean"] == arrays["labels"]
    fooled = np.flatnonzero(right & (arrays["pred_adv"] != arrays["labels"]))
    return fooled if len(fooled) else np.arange(len(right))


def attention_maps(profile: str) -> Figure:
    """F1: images that the attack fools, with the attention maps of f, f+, f-, recalibrated f- and the output."""
    record, arrays = records.analysis(profile, experiments.main_pair(profile)[1], "maps")
    shown, classes = fooled_first(arrays)[:MAX_ROWS], record["class_names"]
    figure, grid = style.panels(len(shown), 2 + len(style.STREAMS), 1.1 * len(shown) + 0.65)
    for axes, i in zip(grid, shown):
        truth, attacked = arrays["labels"][i], arrays["adversarial"][i]
        _picture(axes[0], arrays["natural"][i], arrays["pred_clean"][i], truth, classes)
        _picture(axes[1], attacked, arrays["pred_adv"][i], truth, classes)
        options: dict[str, Any] = {"transform": axes[0].transAxes, "rotation": 90, "ha": "right", "va": "center"}
        axes[0].text(-0.05, 0.5, classes[truth], fontsize=7, **options)
        for ax, name in zip(axes[2:], style.STREAMS):
            heat = arrays["map_features" if name == "output" else f"map_{name}"][i].astype(float)
            ax.imshow(attacked.mean(0), cmap="gray", vmin=0, vmax=255, extent=(0, 1, 0, 1))
            ax.imshow(heat, cmap="inferno", alpha=OPACITY, interpolation="bilinear", extent=(0, 1, 0, 1))
        for ax in axes:
            ax.set_axis_off()
    titles = ["natural", "adversarial", *(text.replace(" ", "\n", 1) for text in style.STREAMS.values())]
    for ax, title in zip(grid[0], titles):
        ax.set_title(title, loc="center", fontsize=7.5)
    note = f"AT + FSR, {records.setting(profile, 'ema')}, PGD-20; {len(shown)} of the first {record['n']} test images\n"
    maps = "maps: mean over channels of |feature| on the adversarial image, each stretched to its own range"
    return style.finish(figure, note + maps)


def mask_histograms(profile: str) -> Figure:
    """F2: the distribution of the mask on clean and adversarial images, and its saturated share, per temperature."""
    rows: list[Any] = [row for row in experiments.ROWS[profile]["settings"] if row.axis == "tau"]
    found = []
    for row in sorted(rows, key=lambda row: row.value):
        with suppress(MissingRecord):
            found.append(records.analysis(profile, row.runs[0], "masks"))
    if not found:
        raise records.nothing(profile, "masks")
    width = min(style.WIDTH, 3.2 + 1.4 * len(found))
    figure, (axes,) = style.panels(1, len(found), 2.6, width, sharey=True)
    for ax, (record, arrays) in zip(axes, found):
        for (key, colour), dash in zip(COLOURS.items(), ("-", (0, (3, 1.5)))):
            share = arrays[f"hist_{key}"] / arrays[f"hist_{key}"].sum()
            ax.stairs(share, arrays["edges"], color=colour, linewidth=1.6, linestyle=dash)
        ax.set(xlim=(0, 1), xlabel="mask value $m$", yscale="log", xticks=[0, 0.5, 1])
        clean, attacked = (f"{100 * record[f'saturated_{key}']:.1f} %" for key in COLOURS)
        title = f"$\\tau$ = {record['tau']:g}\nsaturated: clean {clean},\nadversarial {attacked}"
        ax.set_title(title, fontsize=7.5)
    axes[0].set_ylabel("share of activations")
    words = ("clean images", "adversarial images")
    handles = [Patch(color=colour, label=text) for colour, text in zip(COLOURS.values(), words)]
    note = f"AT + FSR, {records.setting(profile, 'ema')}, seed 0, no noise;\nsaturated: m below 0.05 or above 0.95"
    return style.finish(figure, note, handles)


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
    steps = statistics.seed_summary(100 * (wide["recalibrated"] - wide["nonrobust"]))
    interval = f" [{steps.low:+.2f}, {steps.high:+.2f}] over {steps.n} seeds" if steps.n > 2 else ""
    numbers = f"{steps.mean:+.2f} points{interval}".replace("-", "−")
    return f"recalibrated minus non-robust, by neighbours: {numbers}" + ("" if steps.n > 1 else ", one seed")


def stream_bars(profile: str) -> Figure:
    """F3: accuracy of every stream under PGD-20 by two probes, and the step from non-robust to recalibrated."""
    cells, checkpoint = stream_shares(profile)
    figure, ((ax,),) = style.panels(1, 1, 2.9)
    colour = style.METHODS["AT + FSR"]
    options: dict[str, Any] = {"aux": {"facecolor": "white", "hatch": "///"}, "knn": {"facecolor": colour}}
    for (stream, probe), row in cells.iterrows():
        x = list(style.STREAMS).index(stream) + (-0.2 if probe == "aux" else 0.2)
        bars = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        ax.bar(x, row["value"], 0.37, edgecolor=colour, **options[probe])
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
    handles = [Patch(edgecolor=colour, label=text, **options[probe]) for probe, text in PROBES.items()]
    seeds = f"mean of {int(cells['seeds'].max())} seeds" if cells["seeds"].max() > 1 else "one seed"
    note = f"AT + FSR, {records.setting(profile, checkpoint)}, {seeds}"
    return style.finish(figure, f"{note}; bars: 95 % intervals over {int(cells['n'].min()):,} images", handles)
