"""The authors' three networks rebuilt from their description, under their weights' names: a second opinion for tests.

Written for checking only: fixed 8x8 window, two explicit Gumbel variables, 1e-8 inside each logarithm and added to tau.
"""

import torch
from torch import nn
from torch.nn import functional as F

SMALL = 1e-8


def conv(channels_in, channels_out, stride=1):
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)


def three_convolutions(channels, hidden):
    """Conv, BN, ReLU, conv, BN, ReLU, conv."""
    layers = [conv(channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU()]
    layers += [conv(hidden, hidden), nn.BatchNorm2d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, conv(hidden, channels))


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


def residual_block(channels_in, channels_out, stride):
    """The parts of a basic block."""
    norms = {"bn1": nn.BatchNorm2d(channels_out), "bn2": nn.BatchNorm2d(channels_out)}
    shortcut = []
    if stride != 1 or channels_in != channels_out:
        shortcut = [nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)]
    convs = {"conv1": conv(channels_in, channels_out, stride), "conv2": conv(channels_out, channels_out)}
    return Holder(**convs, **norms, shortcut=nn.Sequential(*shortcut))


class OfficialResNet(OfficialFSR):
    def __init__(self, classes=10, width=64, hidden=64, tau=0.1):
        super().__init__()
        self.conv1, self.bn1 = conv(3, width), nn.BatchNorm2d(width)
        before = width
        for i in range(4):
            out = width * 2**i
            blocks = [residual_block(before, out, 2 if i else 1), residual_block(out, out, 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            before = out
        self.add_fsr(out, hidden, classes, tau)
        self.linear = nn.Linear(out, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for block in [*self.layer1, *self.layer2, *self.layer3, *self.layer4]:
            y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
            x = F.relu(y + block.shortcut(x))
        x, aux = self.apply_fsr(x)
        return self.linear(x.mean((2, 3))), aux


class OfficialVGG(OfficialFSR):
    def __init__(self, classes=10, width=64, hidden=64, tau=0.1):
        super().__init__()
        before = 3
        for i, count in enumerate((2, 2, 3, 3, 3)):
            out, layers = width * (1, 2, 4, 8, 8)[i], []
            for _ in range(count):
                layers += [nn.Conv2d(before, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU()]
                before = out
            setattr(self, f"block{i}", nn.Sequential(*layers))
        hidden_layers = [nn.Linear(out, out), nn.ReLU(), nn.Linear(out, out), nn.ReLU()]
        self.classifier = nn.Sequential(*hidden_layers, nn.Linear(out, classes))
        self.add_fsr(out, hidden, classes, tau)

    def forward(self, x):
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(block(x), 2)
        x, aux = self.apply_fsr(self.block3(x))
        x = F.max_pool2d(self.block4(F.max_pool2d(x, 2)), 2)
        return self.classifier(x.mean((2, 3))), aux


def wide_block(channels_in, channels_out, stride):
    """The parts of a pre-activation block."""
    norms = {"bn1": nn.BatchNorm2d(channels_in), "bn2": nn.BatchNorm2d(channels_out)}
    block = Holder(**norms, conv1=conv(channels_in, channels_out, stride), conv2=conv(channels_out, channels_out))
    if channels_in != channels_out:
        block.convShortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return block


def wide_stage(channels_in, channels_out, stride, count):
    """Blocks under the name `layer`."""
    first = wide_block(channels_in, channels_out, stride)
    return Holder(layer=nn.Sequential(first, *(wide_block(channels_out, channels_out, 1) for _ in range(count - 1))))


class OfficialWideResNet(OfficialFSR):
    def __init__(self, classes=10, width=10, hidden=64, tau=0.1, count=5):
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = conv(3, 16)
        self.block1 = wide_stage(widths[0], widths[1], 1, count)
        self.sub_block1 = wide_stage(widths[0], widths[1], 1, count)  # never run
        self.block2 = wide_stage(widths[1], widths[2], 2, count)
        self.block3 = wide_stage(widths[2], widths[3], 2, count)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)
        self.add_fsr(widths[3], hidden, classes, tau)

    def forward(self, x):
        x = self.conv1(x)
        for block in [*self.block1.layer, *self.block2.layer, *self.block3.layer]:
            active = F.relu(block.bn1(x))
            y = block.conv2(F.relu(block.bn2(block.conv1(active))))
            x = y + (block.convShortcut(active) if hasattr(block, "convShortcut") else x)
        x, aux = self.apply_fsr(F.relu(self.bn1(x)))
        return self.fc(F.avg_pool2d(x, 8).flatten(1)), aux


NETWORKS = {"resnet18": OfficialResNet, "vgg16": OfficialVGG, "wideresnet34": OfficialWideResNet}


def randomised(net):
    """Weights and running statistics that are away from their defaults, so that a swapped or skipped one shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.6, 1.4)
    return net.eval()
