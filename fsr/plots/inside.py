"""F1 to F3, F8 and F9: attention maps, the mask, what each stream knows about the class, its features, the module."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from scipy.linalg import orthogonal_procrustes

from fsr import experiments, statistics, store
from fsr.config import DATASETS
from fsr.plots import style

MAX_ROWS, OPACITY = 6, 0.72  # images of F1; of a map over its image
NEAR = 15  # neighbours of its own class that say how dense a cluster is at a point
IMAGES = {"clean": ("clean images", style.GREY, "-"), "adv": ("adversarial images", style.BROWN, (0, (3, 1.5)))}
HEAD, NEIGHBOURS = "auxiliary head (trained with the network)", "k nearest neighbours (never trained)"
PROBES: dict[str, Any] = {"aux": {"facecolor": "white", "hatch": "///", "label": HEAD}}
PROBES["knn"] = {"facecolor": style.VERMILION, "label": NEIGHBOURS}

# F9, drawn by code (Kim et al. 2023 and the authors' code).
# Boxes: centre in units of the drawing (100 x 54), text, fill.
BOXES: list[Any] = [
    (6, 27, "backbone\nup to the\nchosen stage", "#EDEDED"),
    (95, 40, "rest of the\nbackbone", "#EDEDED"),
]
BOXES += [
    (31, 27, "separation $S$\n3 convolutions", "#DCEBF7"),
    (66, 13, "recalibration $R$\n3 convolutions", "#FBE3D3"),
]
BOXES += [(51, 27, "mask $m$\n$\\sigma\\,((r + noise)\\,/\\,\\tau)$\nnoise: training only", "#DCEBF7")]
LOSSES = [
    (66, 50, "cross-entropy of $h(f^{+})$ with $y$", "white"),
    (43, 0, "cross-entropy of $h(f^{-})$ with $y'$", "white"),
]
LOSSES += [(85, 0, "cross-entropy of $h(\\tilde{f}^{\\,-})$ with $y$", "white")]
GATES: list[Any] = [
    (51, 40, "$\\times$"),
    (51, 13, "$\\times$"),
    (79, 13, "$\\times$"),
    (85, 13, "$+$"),
    (85, 40, "$+$"),
]
# Arrows as corners, by what they carry: f and r, m and 1 - m, f+ and f-, the recalibrated f- and the output.
ARROWS: list[Any] = [((11.3, 27), (24.9, 27)), ((19, 27), (19, 40), (49.2, 40)), ((19, 27), (19, 13), (49.2, 13))]
ARROWS += [
    ((37, 27), (43.2, 27)),
    ((51, 30.5), (51, 38.2)),
    ((51, 23.5), (51, 14.8)),
    ((58.5, 27), (79, 27), (79, 14.8)),
]
ARROWS += [((52.8, 40), (83.2, 40)), ((52.8, 13), (59.9, 13)), ((57, 13), (57, 6), (85, 6), (85, 11.2))]
ARROWS += [((72, 13), (77.2, 13)), ((80.8, 13), (83.2, 13)), ((85, 14.8), (85, 38.2)), ((86.8, 40), (90.1, 40))]
TO_LOSSES = [((66, 40), (66, 48.1)), ((54.5, 13), (54.5, 6), (43, 6), (43, 2)), ((85, 20), (92, 20), (92, 2))]
NAMES = [(15.2, 28.8, "$f$"), (38, 14.8, "$f$"), (38, 41.8, "$f$"), (40.4, 28.8, "$r$"), (53, 35, "$m$")]
NAMES += [(54.6, 18.4, "$1-m$"), (74, 28.8, "$1-m$"), (58.5, 42, "$f^{+}$  robust"), (56, 15, "$f^{-}$")]
NAMES += [(48.5, 8.3, "non-robust"), (92.2, 30, "$\\tilde{f}^{\\,-}$  recalibrated"), (88.6, 42.3, "$\\tilde f$")]
HEAD = "dashed: one auxiliary head $h$ (pool, linear),\nused by the training losses only;\n"
IDENTITY = (
    "$\\tilde f = f^{+} + \\tilde f^{\\,-} = f + (1-m)\\odot R(f^{-})$: the output is $f$ plus a gated correction"
)


def fooled_first(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Positions of the images that are right when clean and wrong under attack; of all images where there is none."""
    right = arrays["pred_clean"] == arrays["labels"]
    fooled = np.flatnonzero(right & (arrays["pred_adv"] != arrays["labels"]))
    return fooled if len(fooled) else np.arange(len(right))


