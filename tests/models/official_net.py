"""The authors' networks rebuilt from their description, under their weights' names: a second opinion for tests.

Their ResNet-18 is compared with their own code, in test_train. Fixed 8x8 window, two explicit Gumbel variables,
1e-8 inside each logarithm and added to tau.
"""

import torch
from torch import nn
from torch.nn import functional as F

SMALL = 1e-8


def conv(channels_in, channels_out, stride=1, size=3):
    return nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)


def three_convolutions(c, hidden):
    first, second = ([conv(n, hidden), nn.BatchNorm2d(hidden), nn.ReLU()] for n in (c, hidden))
    return nn.Sequential(*first, *second, conv(hidden, c))


class Holder(nn.Module):
    """Gives its children their names."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class OfficialFSR(nn.Module):
    """The part that their three networks share."""

    def add_fsr(self, channels, hidden, classes, tau):
        self.separation = Holder(sep_net=three_convolutions(channels, hidden))
        self.recalibration = Holder(rec_net=three_convolutions(channels, hidden))
        self.aux = nn.Sequential(nn.Linear(channels, classes))
        self.tau = tau

    def apply_fsr(self, f):
        p = torch.sigmoid(self.separation.sep_net(f))
        gumbel = -torch.log(-torch.log(torch.full_like(p, 0.5) + SMALL) + SMALL)
        pair = torch.stack([torch.log(p + SMALL) + gumbel, torch.log(1 - p + SMALL) + gumbel])
        mask = torch.softmax(pair / (self.tau + SMALL), dim=0)[0]
        robust, nonrobust = f * mask, f * (1 - mask)
        recalibrated = nonrobust + self.recalibration.rec_net(nonrobust) * (1 - mask)
        aux = [self.aux(s.mean((2, 3))) for s in (robust, nonrobust, recalibrated)]
        return robust + recalibrated, aux


class OfficialVGG(OfficialFSR):
    def __init__(self, classes=10, width=64, hidden=64, tau=0.1):
        super().__init__()
        c = 3
        for i, count in enumerate((2, 2, 3, 3, 3)):
            out, layers = width * (1, 2, 4, 8, 8)[i], []
            for _ in range(count):
                layers += [nn.Conv2d(c, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU()]
                c = out
            setattr(self, f"block{i}", nn.Sequential(*layers))
        hidden_layers = [nn.Linear(c, c), nn.ReLU(), nn.Linear(c, c), nn.ReLU()]
        self.classifier = nn.Sequential(*hidden_layers, nn.Linear(c, classes))
        self.add_fsr(c, hidden, classes, tau)

    def forward(self, x):
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(block(x), 2)
        x, aux = self.apply_fsr(self.block3(x))
        x = F.max_pool2d(self.block4(F.max_pool2d(x, 2)), 2)
        return self.classifier(x.mean((2, 3))), aux


def wide_stage(c, out, stride):
    """Five pre-activation blocks under the name `layer`."""
    blocks = []
    for i in range(5):
        convs = {"conv1": conv(c, out, 1 if i else stride), "conv2": conv(out, out)}
        blocks.append(Holder(bn1=nn.BatchNorm2d(c), bn2=nn.BatchNorm2d(out), **convs))
        if c != out:
            blocks[-1].convShortcut = conv(c, out, stride, 1)
        c = out
    return Holder(layer=nn.Sequential(*blocks))


class OfficialWideResNet(OfficialFSR):
    def __init__(self, classes=10, width=10, hidden=64, tau=0.1):
        super().__init__()
        c = 64 * width
        self.conv1 = conv(3, 16)
        self.block1, self.sub_block1 = (wide_stage(16, 16 * width, 1) for _ in range(2))  # the second never runs
        self.block2, self.block3 = wide_stage(16 * width, 32 * width, 2), wide_stage(32 * width, c, 2)
        self.bn1, self.fc = nn.BatchNorm2d(c), nn.Linear(c, classes)
        self.add_fsr(c, hidden, classes, tau)

    def forward(self, x):
        x = self.conv1(x)
        for block in [*self.block1.layer, *self.block2.layer, *self.block3.layer]:
            active = F.relu(block.bn1(x))
            y = block.conv2(F.relu(block.bn2(block.conv1(active))))
            x = y + (block.convShortcut(active) if hasattr(block, "convShortcut") else x)
        x, aux = self.apply_fsr(F.relu(self.bn1(x)))
        return self.fc(F.avg_pool2d(x, 8).flatten(1)), aux


NETWORKS = {"vgg16": OfficialVGG, "wideresnet34": OfficialWideResNet}


def randomised(net):
    """Norms away from their defaults, so that a swapped or skipped one shows."""
    for module in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
        for positive, value in ((module.weight, module.bias), (module.running_var, module.running_mean)):
            nn.init.uniform_(positive, 0.6, 1.4)
            nn.init.normal_(value, 0, 0.2)
    return net.eval()
