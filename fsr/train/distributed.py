"""Several processes as one training: torchrun's group, one batch in shards. Alone this is process 0 of 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.files import FSRError
from fsr.hardware import device_named

WAIT = timedelta(hours=24)  # rank 0 may wait for another command's lock; a lost process is noticed at once all the same


def requested() -> bool:
    """Was this process started by torchrun with more than one process?"""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; process 0 writes all files."""
    return dist.get_rank() if size() > 1 else 0


@contextmanager
def group(device: str | None) -> Iterator[str]:
    """torchrun's processes as one group; yields this one's device. FSRError where a process is gone."""
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
        if not (isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)):
            raise
        raise FSRError("another process failed; the last checkpoint is whole, type the same again") from None
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


def shard(n: int) -> slice:
    """This process's part of n images: contiguous, sizes differ by one at most, empty when n is too small."""
    return slice(*(n * number // size() for number in (rank(), rank() + 1)))


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Every process gets the mean of all running statistics; variances lack the spread between the shards."""
    for buffer in model.buffers() if size() > 1 else ():
        if buffer.is_floating_point():
            buffer.copy_(gathered(buffer).mean(0))


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm on a CPU, where torch has none: BatchNorm of all processes' images, of which each keeps its own."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        sizes = gathered(torch.tensor(len(x))).tolist()
        padded = F.pad(x, (0,) * 7 + (max(sizes) - len(x),))  # only tensors of one shape can be gathered
        shards = gathered(padded.detach())
        shards[rank()] = padded
        if shards.requires_grad:
            shards.register_hook(lambda gradient: gathered(gradient).sum(0))
        whole = torch.cat([part[:n] for part, n in zip(shards, sizes)])
        return super().forward(whole).split(sizes)[rank()]


def synchronise(model: nn.Module) -> None:
    """Change the model: every BatchNorm's statistics are over all processes; its state_dict keeps its names."""
    if next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm  # the same attributes, another forward