def attention_maps(profile: str) -> Figure:
    """F1: images that the attack fools, with the attention maps of f, f+, f-, recalibrated f- and the output."""
    record, arrays = style.analysis(profile, experiments.main_pair(profile)[1], "maps")
    shown, classes = fooled_first(arrays)[:MAX_ROWS], record["class_names"]
    figure, grid = style.panels(len(shown), 2 + len(style.STREAMS), 1.1 * len(shown) + 0.65)
    titles = ["natural", "adversarial", *(text.replace(" ", "\n", 1) for text in style.STREAMS.values())]
    for axes, i in zip(grid, shown):
        truth, attacked = arrays["labels"][i], arrays["adversarial"][i]
        for ax, image, answer in zip(
            axes, (arrays["natural"][i], attacked), (arrays["pred_clean"][i], arrays["pred_adv"][i])
        ):
            ax.imshow(np.moveaxis(image, 0, -1), interpolation="none")
            text, colour = ("right", style.GREEN) if answer == truth else ("wrong", style.VERMILION)
            below: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top", "fontsize": 6.5}
            ax.text(0.5, -0.04, f"{text}: {classes[answer]}", color=colour, **below)
        left: dict[str, Any] = {"transform": axes[0].transAxes, "rotation": 90, "ha": "right", "va": "center"}
        axes[0].text(-0.05, 0.5, classes[truth], fontsize=7, **left)
        for ax, name in zip(axes[2:], style.STREAMS):
            heat = arrays["map_features" if name == "output" else f"map_{name}"][i].astype(float)
            ax.imshow(attacked.mean(0), cmap="gray", vmin=0, vmax=255, extent=(0, 1, 0, 1))
            ax.imshow(heat, cmap="inferno", alpha=OPACITY, interpolation="bilinear", extent=(0, 1, 0, 1))
        for ax, title in zip(axes, titles):
            ax.set_axis_off()
            ax.set_title(title if axes is grid[0] else "", loc="center", fontsize=7.5)
    note = f"AT + FSR, {style.setting(profile, 'ema')}, PGD-20; {len(shown)} of the first {record['n']} test images\n"
    maps = "maps: mean over channels of |feature| on the adversarial image, each stretched to its own range"
    return style.finish(figure, note + maps)


def mask_histograms(profile: str) -> Figure:
    """F2: the distribution of the mask on clean and adversarial images, and its saturated share, per temperature."""
    runs = [row.runs[0] for row in experiments.ROWS[profile]["settings"] if row.axis == "tau"]
    planned = [(run, one) for run in runs for one in experiments.analyses(profile, "all", run) if one.kind == "masks"]
    found = [store.load_analysis(*pair) for pair in planned if store.has_analysis(*pair)]
    style.need(found, profile, "masks")
    figure, (axes,) = style.panels(1, len(found), 2.6, min(style.WIDTH, 3.2 + 1.4 * len(found)), sharey=True)
    for ax, (record, arrays) in zip(axes, sorted(found, key=lambda pair: pair[0]["tau"])):
        for key, (label, colour, dash) in IMAGES.items():
            share = arrays[f"hist_{key}"] / arrays[f"hist_{key}"].sum()
            ax.stairs(share, arrays["edges"], color=colour, linewidth=1.6, linestyle=dash, label=label)
        ax.set(xlim=(0, 1), xlabel="mask value $m$", yscale="log", xticks=[0, 0.5, 1])
        clean, attacked = (f"{100 * record[f'saturated_{key}']:.1f} %" for key in IMAGES)
        ax.set_title(f"$\\tau$ = {record['tau']:g}\nsaturated: clean {clean},\nadversarial {attacked}", fontsize=7.5)
    axes[0].set_ylabel("share of activations")
    note = f"AT + FSR, {style.setting(profile, 'ema')}, seed 0, no noise;\nsaturated: m below 0.05 or above 0.95"
    return style.finish(figure, note)


def stream_bars(profile: str) -> Figure:
    """F3: accuracy of every stream under PGD-20 by two probes, and the step from non-robust to recalibrated.

    Mean over seeds; the interval is Wilson's of the images of one seed.
    """
    frame = style.cells(profile, "T7", attack="pgd20")
    style.need(frame, profile, "streams")
    checkpoint = "last" if "last" in set(frame["checkpoint"]) else "ema"
    frame = frame[frame["checkpoint"] == checkpoint]
    n, seeds, top = int(frame["n"].min()), frame["seed"].nunique(), 0.0
    figure, ((ax,),) = style.panels(1, 1, 2.9)
    for shift, (probe, look) in zip((-0.2, 0.2), PROBES.items()):
        values = frame[frame["probe"] == probe].groupby("stream")["accuracy"].mean()[list(style.STREAMS)].to_numpy()
        low, high = np.array([statistics.wilson(value * n, n) for value in values]).T
        at, top = np.arange(len(values)) + shift, max(top, *high)
        ax.bar(at, values, 0.37, edgecolor=style.VERMILION, **look)
        ax.errorbar(at, values, (values - low, high - values), color="black", linestyle="", linewidth=0.9, capsize=2)
        for x, value, end in zip(at, values, high):
            ax.text(x, end + 0.01, f"{100 * value:.1f}", ha="center", va="bottom", fontsize=7)
    chance = 1 / DATASETS[experiments.profile_of(profile).base.dataset].classes
    ax.axhline(chance, color=style.GREY, linestyle=":")
    ax.text(1.005, chance, "chance", transform=ax.get_yaxis_transform(), va="center", fontsize=7, color=style.GREY)
    ax.set_xticks(range(len(style.STREAMS)), list(style.STREAMS.values()))
    ax.set(ylim=(0, 1.2 * top), ylabel="accuracy under PGD-20")
    by_seed = frame[frame["probe"] == "knn"].pivot(index="seed", columns="stream", values="accuracy")
    step = statistics.seed_summary(100 * (by_seed["recalibrated"] - by_seed["nonrobust"]))
    interval = f" [{step.low:+.2f}, {step.high:+.2f}] over {step.n} seeds" if step.n > 2 else ""
    text = f"{step.mean:+.2f} points{interval}".replace("-", "−") + ("" if step.n > 1 else ", one seed")
    ax.set_title(f"recalibrated minus non-robust, by neighbours: {text}")
    ax.grid(axis="x", visible=False)
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    note = f"AT + FSR, {style.setting(profile, checkpoint)}, {f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}"
    return style.finish(figure, f"{note}; bars: 95 % intervals over {n:,} images")


