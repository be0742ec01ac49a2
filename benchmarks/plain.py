"""The plain side of every comparison: what the authors' training loop does, written by us, nothing made faster.

float32 (on a GPU with torch's default TF32 convolutions), eager, one process that also decodes and augments with PIL,
gradients of the parameters in every attack step, and the losses read with `.item()` after every batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fsr.config import Run
from fsr.data import augmentation
from fsr.train.objectives import Objective


class PlainTrainer:
    """Adversarial training of model (plain AT, with or without FSR) one batch at a time."""

    def __init__(self, run: Run, model: nn.Module):
        self.run, self.model, self.objective = run, model, Objective(model, run)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=run.lr, momentum=run.momentum, weight_decay=run.weight_decay
        )

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """PGD from a uniform start on cross-entropy in eval mode, by `backward`, as is usual in such code."""
        run = self.run
        self.model.eval()
        x_adv = (x + torch.empty_like(x).uniform_(-run.eps, run.eps)).clamp(0, 1)
        for _ in range(run.steps):
            x_adv = x_adv.detach().requires_grad_()
            F.cross_entropy(self.model(x_adv), y).backward()
            moved = x_adv.detach() + run.alpha * x_adv.grad.sign()
            x_adv = torch.min(torch.max(moved, x - run.eps), x + run.eps).clamp(0, 1)
        self.model.train()
        return x_adv.detach()

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """One training step on a batch (N, C, H, W) in [0, 1]; returns the loss parts."""
        x_adv = self.craft(x, y)
        self.optimizer.zero_grad()
        parts, _ = self.objective(x, x_adv, y)
        self.objective.total(parts).backward()
        self.optimizer.step()
        return {name: part.item() for name, part in parts.items()}


class PilImages(Dataset):
    """uint8 images (N, 3, H, W) as PIL images, padded, cropped, flipped and made tensors one by one."""

    def __init__(self, x: Tensor, y: Tensor, run: Run):
        from torchvision import transforms

        pad, flip = augmentation(run)
        steps = [transforms.RandomCrop(x.shape[-1], padding=pad)] if pad else []
        steps += [transforms.RandomHorizontalFlip()] if flip else []
        self.transform = transforms.Compose([*steps, transforms.ToTensor()])
        self.x, self.y = x.permute(0, 2, 3, 1).numpy(), y.tolist()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.x[i])), self.y[i]


def loader(x: Tensor, y: Tensor, run: Run) -> DataLoader:
    """Shuffled batches from one process."""
    return DataLoader(PilImages(x, y, run), batch_size=run.batch, shuffle=True, num_workers=0)
