"""F9: the FSR module, drawn by code (Kim et al. 2023 and the authors' code)."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from fsr.plots import style

LINE, AUX = "#333333", "#777777"
# Boxes: centre and size in units of the drawing (100 x 54), text, fill; a white one is a training loss.
BOXES = (
    (6, 27, 10.5, 10, "backbone\nup to the\nchosen stage", "#EDEDED"),
    (31, 27, 13, 8, "separation $S$\n3 convolutions", "#DCEBF7"),
    (51, 27, 15.6, 9.4, "mask $m$\n$\\sigma\\,((r + noise)\\,/\\,\\tau)$\nnoise: training only", "#DCEBF7"),
    (66, 13, 13, 8, "recalibration $R$\n3 convolutions", "#FBE3D3"),
    (95, 40, 9, 10, "rest of the\nbackbone", "#EDEDED"),
    (66, 50, 23, 4.8, "cross-entropy of $h(f^{+})$ with $y$", "white"),
    (43, 0, 24, 4.8, "cross-entropy of $h(f^{-})$ with $y'$", "white"),
    (85, 0, 23, 4.8, "cross-entropy of $h(\\tilde{f}^{\\,-})$ with $y$", "white"),
)
GATES = ((51, 40, "×"), (51, 13, "×"), (79, 13, "×"), (85, 13, "+"), (85, 40, "+"))
# Arrows as corners, by what they carry: f, r, m and 1 - m, f+, f-, the recalibrated f- and the output.
ARROWS = [((11.5, 27), (24.3, 27)), ((19, 27), (19, 40), (49.2, 40)), ((19, 27), (19, 13), (49.2, 13))]
ARROWS += [((37.7, 27), (43, 27))]
ARROWS += [((51, 31.9), (51, 38.2)), ((51, 22.1), (51, 14.8)), ((59, 27), (79, 27), (79, 14.8))]
ARROWS += [((52.8, 40), (83.2, 40)), ((52.8, 13), (59.3, 13)), ((57, 13), (57, 6), (85, 6), (85, 11.2))]
ARROWS += [((72.7, 13), (77.2, 13)), ((80.8, 13), (83.2, 13)), ((85, 14.8), (85, 38.2)), ((86.8, 40), (90.3, 40))]
TO_LOSSES = [((66, 40), (66, 47.5)), ((54.5, 13), (54.5, 6), (43, 6), (43, 2.5)), ((85, 20), (92, 20), (92, 2.5))]
NAMES = [(15.2, 28.8, "$f$"), (38, 14.8, "$f$"), (38, 41.8, "$f$"), (40.4, 28.8, "$r$"), (53, 35, "$m$")]
NAMES += [(54.6, 18.4, "$1-m$"), (74, 28.8, "$1-m$"), (58.5, 42, "$f^{+}$  robust"), (56, 15, "$f^{-}$")]
NAMES += [(48.5, 8.3, "non-robust"), (92.2, 30, "$\\tilde{f}^{\\,-}$  recalibrated"), (88.6, 42.3, "$\\tilde f$")]
IDENTITY = (
    "$\\tilde f = f^{+} + \\tilde f^{\\,-} = f + (1-m)\\odot R(f^{-})$: the output is $f$ plus a gated correction"
)


def module_diagram(profile: str) -> Figure:
    """F9: separation above, recalibration below, one addition at the end; the same for every profile."""
    figure, ((ax,),) = style.panels(1, 1, 4.2)
    ax.set(xlim=(0, 100), ylim=(-3.5, 53.5), aspect="equal")
    ax.set_axis_off()
    centred: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 3}
    solid: dict[str, Any] = {"edgecolor": LINE, "linewidth": 0.9, "zorder": 2}
    dashed = solid | {"edgecolor": AUX, "linestyle": (0, (3, 2))}
    for x, y, width, height, text, fill in BOXES:
        corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=1.2"
        look = dashed if fill == "white" else solid
        ax.add_patch(FancyBboxPatch(corner, width, height, shape, facecolor=fill, **look))
        ax.text(x, y, text, fontsize=6.6, **centred)
    for x, y, sign in GATES:
        ax.add_patch(Circle((x, y), 1.7, facecolor="white", **solid))
        ax.text(x, y, sign, fontsize=8.5, **centred | {"va": "center_baseline"})
    for corners in ARROWS + TO_LOSSES:
        look = (dashed if corners in TO_LOSSES else solid) | {"zorder": 1}
        fill = look["edgecolor"]
        ax.add_patch(FancyArrowPatch(path=Path(corners), arrowstyle="-|>", mutation_scale=8, facecolor=fill, **look))
    for x, y, text in NAMES:
        ax.text(x, y, text, fontsize=7.5, **centred)
    note = "dashed: one auxiliary head $h$ (pool, linear),\nused by the training losses only;\n"
    ax.text(1, 50.5, note + "$y'$ = most probable wrong class", ha="left", va="center", fontsize=6.6, color=AUX)
    return style.finish(figure, IDENTITY)
