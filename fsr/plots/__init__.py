"""Figures F1 to F10 from records: one function per figure; nothing here trains or attacks."""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fsr import files
from fsr.files import MissingRecord, choose
from fsr.plots import curves, features, style

_ALL = {
    "F1": (features.attention_maps, "attention-maps", "What each stream attends to"),
    "F2": (features.mask_histograms, "masks", "The mask"),
    "F3": (features.stream_bars, "streams", "What each stream knows about the class"),
    "F4": (curves.sweeps, "sweeps", "Settings and place of the module"),
    "F5": (curves.training_curves, "training-curves", "Training curves"),
    "F6": (curves.attack_strength, "attack-strength", "Accuracy against attack strength"),
    "F7": (curves.gains, "gains", "What FSR adds"),
    "F8": (features.feature_space, "feature-space", "Features before and after recalibration"),
    "F9": (features.module_diagram, "module", "The FSR module"),
    "F10": (curves.training_length, "training-length", "Gain against training length"),
}
FIGURES: dict[str, Callable[[str], Figure]] = {name: draw for name, (draw, *_) in _ALL.items()}
TITLES = {name: title for name, (*_, title) in _ALL.items()}
FILES = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}


def save(profile: str, name: str) -> list[Path]:
    """Draw a figure as figures/<profile>/<name>-<title>.png and .pdf; files that would not change are left alone."""
    draw = choose("figure", name, FIGURES)
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns about dates inside matplotlib's fonts
    folder = files.figures("demo" if name == "F9" else profile)  # the module is the same for every profile: one file
    paths = [folder / f"{name}-{_ALL[name][1]}.{kind}" for kind in FILES]
    with mpl.rc_context(style.STYLE):
        figure = draw(profile)
        plt.close(figure)
        for path, (kind, metadata) in zip(paths, FILES.items()):
            figure.savefig(buffer := io.BytesIO(), format=kind, metadata=metadata)
            files.write_changed(path, buffer.getvalue())
    return paths


def show(profile: str, name: str):
    """Save a figure and return what a notebook displays: the very PNG, or a line where nothing is recorded."""
    from IPython.display import Image, Markdown

    try:
        return Image(filename=save(profile, name)[0], width=800)
    except MissingRecord as missing:
        return Markdown(f"{name} is left out: {missing}")
