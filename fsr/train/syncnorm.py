"""BatchNorm over all processes on a CPU, where torch has none."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """Sum over processes whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm on a CPU, where torch has none: the same statistics, by sums over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) of this process; like x, normalised with the statistics of all processes' images.

        Of bf16 features too statistics are float32, as torch's own are.
        """
        if not self.training:
            return super().forward(x)
        x, dtype = (x if x.dtype == torch.float64 else x.float()), x.dtype
        count = _Sum.apply(torch.tensor(float(x.numel() // x.shape[1])))
        mean = _Sum.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _Sum.apply((centred**2).sum((0, 2, 3))) / count
        with torch.no_grad():
            tracked, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
            assert tracked is not None and running_mean is not None and running_var is not None
            assert self.momentum is not None
            tracked += 1
            running_mean.lerp_(mean, self.momentum)
            running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)
