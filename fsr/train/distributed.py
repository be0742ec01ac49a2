"""Several processes as one training: torchrun's group, one batch in shards. Alone this is process 0 of 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fsr.files import Interrupted, UsageError
from fsr.hardware import device_named

WAIT = timedelta(hours=24)  # rank 0 may wait for another command's lock; a lost process is noticed at once all the same


class Lost(Interrupted):
    """Another process of the group failed or was killed: the last checkpoint is whole, the same command resumes."""

    exit_code = 1


def requested() -> bool:
    """Was this process started by torchrun with more than one process?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def size() -> int:
    """Processes in the group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0, which writes."""
    return dist.get_rank() if size() > 1 else 0


@contextmanager
def group(device: str | None) -> Iterator[str]:
    """torchrun's processes as one group; yields this one's device. Raises Lost where a process is gone."""
    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {device}: under torchrun every process takes its own; type --device cpu or cuda")
    here = device_named(device)
    if here.type == "cuda":  # UsageError where there are more processes than GPUs
        here = device_named(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(here)
    store, number, count = next(dist.rendezvous("env://", timeout=WAIT))
    # torchrun's store outlives a group that it starts again, with the lost processes' addresses: a place per attempt
    store = dist.PrefixStore("attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "gloo" if here.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=WAIT)
    try:
        yield str(here)
        dist.barrier()  # nobody leaves while another still talks
    except RuntimeError as error:
        text = str(error).strip()
        if not (isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text):
            raise
        what = "another process failed or was killed; the last checkpoint is whole and the same command goes on"
        raise Lost(f"{what} ({text.splitlines()[0][:120]})") from None
    dist.destroy_process_group()


def decide(value):
    """Rank 0's value, in every process: what depends on files or clocks is decided once."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def gathered(value: Tensor) -> Tensor:
    """The tensors of all P processes, equal in shape, by rank: (P, ...). Those on the CPU do not wait for a GPU."""
    parts = [value.contiguous()] * size()
    if size() > 1:
        parts = [torch.empty_like(part) for part in parts]
        dist.all_gather(parts, value.contiguous())
    return torch.stack(parts)


@contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 goes through the block before the others: what it downloads is there for them."""
    if rank():
        dist.barrier()
    try:
        yield
    finally:
        if size() > 1 and not rank():
            dist.barrier()


def shard(n: int) -> slice:
    """This process's part of n images: contiguous, sizes differ by one at most, empty when n is too small."""
    start, end = (n * number // size() for number in (rank(), rank() + 1))
    return slice(start, end)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Every process's running statistics become their mean; for equal shards that is the whole batch's mean exactly."""
    floating = [b for b in model.buffers() if b.is_floating_point()]
    if size() > 1 and floating:
        mean = gathered(torch.cat([b.flatten() for b in floating])).mean(0)
        for buffer, part in zip(floating, mean.split([b.numel() for b in floating])):
            buffer.copy_(part.view_as(buffer))


def total(x: Tensor) -> Tensor:
    """Sum over processes, whose gradient is the sum of theirs."""
    value = gathered(x.detach()).sum(0) + (x - x.detach())
    if value.requires_grad:
        value.register_hook(lambda gradient: gathered(gradient).sum(0))
    return value


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm on a CPU, where torch has none: the statistics of all processes' images, float32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide, own = x.to(torch.promote_types(x.dtype, torch.float32)), cast(Any, self)
        count = gathered(torch.tensor(x[:, 0].numel())).sum()
        mean = total(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = total((centred**2).sum((0, 2, 3))) / count
        with torch.no_grad():
            own.num_batches_tracked += 1
            own.running_mean.lerp_(mean, self.momentum)
            own.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronised(model: nn.Module) -> nn.Module:
    """The model, changed: every BatchNorm's statistics are over all processes; its state_dict keeps its names."""
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm  # the same attributes, another forward
    return model
