"""F9: the FSR module, drawn by code (Kim et al. 2023 and the authors' code)."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from fsr.plots import style

GREY, BLUE, LOSS = "#EDEDED", "#DCEBF7", "white"
# Boxes: centre in units of the drawing (100 x 54), text, fill.
BOXES = [(6, 27, "backbone\nup to the\nchosen stage", GREY), (95, 40, "rest of the\nbackbone", GREY)]
BOXES += [(31, 27, "separation $S$\n3 convolutions", BLUE), (66, 13, "recalibration $R$\n3 convolutions", "#FBE3D3")]
BOXES += [(51, 27, "mask $m$\n$\\sigma\\,((r + noise)\\,/\\,\\tau)$\nnoise: training only", BLUE)]
LOSSES = [
    (66, 50, "cross-entropy of $h(f^{+})$ with $y$", LOSS),
    (43, 0, "cross-entropy of $h(f^{-})$ with $y'$", LOSS),
]
LOSSES += [(85, 0, "cross-entropy of $h(\\tilde{f}^{\\,-})$ with $y$", LOSS)]
GATES = [(51, 40, "$\\times$"), (51, 13, "$\\times$"), (79, 13, "$\\times$"), (85, 13, "$+$"), (85, 40, "$+$")]
# Arrows as corners, by what they carry: f and r, m and 1 - m, f+ and f-, the recalibrated f- and the output.
ARROWS = [((11.3, 27), (24.9, 27)), ((19, 27), (19, 40), (49.2, 40)), ((19, 27), (19, 13), (49.2, 13))]
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


def module_diagram(profile: str) -> Figure:
    """F9: separation above, recalibration below, one addition at the end; the same for every profile."""
    figure, ((ax,),) = style.panels(1, 1, 4.2)
    ax.set(xlim=(0, 100), ylim=(-3.5, 53.5), aspect="equal")
    ax.set_axis_off()
    centred: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 3}
    solid: dict[str, Any] = {"edgecolor": "#333333", "linewidth": 0.9}
    dashed = solid | {"edgecolor": "#777777", "linestyle": (0, (3, 2))}
    for x, y, text, fill in BOXES + LOSSES:
        box = (dashed if fill == LOSS else solid) | {"facecolor": fill, "boxstyle": "round,pad=0.8,rounding_size=0.6"}
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
