"""Seeing through gradient masking in any model: honest slopes, guarded and averaged passes, slopes without backward."""

import itertools
import logging

import torch
from torch import Tensor, nn

from fsr.attacks.ascent import Look
from fsr.attacks.losses import Loss, Net, is_wrong
from fsr.attacks.slopes import Sloped

log = logging.getLogger("fsr")


class Softened(nn.Module):
    """A model with the same logits and honest slopes (see `Sloped`), in the strongest form that gives these logits.

    form: whole, part (without casts and comparisons), plain (the model itself), or cut: a model that refuses images
    which ask for a gradient gets them without. The features inside belong to the graph of the images given.
    """

    def __init__(self, model: nn.Module, probe: Tensor):
        super().__init__()
        self.model, self.form = model, "cut"
        for form in ("whole", "part", "plain"):
            self.form = form
            if self._runs(probe.detach().clone().requires_grad_()):
                return
        self.form = "cut"

    def _runs(self, x: Tensor) -> bool:
        try:
            with torch.enable_grad():
                logits = self(x)
                if logits.requires_grad:
                    torch.autograd.grad(logits.sum(), x, allow_unused=True)
            return self.form == "plain" or self._same(x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError) as error:
            log.debug("not softened in the form %s: %s", self.form, error)
            return False

    def _same(self, x: Tensor) -> bool:
        """Are these the model's own logits?  True where it draws what no seed repeats, and nothing can be said.

        x asks for a gradient: without one nothing is softened.
        """
        seen = []
        with torch.enable_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            for net, images in ((self.model, x.detach()), (self.model, x.detach()), (self, x)):
                torch.manual_seed(0)
                seen.append(net(images).detach().nan_to_num())
        first, again, mine = seen
        return torch.allclose(mine, first, rtol=1e-2, atol=1e-2) or not torch.allclose(first, again)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        if self.form in ("plain", "cut"):
            return self.model(x if self.form == "plain" else x.detach())
        with Sloped(whole=self.form == "whole"):
            return self.model(x)


class _Guard(torch.autograd.Function):
    """Runs a model inside one node of the graph, whose backward pass never fails."""

    @staticmethod
    def forward(ctx, x: Tensor, model: nn.Module) -> Tensor:
        with torch.enable_grad():
            ctx.leaf = x.detach().requires_grad_()
            try:
                ctx.logits = model(ctx.leaf)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # numpy refuses images that ask for a gradient
                log.debug("run without a gradient: %s", error)
                ctx.logits = model(x.detach())
        return ctx.logits.detach().clone()

    @staticmethod
    def backward(ctx, up: Tensor):
        if not ctx.logits.requires_grad:
            return torch.zeros_like(ctx.leaf), None
        try:
            (grad,) = torch.autograd.grad(ctx.logits, ctx.leaf, up, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation without a derivative
            log.debug("zero gradient in place of: %s", error)
            grad = None
        return torch.zeros_like(ctx.leaf) if grad is None else grad.nan_to_num(0, 0, 0), None


class Guarded(nn.Module):
    """A model with the same logits whose input gradient always exists: zero where the model's own cannot be had.

    Integer casts, numpy, detach and operations without a derivative otherwise end a gradient attack with an exception.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Guard.apply(x, self.model)
        return self.model(x)


class Averaged(nn.Module):
    """Log of a randomised model's mean softmax over several draws, (N, K): what it decides, not what one draw says."""

    def __init__(self, model: nn.Module, draws: int):
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Log probabilities (N, K)."""
        mean = sum(self.model(x).softmax(dim=1) for _ in range(self.draws)) / self.draws
        return mean.clamp_min(1e-30).log()


def estimated(net: Net, loss: Loss, *, sigma: float, pairs: int, seed: int = 0) -> Look:
    """Look that never calls backward: antithetic Gaussian differences of width sigma (NES, Ilyas et al. 2018, alg. 1).

    sigma in pixels of [0, 1], chosen larger than a quantiser's step. Half of the directions move all channels together,
    which is the better half on grey images. Every look draws its own: with the same ones all slopes of an attack would
    lie in one small subspace.
    """
    turn = itertools.count()

    def look(x_adv: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(device=x_adv.device).manual_seed(seed * 1_000_003 + next(turn))
        with torch.no_grad():
            logits = net(x_adv)
            gradient = torch.zeros_like(x_adv)
            for i in range(pairs):
                shape = list(x_adv.shape) if i % 2 else [len(x_adv), 1, *x_adv.shape[2:]]
                direction = torch.randn(shape, generator=generator, device=x_adv.device, dtype=x_adv.dtype)
                # not clipped to [0, 1]: a clip would shrink one side of the difference
                up, down = loss(net(x_adv + sigma * direction), y), loss(net(x_adv - sigma * direction), y)
                gradient = gradient + (up - down).nan_to_num(0, 0, 0).view(-1, 1, 1, 1) * direction
            return loss(logits, y), gradient, is_wrong(logits, y)

    return look
