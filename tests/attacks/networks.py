"""The networks that tests of attacks share."""

from types import SimpleNamespace

import torch
from torch import nn


class Linear(nn.Module):
    """Logits W x of K classes over flattened pixels, float64; with two classes the worst point in the ball is known."""

    def __init__(self, classes=2, pixels=48, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(classes, pixels, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) @ self.w.T


class Net(nn.Module):
    """Convolution, BatchNorm, dropout and a head, in eval mode: what a mode, a neighbour or a pass could disturb."""

    def __init__(self, classes=6, seed=3):
        super().__init__()
        torch.manual_seed(seed)
        head = nn.Dropout(0.5), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *head)
        self.eval()
        with torch.no_grad():  # every class is somebody's
            self.layers[-1].bias -= self.layers(torch.rand(200, 3, 8, 8)).mean(0)

    def forward(self, x):
        return 20 * self.layers(x)

    def trace(self, x):
        """As fsr.models.Classifier.trace: logits, and a stream with one auxiliary head."""
        logits = self(x)
        return logits, [SimpleNamespace(aux={"probe": logits.flip(1)})]
