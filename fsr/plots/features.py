"""F1 to F3, F8 and F9: attention maps, the mask, what each stream knows about the class, its features, the module."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial import procrustes

from fsr import experiments, statistics
from fsr.config import DATASETS
from fsr.plots import style
from fsr.tables.labels import measured

MAX_ROWS, OPACITY = 6, 0.72  # images of F1; of a map over its image
IMAGES = {"clean": ("clean images", style.GREY, "-"), "adv": ("adversarial images", style.BROWN, (0, (3, 1.5)))}
HEAD = "auxiliary head (trained with the network)"
PROBES: dict[str, Any] = {"aux": {"facecolor": "white", "hatch": "///", "label": HEAD}}
PROBES["knn"] = {"facecolor": style.VERMILION, "label": "k nearest neighbours (never trained)"}
# F9, drawn by code (Kim et al. 2023 and the authors' code): centre of a box in units of the drawing, its text
BOXES = {
    "f": (7, 50, "backbone up to\nthe chosen stage:\nfeatures $f$"),
    "m": (33, 50, "separation $S$ gives the mask\n$m = \\sigma\\,((S(f) + noise)\\,/\\,\\tau)$\nnoise: training only"),
    "f+": (33, 80, "robust features\n$f^{+} = m \\odot f$"),
    "f-": (33, 20, "non-robust features\n$f^{-} = (1 - m) \\odot f$"),
    "R": (66, 20, "recalibrated by $R$\n$\\tilde f^{\\,-} = f^{-} + (1 - m) \\odot R(f^{-})$"),
    "out": (66, 80, "output\n$\\tilde f = f^{+} + \\tilde f^{\\,-}$"),
    "rest": (93, 80, "rest of the\nbackbone"),
    "L+": (33, 105, "cross-entropy of $h(f^{+})$ with $y$"),
    "L-": (33, -5, "cross-entropy of $h(f^{-})$ with $y'$"),
    "LR": (66, -5, "cross-entropy of $h(\\tilde f^{\\,-})$ with $y$"),
}
LOSSES = ("L+", "L-", "LR")
FILLS = {"f": "#EDEDED", "rest": "#EDEDED", "m": "#DCEBF7", "R": "#FBE3D3"}
ARROWS = [("f", "m"), ("f", "f+"), ("f", "f-"), ("m", "f+"), ("m", "f-"), ("f-", "R"), ("R", "out"), ("f+", "out")]
ARROWS += [("out", "rest"), ("f+", "L+"), ("f-", "L-"), ("R", "LR")]
IDENTITY = r"$\tilde f = f^{+} + \tilde f^{\,-} = f + (1-m)\odot R(f^{-})$: the output is $f$ plus a gated correction"
TRAINING = "Dashed: one auxiliary head $h$, used by the training losses only; $y'$: the most probable wrong class"


def attention_maps(profile: str) -> Figure:
    """F1: images that the attack fools (else the first ones), and the attention maps of every stream."""
    ((record, arrays),) = style.analyses(profile, experiments.main_pair(profile)[1:], "maps")
    classes, truth = record["class_names"], arrays["labels"]
    fooled = np.flatnonzero((arrays["pred_clean"] == truth) & (arrays["pred_adv"] != truth))
    shown = (fooled if len(fooled) else np.arange(len(truth)))[:MAX_ROWS]
    figure, grid = style.panels(len(shown), 2 + len(style.STREAMS), 1.1 * len(shown) + 0.65)
    titles = ["natural", "adversarial", *(text.replace(" ", "\n", 1) for text in style.STREAMS.values())]
    for axes, i in zip(grid, shown):
        for ax, image, answers in zip(axes, ("natural", "adversarial"), ("pred_clean", "pred_adv")):
            ax.imshow(np.moveaxis(arrays[image][i], 0, -1), interpolation="none")
            answer = arrays[answers][i]
            text, colour = ("right", style.GREEN) if answer == truth[i] else ("wrong", style.VERMILION)
            ax.set_xlabel(f"{text}: {classes[answer]}", color=colour, fontsize=6.5)
        axes[0].set_ylabel(classes[truth[i]], fontsize=7)
        for ax, name in zip(axes[2:], style.STREAMS):
            heat = arrays["map_features" if name == "output" else f"map_{name}"][i].astype(float)
            ax.imshow(arrays["adversarial"][i].mean(0), cmap="gray", vmin=0, vmax=255, extent=(0, 1, 0, 1))
            ax.imshow(heat, cmap="inferno", alpha=OPACITY, interpolation="bilinear", extent=(0, 1, 0, 1))
        for ax, title in zip(axes, titles):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_title(title if axes is grid[0] else "", loc="center", fontsize=7.5)
    chosen = f"the first of {len(fooled)} fooled" if len(fooled) else "none is fooled"
    note = f"AT + FSR, {style.setting(profile, 'ema')}, seed 0, PGD-20 on {record['n']} test images: {chosen}; "
    maps = "maps: mean over channels of |feature| on the adversarial image, each stretched to its own range"
    return style.finish(figure, note + maps)


def mask_histograms(profile: str) -> Figure:
    """F2: the distribution of the mask on clean and adversarial images, and its saturated share, per temperature."""
    runs = [row.runs[0] for row in experiments.ROWS[profile]["settings"] if row.axis == "tau"]
    masks = sorted(style.analyses(profile, runs, "masks"), key=lambda pair: pair[0]["tau"])
    figure, (axes,) = style.panels(1, len(masks), 2.6, min(style.WIDTH, 3.2 + 1.4 * len(masks)), sharey=True)
    for ax, (record, arrays) in zip(axes, masks):
        for key, (label, colour, dash) in IMAGES.items():
            share = arrays[f"hist_{key}"] / arrays[f"hist_{key}"].sum()
            ax.stairs(share, arrays["edges"], color=colour, linewidth=1.6, linestyle=dash, label=label)
        ax.set(xlim=(0, 1), xlabel="mask value $m$", yscale="log", xticks=[0, 0.5, 1])
        clean, attacked = (f"{100 * record[f'saturated_{key}']:.1f} %" for key in IMAGES)
        ax.set_title(f"$\\tau$ = {record['tau']:g}\nsaturated: clean {clean},\nadversarial {attacked}", fontsize=7.5)
    axes[0].set_ylabel("share of activations")
    note = f"AT + FSR, {style.setting(profile, 'ema')}, seed 0, no noise; saturated: m below 0.05 or above 0.95"
    return style.finish(figure, note)


def stream_bars(profile: str) -> Figure:
    """F3: accuracy of streams under PGD-20 by two probes: mean over seeds, Wilson's interval of one seed's images."""
    chosen = experiments.profile_of(profile)
    frame = style.cells(profile, "T7", attack="pgd20", checkpoint=chosen.report_checkpoint)
    style.need(frame, profile, "streams")
    n, seeds = int(frame["n"].min()), frame["seed"].nunique()
    figure, ((ax,),) = style.panels(1, 1, 2.9)
    for shift, (probe, options) in zip((-0.2, 0.2), PROBES.items()):
        values = frame[frame["probe"] == probe].groupby("stream")["accuracy"].mean()[list(style.STREAMS)].to_numpy()
        low, high = np.array([statistics.wilson(value * n, n) for value in values]).T
        options = options | {"yerr": 100 * np.array([values - low, high - values]), "capsize": 2}
        bars = ax.bar(np.arange(len(values)) + shift, 100 * values, 0.37, edgecolor=style.VERMILION, **options)
        ax.bar_label(bars, [measured(value) for value in values], fontsize=7)
    ax.axhline(100 / DATASETS[chosen.base.dataset].classes, color=style.GREY, linestyle=":", label="chance")
    ax.set_xticks(range(len(style.STREAMS)), list(style.STREAMS.values()))
    ax.set(ylabel="accuracy under PGD-20, %", ylim=(0, 100))
    note = f"AT + FSR, {style.setting(profile)}, {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}"
    return style.finish(figure, f"{note}; bars: 95 % over {n:,} images")


def feature_space(profile: str) -> Figure:
    """F8: t-SNE of pooled f- and recalibrated f- of adversarial images, the second turned onto the first."""
    ((record, arrays),) = style.analyses(profile, experiments.main_pair(profile)[1:], "features")
    shares = style.cells(profile, "T7", attack="pgd20", checkpoint="ema", probe="knn", seed=0).set_index("stream")
    figure, (axes,) = style.panels(1, 2, 3.9)
    clouds = procrustes(arrays["tsne_nonrobust"], arrays["tsne_recalibrated"])  # both of unit size
    for ax, stream, points in zip(axes, ("nonrobust", "recalibrated"), clouds):
        for label, colour in zip(np.unique(arrays["labels"]), style.CLASSES):
            members = points[arrays["labels"] == label]
            how = {"label": record["class_names"][label], "color": colour, "linewidths": 0, "alpha": 0.65}
            ax.scatter(members[:, 0], members[:, 1], s=9, rasterized=True, **how)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        share = measured(shares["accuracy"].get(stream))
        ax.set_title(f"{style.STREAMS[stream]}: {share} % by nearest neighbours")
    note = f"AT + FSR, {style.setting(profile, 'ema')}, seed 0, {len(arrays['labels']):,} images under PGD-20; "
    return style.finish(figure, note + "t-SNE keeps neighbourhoods: distances between groups mean nothing")


def module_diagram(profile: str) -> Figure:
    """F9: separation, the two streams, recalibration and one addition at the end; the same for every profile."""
    figure, ((ax,),) = style.panels(1, 1, 3.6)
    ax.set(xlim=(0, 100), ylim=(-10, 110))
    ax.set_axis_off()
    drawn, shape = dict[str, Any](), {"boxstyle": "round,pad=0.5", "edgecolor": "black", "linewidth": 0.9}
    for name, (x, y, text) in BOXES.items():
        box = shape | {"facecolor": FILLS.get(name, "white"), "linestyle": "--" if name in LOSSES else "-"}
        drawn[name] = ax.text(x, y, text, fontsize=7.5, ha="center", va="center", bbox=box).get_bbox_patch()
    for start, end in ARROWS:
        arrow = {"arrowstyle": "-|>", "color": "black", "linestyle": "--" if end in LOSSES else "-"}
        arrow |= {"patchA": drawn[start], "patchB": drawn[end]}
        ax.annotate("", BOXES[end][:2], BOXES[start][:2], arrowprops=arrow)
    return style.finish(figure, f"{IDENTITY}. {TRAINING}")
