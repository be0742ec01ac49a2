"""Pre-activation wide ResNet (Zagoruyko & Komodakis 2016) in the form that TRADES and the authors of FSR train.

N images, C channels, H and W pixels, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.models.resnet import conv3x3

STAGES = ("block1", "block2", "block3")


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
        self.shortcut = None
        if channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Images (N, 3, H, W) to logits (N, K); stages block1..block3 hold 16 x width x (1, 2, 4) channels.

    blocks: residual blocks per stage; (5, 5, 5) with width 10 is WRN-34-10, (1, 1, 1) is WRN-10. The last BatchNorm
    and ReLU close block3, so that a module after block3 sees activated features. Any image size.
    """

    def __init__(self, num_classes: int = 10, width: int = 10, blocks: tuple[int, ...] = (5, 5, 5)):
        super().__init__()
        channels = 16
        self.conv1 = conv3x3(3, channels)
        for i, (name, count) in enumerate(zip(STAGES, blocks, strict=True)):
            out = 16 * width * 2**i
            stage = nn.Sequential()
            for j in range(count):
                stage.append(PreActBlock(out if j else channels, out, 2 if i and not j else 1))
            self.add_module(name, stage)
            channels = out
        stage.add_module("bn", nn.BatchNorm2d(channels))
        stage.add_module("relu", nn.ReLU())
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name in STAGES:
            x = getattr(self, name)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, C); the authors' fixed 8x8 window breaks at 64x64
        return self.fc(x)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Convolutions N(0, sqrt(2 / (k k out))), biases of linears zero, for every part of module."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            part.weight.normal_(0, math.sqrt(2 / fan_out))
        elif isinstance(part, nn.Linear):
            part.bias.zero_()
