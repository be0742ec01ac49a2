"""Figures from records: one function per figure, one look, files that say where their numbers come from."""

from matplotlib.figure import Figure

from fsr import experiments
from fsr.config import Run
from fsr.files import UsageError
from fsr.plots.catalogue import FIGURES, FigureInfo
from fsr.plots.curves import training_curves
from fsr.plots.diagram import module_diagram
from fsr.plots.features import feature_space
from fsr.plots.gains import gains
from fsr.plots.maps import attention_maps
from fsr.plots.masks import mask_histograms
from fsr.plots.output import Saved, save
from fsr.plots.streams import stream_bars
from fsr.plots.strength import attack_strength
from fsr.plots.sweeps import sweeps


def info(name: str) -> FigureInfo:
    """The figure of this id; an unknown one raises UsageError."""
    if name not in FIGURES:
        raise UsageError(f"unknown figure {name!r}; choose one of {', '.join(FIGURES)}")
    return FIGURES[name]


def runs_of(profile: str, name: str) -> tuple[Run, ...]:
    """The planned runs behind a figure, each once."""
    experiments.profile_of(profile)
    runs = [run for kind in info(name).sets for run in experiments.SETS[profile][kind]]
    return tuple(dict.fromkeys(runs))


def draw(profile: str, name: str) -> Figure:
    """A figure by its id, from the records of a profile."""
    return info(name).draw(profile)


def show(profile: str, name: str) -> Saved:
    """Draw a figure and save it; the result shows itself in a notebook."""
    figure = info(name)
    return save(figure.draw(profile), profile, name, figure.slug, runs_of(profile, name), title=figure.title)


__all__ = [
    "FIGURES",
    "FigureInfo",
    "Saved",
    "attack_strength",
    "attention_maps",
    "draw",
    "feature_space",
    "gains",
    "info",
    "mask_histograms",
    "module_diagram",
    "runs_of",
    "save",
    "show",
    "stream_bars",
    "sweeps",
    "training_curves",
]
