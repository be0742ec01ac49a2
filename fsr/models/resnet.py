"""ResNet for small images (He et al. 2016): 3x3 stem, no max-pool, four stages of basic blocks.

N images, C channels, H and W pixels, K classes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ("layer1", "layer2", "layer3", "layer4")


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution, pad 1, no bias: a BatchNorm follows it everywhere here."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C_in, H, W) to (N, C_out, H / stride, W / stride), at least 0."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Images (N, 3, H, W) to logits (N, K); stages layer1..layer4 hold width x (1, 2, 4, 8) channels.

    blocks: residual blocks per stage; (2, 2, 2, 2) is ResNet-18, (1, 1, 1, 1) ResNet-10. Any image size.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)):
        super().__init__()
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for i, (name, count) in enumerate(zip(STAGES, blocks, strict=True)):
            out = width * 2**i
            strides = [1 if i == 0 else 2] + [1] * (count - 1)
            stage = [BasicBlock(channels if j == 0 else out, out, stride) for j, stride in enumerate(strides)]
            self.add_module(name, nn.Sequential(*stage))
            channels = out
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in STAGES:
            x = getattr(self, name)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, C)
        return self.linear(x)
