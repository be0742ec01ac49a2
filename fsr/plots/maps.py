"""F1: what the streams attend to, on natural and on adversarial images."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fsr import experiments
from fsr.plots import readings, style, words

MAX_ROWS = 6
OPACITY = 0.72  # of a map over its image
SMOOTH = 32  # pixels a side below which an overlay is enlarged, for the map to look smooth
STREAM_OF = {
    "map_f": "f",
    "map_robust": "robust",
    "map_nonrobust": "nonrobust",
    "map_recalibrated": "recalibrated",
    "map_features": "output",
}


def picture(image: np.ndarray) -> np.ndarray:
    """(3, H, W) uint8 as matplotlib wants it, (H, W, 3)."""
    return np.moveaxis(image, 0, -1)


def attention(small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) of mean |f| over channels, enlarged bilinearly to (H, W) and stretched to [0, 1].

    The same for every stream, per image; a constant map is all zero.
    """
    height, width = size
    image = Image.fromarray(np.asarray(small, dtype=np.float32), mode=None)
    large = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    low, high = float(large.min()), float(large.max())
    return (large - low) / (high - low) if high > low else np.zeros_like(large)


def overlay(image: np.ndarray, small: np.ndarray) -> np.ndarray:
    """A map laid over its image in grey, so that shape and attention are seen together: (h, w, 3) uint8.

    Mixed here and not by matplotlib, which would write both into a PDF at the figure's resolution, four times the size.
    """
    times = max(1, SMOOTH // image.shape[1])
    grey = picture(image).mean(axis=2).repeat(times, axis=0).repeat(times, axis=1)
    heat = colormaps["inferno"](attention(small, grey.shape))[..., :3]
    return np.round((1 - OPACITY) * grey[..., None] + OPACITY * 255 * heat).astype(np.uint8)


def show_map(ax: Axes, image: np.ndarray, small: np.ndarray) -> None:
    """The overlay of a map (h, w) and its image (3, H, W) uint8, pixel by pixel."""
    ax.imshow(overlay(image, small), interpolation="none")


def _name(names: list[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _row(axes: list[Axes], arrays: dict[str, np.ndarray], i: int, names: list[str]) -> None:
    for ax, key, predicted in ((axes[0], "natural", "pred_clean"), (axes[1], "adversarial", "pred_adv")):
        ax.imshow(picture(arrays[key][i]), interpolation="none")
        right = arrays[predicted][i] == arrays["labels"][i]
        text = f"{'right' if right else 'wrong'}: {_name(names, int(arrays[predicted][i]))}"
        ax.text(0.5, -0.04, text, transform=ax.transAxes, ha="center", va="top", fontsize=6.5,
                color=style.GREEN if right else style.VERMILION)  # fmt: skip
    name = _name(names, int(arrays["labels"][i]))
    beside: dict[str, Any] = {"rotation": 90 if len(name) > 2 else 0, "ha": "right", "va": "center", "fontsize": 6.5}
    axes[0].text(-0.05, 0.5, name, transform=axes[0].transAxes, **beside)
    for ax, key in zip(axes[2:], STREAM_OF, strict=True):
        show_map(ax, arrays["adversarial"][i], arrays[key][i])


@style.styled
def attention_maps(profile: str) -> Figure:
    """F1: a row per test image; natural, adversarial, then the maps of f, f+, f-, recalibrated f- and the output.

    All maps are of the adversarial image; mean over channels of |f|, bilinear, min-max per image.
    """
    found = readings.analysis(profile, experiments.main_pair(profile)[1], "maps")
    if found is None:
        fig, axes = style.panels(1, 1, 1.6)
        style.not_run(axes[0][0], "attention maps of AT + FSR")
        return fig
    record, arrays = found
    rows = min(MAX_ROWS, len(arrays["labels"]))
    fig, axes = style.panels(rows, 2 + len(STREAM_OF), 1.08 * rows + 0.45)
    for i in range(rows):
        for ax in axes[i]:
            style.blank(ax)
        _row(axes[i], arrays, i, record.get("class_names", []))
    titles = ["natural", "adversarial"]
    titles += [f"{words.STREAM_WORDS[s]}\n{words.STREAMS[s]}" for s in STREAM_OF.values()]
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, loc="center", fontsize=7.5)
    maps = "maps: mean over channels of |feature| on the adversarial image, each stretched to its own range"
    style.foot(fig, f"{style.OF_EMA}; left: the class; {maps}")
    return fig
