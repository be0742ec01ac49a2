"""Every backbone by name: where its code is, its stages and its usual size.  Names are known without torch."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def every_block(stage: str, count: int) -> tuple[str, ...]:
    """The path after each block of a stage that is a list of blocks."""
    return tuple(f"{stage}.{i}" for i in range(count))


def every_relu(stage: str, count: int) -> tuple[str, ...]:
    """A VGG's stage: a max-pool, then three layers to a convolution; the ReLU ends each."""
    return tuple(f"{stage}.{3 * i}" for i in range(1, count + 1))


def activated(stage: str, count: int) -> tuple[str, ...]:
    """A pre-activation stage: the features of the last block end with the stage's own BatchNorm and ReLU."""
    return (*every_block(stage, count - 1), stage)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network with named stages.

    code: `file.Class` in fsr/models, called with (num_classes, width, blocks), where the file may hold `initialise`, a
    rule for the weights of any part of it; fsr_stage: where FSR sits by default; width, blocks: the usual size;
    reference: the channels at fsr_stage then, where S and R have 64 hidden channels; places: the paths after the blocks
    of a stage, by its name and their number.
    """

    code: str
    stages: tuple[str, ...]
    fsr_stage: str
    width: int
    blocks: tuple[int, ...]
    reference: int = 512
    places: Callable[[str, int], tuple[str, ...]] = every_block

    def _module(self) -> Any:
        return importlib.import_module(f"fsr.models.{self.code.partition('.')[0]}")

    @property
    def network(self) -> Callable[..., Any]:
        """The class."""
        return getattr(self._module(), self.code.partition(".")[2])

    def initialise(self, part: Any) -> None:
        """Its own rule for the weights of any part of it; without one they stay as PyTorch made them."""
        getattr(self._module(), "initialise", lambda part: None)(part)

    def last_two(self, blocks: tuple[int, ...]) -> tuple[str, ...]:
        """The paths after the last stage's last two blocks (of a VGG: convolutions), or after its only one."""
        return self.places(self.stages[-1], blocks[-1])[-2:]


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(
        code="resnet.ResNet",
        stages=("layer1", "layer2", "layer3", "layer4"),
        fsr_stage="layer4",
        width=64,
        blocks=(2, 2, 2, 2),
    ),
    "vgg16": Backbone(
        code="vgg.VGG",
        stages=("block1", "block2", "block3", "block4", "block5"),
        fsr_stage="block4",
        width=64,
        blocks=(2, 2, 3, 3, 3),
        places=every_relu,
    ),
    "wideresnet34": Backbone(
        code="wideresnet.WideResNet",
        stages=("block1", "block2", "block3"),
        fsr_stage="block3",
        width=10,
        blocks=(5, 5, 5),
        reference=640,
        places=activated,
    ),
}
