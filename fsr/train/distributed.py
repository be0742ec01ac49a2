"""Several processes as one training: torchrun's group, one batch in shards, and what all must agree on.

Alone, every function does nothing: rank 0 of 1.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fsr.files import Interrupted, UsageError

WAIT = timedelta(hours=24)  # rank 0 may wait for another command's lock; a lost process is noticed at once all the same


class Lost(Interrupted):
    """Another process of the group failed or was killed: the last checkpoint is whole, the same command resumes."""

    exit_code = 1


def requested() -> bool:
    """Was this process started by torchrun with more than one process?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def together() -> bool:
    """Is there a group of more than one process?"""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0, which writes."""
    return dist.get_rank() if together() else 0


def size() -> int:
    """Processes in the group."""
    return dist.get_world_size() if together() else 1


@contextmanager
def group(device: str | None) -> Iterator[str]:
    """torchrun's processes as one group; yields this one's device: cpu, or cuda:N for the N-th process of a machine.

    device: cpu, cuda or None (cuda when there is one).
    """
    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {device}: under torchrun every process takes its own; type --device cpu or cuda")
    cuda = torch.cuda.is_available() if device is None else device == "cuda"
    here, local = "cpu", int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        if local >= torch.cuda.device_count():
            many = f"torchrun started {local + 1} processes or more for {torch.cuda.device_count()} GPUs"
            raise UsageError(f"{many}; give --nproc-per-node=gpu or --device cpu")
        torch.cuda.set_device(local)
        here = f"cuda:{local}"
    store, number, count = next(dist.rendezvous("env://", timeout=WAIT))
    # torchrun's store outlives a group that it starts again, with the lost processes' addresses: a place per attempt
    store = dist.PrefixStore("attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=WAIT)
    with noticing_losses():
        yield here
        dist.barrier()  # nobody leaves while another still talks
    dist.destroy_process_group()


@contextmanager
def noticing_losses() -> Iterator[None]:
    """A collective that fails because a process is gone raises Lost."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not (together() and (isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text)):
            raise
        raise Lost(
            "another process of the group failed or was killed; the last checkpoint is whole and the same command "
            f"goes on from there ({text.strip().splitlines()[0][:120]})"
        ) from None


def decide(value):
    """Rank 0's value, in every process: what depends on files or clocks is decided once."""
    if not together():
        return value
    box = [value]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def any_of(flag: bool) -> bool:
    """True everywhere when it is true in one process; does not wait for a GPU."""
    if not together():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


@contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 goes through the block before the others: what it downloads is there for them."""
    if together() and rank():
        dist.barrier()
    try:
        yield
    finally:
        if together() and not rank():
            dist.barrier()


def shard(n: int) -> slice:
    """This process's part of n images: contiguous, sizes differ by one at most, empty when n is too small."""
    base, extra = divmod(n, size())
    start = rank() * base + min(rank(), extra)
    return slice(start, start + base + (rank() < extra))


def share(n: int) -> float:
    """What the mean over this shard must be multiplied by so that the mean over processes is the mean over n images."""
    part = shard(n)
    return (part.stop - part.start) * size() / n


def summed(values: dict[str, Tensor], *, largest: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Sums over all processes of scalars by name, and the largest of those named in `largest`; alone, the same."""
    if not together() or not values:
        return values
    sums = torch.stack([value.double() for value in values.values()])
    maxima = sums.clone()
    dist.all_reduce(sums)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return {name: (maxima if name in largest else sums)[i] for i, name in enumerate(values)}


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Every process's running statistics become their mean; for equal shards that is the whole batch's mean exactly."""
    floating = [b for b in model.buffers() if b.is_floating_point()]
    if not together() or not floating:
        return
    flat = torch.cat([b.reshape(-1) for b in floating])
    dist.all_reduce(flat)
    parts = (flat / size()).split([b.numel() for b in floating])
    for buffer, part in zip(floating, parts):
        buffer.copy_(part.view_as(buffer))


def averaging(objective: nn.Module, smallest: int) -> nn.Module:
    """The objective, its gradients averaged over processes; smallest: images in the smallest batch.

    DDP hands round the running statistics of rank 0, which `average_buffers` has made equal to all others'.
    """
    if not together():
        return objective
    if smallest < 2 * size():
        few = f"the smallest batch has {smallest} images, fewer than two for each of {size()} processes"
        raise UsageError(f"{few}; give torchrun a smaller --nproc-per-node")
    return DistributedDataParallel(objective)


class _Sum(torch.autograd.Function):
    """Sum over processes whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm on a CPU, where torch has none: the statistics of all processes' images, float32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) of this process, in any precision; returns like x."""
        if not self.training:
            return super().forward(x)
        x, dtype = (x if x.dtype == torch.float64 else x.float()), x.dtype
        count = _Sum.apply(torch.tensor(float(x.numel() // x.shape[1])))
        mean = _Sum.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _Sum.apply((centred**2).sum((0, 2, 3))) / count
        with torch.no_grad():
            own: Any = self
            own.num_batches_tracked += 1
            own.running_mean.lerp_(mean, self.momentum)
            own.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(dtype)


def synchronised(model: nn.Module) -> nn.Module:
    """The model, changed: every BatchNorm's statistics are over all processes; its state_dict keeps its names."""
    if not together():
        return model
    if next(model.parameters()).device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm  # the same attributes, another forward
    return model