def aligned(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """points (n, 2) moved, turned or mirrored to lie as near as possible to target (n, 2): Procrustes without scale."""
    centred, middle = points - points.mean(axis=0), target.mean(axis=0)
    return centred @ orthogonal_procrustes(centred, target - middle)[0] + middle


def densest(points: np.ndarray, taken: list[np.ndarray], apart: np.ndarray) -> np.ndarray:
    """The point (2,) where points (n, 2) lie densest, outside boxes `apart` (2,) around the taken places if any is."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    order = np.sort(distances, axis=1)[:, : NEAR + 1].mean(axis=1).argsort(kind="stable")
    free = [i for i in order if all((np.abs(points[i] - other) >= apart).any() for other in taken)]
    return points[(free or list(order))[0]]


def feature_space(profile: str) -> Figure:
    """F8: t-SNE of pooled f- and recalibrated f- of adversarial images, the second turned onto the first."""
    record, arrays = style.analysis(profile, experiments.main_pair(profile)[1], "features")
    shares = style.cells(profile, "T7", attack="pgd20", checkpoint="ema", probe="knn", seed=0).set_index("stream")
    figure, (axes,) = style.panels(1, 2, 3.9)
    name: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5, "zorder": 5, "fontweight": "bold"}
    name["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
    for ax, stream in zip(axes, ("nonrobust", "recalibrated")):
        points = aligned(*(arrays[f"tsne_{key}"].astype(float) for key in (stream, "nonrobust")))
        taken: list[np.ndarray] = []
        for label in np.unique(arrays["labels"])[: len(style.CLASSES)]:
            part, colour = points[arrays["labels"] == label], style.CLASSES[label]
            ax.scatter(part[:, 0], part[:, 1], s=4, color=colour, linewidths=0, alpha=0.65, rasterized=True)
            taken.append(densest(part, taken, np.ptp(points, axis=0) * (0.2, 0.06)))
            x, y = taken[-1]
            ax.text(x, y, record["class_names"][label], color=colour, **name)
        ax.set(xticks=[], yticks=[])
        ax.margins(0.09)
        ax.spines[:].set_visible(True)
        share = shares["accuracy"].get(stream)
        ax.set_title(style.STREAMS[stream] + ("" if share is None else f": {100 * share:.1f} % by nearest neighbours"))
    note = f"AT + FSR, {style.setting(profile, 'ema')}, seed 0, {len(arrays['labels']):,} images under PGD-20;\n"
    return style.finish(figure, note + "t-SNE keeps neighbourhoods: distances between groups mean nothing")


def module_diagram(profile: str) -> Figure:
    """F9: separation above, recalibration below, one addition at the end; the same for every profile."""
    figure, ((ax,),) = style.panels(1, 1, 4.2)
    ax.set(xlim=(0, 100), ylim=(-3.5, 53.5), aspect="equal")
    ax.set_axis_off()
    centred: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 3}
    solid: dict[str, Any] = {"edgecolor": "#333333", "linewidth": 0.9}
    dashed = solid | {"edgecolor": "#777777", "linestyle": (0, (3, 2))}
    for x, y, text, fill in BOXES + LOSSES:
        box = (dashed if fill == "white" else solid) | {
            "facecolor": fill,
            "boxstyle": "round,pad=0.8,rounding_size=0.6",
        }
        ax.text(x, y, text, fontsize=6.6, bbox=box, **centred)
    for x, y, sign in GATES:
        box = solid | {"facecolor": "white", "boxstyle": "circle,pad=0.45"}
        ax.text(x, y, sign, fontsize=8.5, bbox=box, **centred)
    for corners in ARROWS + TO_LOSSES:
        look = dashed if corners in TO_LOSSES else solid
        look = look | {"facecolor": look["edgecolor"], "arrowstyle": "-|>", "mutation_scale": 8}
        ax.add_patch(FancyArrowPatch(path=Path(corners), **look))
    for x, y, text in NAMES:
        ax.text(x, y, text, fontsize=7.5, **centred)
    ax.text(1, 50.5, HEAD + "$y'$ = most probable wrong class", va="center", fontsize=6.6, color="#777777")
    return style.finish(figure, IDENTITY)
