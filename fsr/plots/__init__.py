"""Figures F1 to F10 from records: one function per figure; nothing here trains or attacks."""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from fsr import files
from fsr.files import MissingRecord, UsageError, write_bytes
from fsr.plots.curves import training_curves
from fsr.plots.diagram import module_diagram
from fsr.plots.features import feature_space
from fsr.plots.inside import attention_maps, mask_histograms, stream_bars
from fsr.plots.paired_gains import gains, training_length
from fsr.plots.settings import attack_strength, sweeps
from fsr.plots.style import STYLE

FIGURES: dict[str, Callable[[str], Figure]] = {
    "F1": attention_maps,
    "F2": mask_histograms,
    "F3": stream_bars,
    "F4": sweeps,
    "F5": training_curves,
    "F6": attack_strength,
    "F7": gains,
    "F8": feature_space,
    "F9": module_diagram,
    "F10": training_length,
}
TITLES = {
    "F1": "What each stream attends to",
    "F2": "The mask",
    "F3": "What each stream knows about the class",
    "F4": "Settings and place of the module",
    "F5": "Training curves",
    "F6": "Accuracy against attack strength",
    "F7": "What FSR adds",
    "F8": "Features before and after recalibration",
    "F9": "The FSR module",
    "F10": "Gain against training length",
}
STEMS = "attention-maps masks streams sweeps training-curves attack-strength gains feature-space module training-length"
FILES = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
ONCE = {"F9": "demo"}  # the same for every profile: one file


def paths(profile: str, name: str) -> list[Path]:
    """figures/<profile>/<name>-<title>.png and .pdf; UsageError for an unknown figure."""
    if name not in FIGURES:
        raise UsageError(f"unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    stem = f"{name}-{STEMS.split()[int(name[1:]) - 1]}"
    return [files.figures(ONCE.get(name, profile)) / f"{stem}.{kind}" for kind in FILES]


def save(profile: str, name: str) -> list[Path]:
    """Draw a figure and write it as PNG and PDF; files that would not change are left alone."""
    targets = paths(profile, name)
    figure = FIGURES[name](profile)
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns about dates inside matplotlib's fonts
    for path, (kind, metadata) in zip(targets, FILES.items()):
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
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
