"""Figures F1 to F10 from records: one function per figure; nothing here trains or attacks."""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from fsr import files
from fsr.files import MissingRecord, UsageError, write_bytes
from fsr.plots import curves, diagram, features, gains, inside, style

_ALL = {
    "F1": (inside.attention_maps, "attention-maps", "What each stream attends to"),
    "F2": (inside.mask_histograms, "masks", "The mask"),
    "F3": (inside.stream_bars, "streams", "What each stream knows about the class"),
    "F4": (gains.sweeps, "sweeps", "Settings and place of the module"),
    "F5": (curves.training_curves, "training-curves", "Training curves"),
    "F6": (gains.attack_strength, "attack-strength", "Accuracy against attack strength"),
    "F7": (gains.gains, "gains", "What FSR adds"),
    "F8": (features.feature_space, "feature-space", "Features before and after recalibration"),
    "F9": (diagram.module_diagram, "module", "The FSR module"),
    "F10": (gains.training_length, "training-length", "Gain against training length"),
}
FIGURES: dict[str, Callable[[str], Figure]] = {name: style.styled(draw) for name, (draw, *_) in _ALL.items()}
TITLES = {name: title for name, (*_, title) in _ALL.items()}
FILES = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}


def paths(profile: str, name: str) -> list[Path]:
    """figures/<profile>/<name>-<title>.png and .pdf; UsageError for an unknown figure."""
    if name not in FIGURES:
        raise UsageError(f"unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    folder = files.figures("demo" if name == "F9" else profile)  # the module is the same for every profile: one file
    return [folder / f"{name}-{_ALL[name][1]}.{kind}" for kind in FILES]


def save(profile: str, name: str) -> list[Path]:
    """Draw a figure and write it as PNG and PDF; files that would not change are left alone."""
    targets = paths(profile, name)
    figure = FIGURES[name](profile)
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns about dates inside matplotlib's fonts
    for path, (kind, metadata) in zip(targets, FILES.items()):
        buffer = io.BytesIO()
        with mpl.rc_context(style.STYLE):
            figure.savefig(buffer, format=kind, metadata=metadata)
        if not path.exists() or path.read_bytes() != buffer.getvalue():
            write_bytes(path, buffer.getvalue())
    return targets


def show(profile: str, name: str):
    """Save a figure and return what a notebook displays: the very PNG, or a line where nothing is recorded."""
    from IPython.display import Image, Markdown

    try:
        return Image(filename=save(profile, name)[0], width=800)
    except MissingRecord as missing:
        return Markdown(f"{name} is left out: {missing}")
