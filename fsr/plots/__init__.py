"""Figures from records: one function per figure, one look, files that say where their numbers come from."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from fsr import experiments
from fsr.config import Run
from fsr.errors import UsageError
from fsr.plots.curves import training_curves
from fsr.plots.diagram import module_diagram
from fsr.plots.features import feature_space
from fsr.plots.gains import gains
from fsr.plots.maps import attention_maps
from fsr.plots.masks import mask_histograms
from fsr.plots.output import Saved, save
from fsr.plots.strength import attack_strength
from fsr.plots.streams import stream_bars
from fsr.plots.sweeps import sweeps


@dataclass(frozen=True, kw_only=True)
class FigureInfo:
    """A figure: how it is drawn, its file name, the sets whose runs it shows, and how to read it."""

    draw: Callable[[str], Figure]
    slug: str
    title: str
    sets: tuple[str, ...]
    notebook: str
    reading: str


FIGURES: dict[str, FigureInfo] = {
    "F1": FigureInfo(
        draw=attention_maps, slug="attention-maps", title="What each stream attends to", sets=("streams",),
        notebook="11-attention-maps",
        reading="Each row is a test image. Bright: large features. If recalibration regains useful cues, the map of the "
        "recalibrated stream should sit on the object again where that of the non-robust stream does not.",
    ),
    "F2": FigureInfo(
        draw=mask_histograms, slug="masks", title="The mask", sets=("settings",), notebook="10-streams",
        reading="Mass at 0 and 1 means the mask decides sharply, and passes almost no gradient there. Compare clean with "
        "adversarial images, and the temperatures with each other.",
    ),
    "F3": FigureInfo(
        draw=stream_bars, slug="streams", title="What each stream knows about the class", sets=("streams",),
        notebook="10-streams",
        reading="The paper's claim asks for a recalibrated stream that predicts better than the non-robust one it was made "
        "from. The two probes measure it independently: one was trained with the network, the other never.",
    ),
    "F4": FigureInfo(
        draw=sweeps, slug="sweeps", title="Settings and place of the module", sets=("settings", "placement"),
        notebook="09-settings",
        reading="A flat line inside its intervals says the setting does not matter at this budget. Dashed: without FSR.",
    ),
    "F5": FigureInfo(
        draw=training_curves, slug="training-curves", title="Training curves", sets=("whitebox",),
        notebook="12-training-curves",
        reading="The distance between best and last is what the choice of checkpoint alone is worth. A gap between training "
        "and held-out accuracy under attack is robust overfitting.",
    ),
    "F6": FigureInfo(
        draw=attack_strength, slug="attack-strength", title="Accuracy against attack strength", sets=("strength",),
        notebook="13-attack-strength",
        reading="Left must fall to zero, right must not rise: otherwise the attack fails and every number beside it is void.",
    ),
    "F7": FigureInfo(
        draw=gains, slug="gains", title="What FSR adds", sets=("whitebox",), notebook="05-whitebox",
        reading="A point right of zero whose bar does not touch zero: FSR helped there, on these images. Ticks are seeds.",
    ),
    "F8": FigureInfo(
        draw=feature_space, slug="feature-space", title="Features before and after recalibration", sets=("streams",),
        notebook="10-streams",
        reading="Separate groups on the right but not on the left would mean recalibration regains the class. t-SNE keeps "
        "neighbourhoods, not distances or areas.",
    ),
    "F9": FigureInfo(
        draw=module_diagram, slug="module", title="The FSR module", sets=(), notebook="01-method",
        reading="Follow f from the left. Nothing is ever suppressed: the output is f plus a gated correction.",
    ),
}  # fmt: skip


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
