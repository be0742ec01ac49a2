"""Every figure: how it is drawn, what its file is called, whose runs it shows, and how to read it."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from fsr.plots.curves import training_curves
from fsr.plots.diagram import module_diagram
from fsr.plots.features import feature_space
from fsr.plots.gains import gains
from fsr.plots.maps import attention_maps
from fsr.plots.masks import mask_histograms
from fsr.plots.streams import stream_bars
from fsr.plots.strength import attack_strength
from fsr.plots.sweeps import sweeps


@dataclass(frozen=True)
class FigureInfo:
    """A figure: its drawing function, file name, title, the sets whose runs it shows, its notebook, how to read it."""

    draw: Callable[[str], Figure]
    slug: str
    title: str
    sets: tuple[str, ...]
    notebook: str
    reading: str


_MAPS = (
    "Each row is a test image; bright means large features. If recalibration regains useful cues, the recalibrated map "
    "should sit on the object again where the non-robust map does not."
)
_MASKS = (
    "Mass at 0 and 1 means that the mask decides sharply, and its slope is small there. Compare clean with "
    "adversarial images, and the temperatures with each other."
)
_STREAMS = (
    "The paper's claim asks for a recalibrated stream that predicts better than the non-robust one it was made from. "
    "Two probes measure it: one was trained with the network, the other (nearest neighbours) never was."
)
_SWEEPS = (
    "Bars are intervals of single accuracies, one training each: compare two settings by T5's and T6's paired rows. "
    "Dashed: without FSR."
)
_CURVES = (
    "The distance between best and last is what the choice of the checkpoint alone is worth. A gap between training "
    "and held-out accuracy under attack is robust overfitting."
)
_STRENGTH = (
    "Left must fall to zero or close to it, and right must not rise beyond noise: otherwise the attack fails. What is "
    "left at the largest radius is for the audit's unbounded attack to explain."
)
_GAINS = (
    "A point right of zero whose bar does not touch zero: FSR helped there, for these trained networks. Small ticks: "
    "single seeds."
)
_FEATURES = (
    "Groups that are separate on the right but not on the left would mean that recalibration regains the class. t-SNE "
    "keeps neighbourhoods, not distances or areas."
)
_MODULE = "Follow f from the left. Nothing is ever suppressed: the output is f plus a gated correction."

FIGURES: dict[str, FigureInfo] = {
    "F1": FigureInfo(
        attention_maps, "attention-maps", "What each stream attends to", ("streams",), "11-attention-maps", _MAPS
    ),
    "F2": FigureInfo(mask_histograms, "masks", "The mask", ("settings",), "10-streams", _MASKS),
    "F3": FigureInfo(
        stream_bars, "streams", "What each stream knows about the class", ("streams",), "10-streams", _STREAMS
    ),
    "F4": FigureInfo(
        sweeps, "sweeps", "Settings and place of the module", ("settings", "placement"), "09-settings", _SWEEPS
    ),
    "F5": FigureInfo(
        training_curves, "training-curves", "Training curves", ("whitebox",), "12-training-curves", _CURVES
    ),
    "F6": FigureInfo(
        attack_strength, "attack-strength", "Accuracy against attack strength", ("strength",), "13-attack-strength",
        _STRENGTH,
    ),
    "F7": FigureInfo(gains, "gains", "What FSR adds", ("whitebox",), "05-whitebox", _GAINS),
    "F8": FigureInfo(
        feature_space, "feature-space", "Features before and after recalibration", ("streams",), "10-streams", _FEATURES
    ),
    "F9": FigureInfo(module_diagram, "module", "The FSR module", (), "01-method", _MODULE),
}  # fmt: skip
