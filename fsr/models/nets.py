"""The three backbones, for images (N, 3, H, W) of any size, to logits (N, K); each stage is a submodule by name."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; no bias, since a BatchNorm follows nearly everywhere."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


@torch.no_grad()
def initialise(module: nn.Module, linear: Callable[[int], float] | None = None) -> None:
    """Convolutions N(0, 2 / (k k out)), linears N(0, linear(inputs) squared), biases 0, in every part of module."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.normal_(0, math.sqrt(2 / (math.prod(part.kernel_size) * part.out_channels)))
        elif isinstance(part, nn.Linear) and linear:
            part.weight.normal_(0, linear(part.in_features))
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            part.bias.zero_()


class _Staged(nn.Module):
    stages: tuple[str, ...]

    def _add(self, block: Callable, channels: int, width: int, blocks: tuple[int, ...]) -> int:
        for i, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            out = width * 2**i
            first = block(channels, out, 2 if i else 1)
            self.add_module(name, nn.Sequential(first, *(block(out, out, 1) for _ in range(count - 1))))
            channels = out
        return channels

    def _pooled(self, x: Tensor, *more: str) -> Tensor:
        """The mean over positions, (N, C), after all stages and the submodules named: at any image size."""
        for name in (*self.stages, *more):
            x = getattr(self, name)(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C_in, H, W) to (N, C_out, H / stride, W / stride), at least 0."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        projection: list[nn.Module] = []
        if channels_in != channels_out:
            projection = [nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)]
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(_Staged):
    """ResNet-18 without max-pool (He et al. 2016); layer1..layer4 hold width x (1, 2, 4, 8) channels."""

    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, num_classes: int, width: int, blocks: tuple[int, ...]):
        super().__init__()
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        channels = self._add(BasicBlock, width, width, blocks)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self._pooled(F.relu(self.bn1(self.conv1(x)))))


class PreActBlock(nn.Module):
    """BN, ReLU, convolution, twice: (N, C_in, H, W) to (N, C_out, H / stride, W / stride).

    Where the width changes, the shortcut's 1x1 convolution starts from the activated input; else the input is added.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        changes = channels_in != channels_out
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(_Staged):
    """WRN-34-10 as TRADES and the authors train it (Zagoruyko & Komodakis 2016); 16 x width x (1, 2, 4) channels.

    The last BatchNorm and ReLU close block3, so that a module after it sees activated features.
    """

    stages = ("block1", "block2", "block3")
    initialise = staticmethod(initialise)

    def __init__(self, num_classes: int, width: int, blocks: tuple[int, ...]):
        super().__init__()
        self.conv1 = conv3x3(3, 16)
        channels = self._add(PreActBlock, 16, 16 * width, blocks)
        self.get_submodule("block3").add_module("bn", nn.BatchNorm2d(channels))
        self.get_submodule("block3").add_module("relu", nn.ReLU())
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self._pooled(self.conv1(x)))


class VGG(_Staged):
    """VGG-16 with BatchNorm (Simonyan & Zisserman 2015), a 512-512-K head, width x (1, 2, 4, 8, 8) channels.

    Each max-pool opens the next stage: a module after block4 sits between conv4_3 + BN + ReLU and its max-pool.
    """

    stages = ("block1", "block2", "block3", "block4", "block5")
    # as the authors from 512 inputs on: with 0.01 a narrow VGG never leaves chance under AT (width 8, 60 epochs)
    initialise = staticmethod(partial(initialise, linear=lambda n: 0.01 if n >= 512 else math.sqrt(2 / n)))

    def __init__(self, num_classes: int, width: int, blocks: tuple[int, ...]):
        super().__init__()
        channels = 3
        for i, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            out = width * min(2**i, 8)
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if i else []  # 1x1 maps stay, at 8 pixels
            for _ in range(count):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            self.add_module(name, nn.Sequential(*layers))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        hidden = [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self._pooled(x, "pool"))
