"""A faster copy of a network for evaluation attacks to differentiate; the float32 network itself judges.

N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fsr.train.capture import compiled_net, dtype_of, laid_out, use_channels_last, use_winograd
from fsr.train.fold import Twin


class FastNet(nn.Module):
    """A network for evaluation attacks to differentiate: model in eval mode, folded, in `precision`; logits float32.

    It is a copy, made at the first call from the model of that moment, with its interventions; the float32 model
    judges. compile, channels_last, winograd: None for the device's default.
    """

    def __init__(
        self, model: nn.Module, precision: str = "float32", *, compile=None, channels_last=None, winograd=None
    ):
        super().__init__()
        device = next(model.parameters()).device
        self._model = [model]  # in a list: not a submodule
        self.dtype = dtype_of(precision, device)
        self.channels_last = use_channels_last(model, device) if channels_last is None else channels_last
        self.winograd = use_winograd(model, self.dtype, device) if winograd is None else winograd
        self.compile_wanted = device.type == "cuda" if compile is None else compile
        self.net: Any = None
        self._fast: Callable[[Tensor], Tensor] | None = None

    def _ready(self, x: Tensor) -> Tensor:
        if self.net is None:
            how: dict[str, Any] = {"dtype": self.dtype, "channels_last": self.channels_last}
            twin = Twin(self._model[0], x.detach(), **how, fewer_products=self.winograd)
            self.net, self.dtype, self.winograd = twin.net, twin.dtype, twin.winograd
            if self.compile_wanted:
                may_differ = 0.05 if self.dtype == torch.bfloat16 else 1e-3
                self._fast = compiled_net(self.net, laid_out(x.detach(), self.channels_last), may_differ=may_differ)
        return laid_out(x, self.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) float32 to logits (N, K) float32, differentiable in x."""
        if self._fast is not None and len(x) == 1:  # a single image would be compiled as a shape of its own
            return self.forward(torch.cat([x, x]))[:1]
        x = self._ready(x)
        if self._fast is None:
            return self.net(x).float()
        torch._dynamo.maybe_mark_dynamic(x, 0)  # attacks drop the images they have broken: batches of any size
        return self._fast(x).float()

    @property
    def described(self) -> dict[str, str | bool]:
        """What attacks are crafted in, for a record; final after the first call."""
        return {"dtype": str(self.dtype).removeprefix("torch."), "winograd": self.winograd}

    def trace(self, x: Tensor, y: Tensor | None = None):
        """Logits and streams of the copy, for attacks on more than the logits; not compiled."""
        x = self._ready(x)
        logits, streams = self.net.trace(x, y)
        return logits.float(), streams


def fast_net(
    model: nn.Module, precision: str = "float32", *, compile=None, channels_last=None, winograd=None, graphs=None
) -> FastNet:
    """A faster copy of model for evaluation attacks (see FastNet); graphs is accepted for symmetry and not used."""
    return FastNet(model, precision, compile=compile, channels_last=channels_last, winograd=winograd)
