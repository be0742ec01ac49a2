"""VGG-16 with BatchNorm for small images (Simonyan & Zisserman 2015), with a 512-512-K head.

N images, H and W pixels, K classes. Stages block1..block5; each max-pool opens the next stage, so that a module
after block4 sits between conv4_3 + BN + ReLU and that stage's max-pool.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ("block1", "block2", "block3", "block4", "block5")
FULL = 512  # inputs of the authors' linear layers


class VGG(nn.Module):
    """Images (N, 3, H, W) to logits (N, K); stages hold width x (1, 2, 4, 8, 8) channels, the head 8 x width.

    blocks: convolutions per stage, each followed by BatchNorm and ReLU; (2, 2, 3, 3, 3) is VGG-16. Any image size.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, blocks: tuple[int, ...] = (2, 2, 3, 3, 3)):
        super().__init__()
        channels = 3
        for i, (name, count) in enumerate(zip(STAGES, blocks, strict=True)):
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
        for name in STAGES:
            x = getattr(self, name)(x)
        x = F.adaptive_avg_pool2d(self.pool(x), 1).flatten(1)  # (N, C)
        return self.classifier(x)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Convolutions kaiming-normal fan_out, linears N(0, 0.01), biases zero, in every part of module.

    Linears of fewer than the authors' 512 inputs are kaiming-normal fan_in: with 0.01 a narrow VGG never leaves chance
    under AT (measured at width 8 for 60 epochs), and only the auxiliary losses would free it, which is no robustness.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01 if part.in_features >= FULL else (2 / part.in_features) ** 0.5)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
