"""T8: what the inserted module costs: the same network with and without it, measured in turns."""

import copy
import statistics
import time
import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsr import hardware
from fsr.analyse.inspection import Inspection
from fsr.data import as_float
from fsr.models import Classifier, Inserted, count_macs, count_params

BATCHES = (1, 128)  # of latency; peak memory at the last
WARMUPS, REPEATS = 2, 9


def without_inserted(model: Classifier) -> Classifier:
    """A copy of model from which every inserted module is taken out again; the rest keeps its weights."""
    bare = copy.deepcopy(model)
    for path, part in reversed(list(bare.named_modules())):  # the inner of two first
        if isinstance(part, Inserted):
            parent, _, name = path.rpartition(".")
            setattr(bare.get_submodule(parent), name, part.submodule)
    return bare


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that torch makes inside the block: `now`, and their `peak`; kernels' scratch is not seen."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, weakref.finalize] = {}

    def _freed(self, key: int, size: int) -> None:
        self.now -= size
        del self._held[key]

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._held:  # a view, or written in place
            return
        self._held[storage._cdata] = weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._made(leaf)
        return out


def _step(model: Classifier, x: Tensor, y: Tensor) -> None:
    """Forward and backward pass of one training batch: the final cross-entropy and one for each auxiliary output."""
    logits, streams = model.trace(x, y)
    outputs = [logits, *(aux for one in streams for aux in one.aux.values())]
    torch.stack([F.cross_entropy(output, y) for output in outputs]).sum().backward()


def _own_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def peak_memory(model: Classifier, x: Tensor, y: Tensor) -> float:
    """MiB at the peak of one training batch, weights and gradients included, the optimiser's state not.

    On a GPU as its allocator saw it, else the live tensors' sum. model and the random state are left as they were.
    """
    model = copy.deepcopy(model).train()
    cuda = x.device.type == "cuda"
    with torch.random.fork_rng(devices=[x.device] if cuda else []):  # the mask's noise draws
        if not cuda:
            with LiveMemory() as live:
                _step(model, x, y)
            return (live.peak + _own_bytes(model)) / 2**20
        torch.cuda.synchronize(x.device)
        before = torch.cuda.memory_allocated(x.device) - _own_bytes(model)
        torch.cuda.reset_peak_memory_stats(x.device)
        _step(model, x, y)
        return (torch.cuda.max_memory_allocated(x.device) - before) / 2**20


def _milliseconds(model: nn.Module, x: Tensor) -> float:
    def now() -> float:
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return time.perf_counter()

    started = now()
    model(x)
    return 1000 * (now() - started)


@torch.no_grad()
def latencies(models: list[Classifier], x: Tensor, repeats: int = REPEATS) -> list[float]:
    """Median milliseconds of one eager eval-mode pass of each model on x.

    In turns, model by model, so that a machine that slows down slows all of them.
    """
    times: list[list[float]] = [[] for _ in models]
    for turn in range(WARMUPS + repeats):
        for model, taken in zip(models, times):
            took = _milliseconds(model, x)
            if turn >= WARMUPS:
                taken.append(took)
    return [statistics.median(taken) for taken in times]


def _images(job: Inspection, n: int) -> tuple[Tensor, Tensor]:
    """n real test images, float32 in [0, 1], and labels; from the first again when there are fewer."""
    rows = torch.arange(n, device=job.data.test_x.device) % len(job.data.test_y)
    return as_float(job.data.test_x[rows].to(job.device)), job.data.test_y[rows].to(job.device)


def cost(job: Inspection) -> tuple[dict, dict]:
    """T8: parameters, multiply-accumulates per image, latency, peak memory and seconds of a training epoch.

    Keys that end in `_without` are of the same network with its inserted modules taken out. MACs and latency are of
    inference, where no auxiliary head runs; parameters count it.
    """
    bare = without_inserted(job.model)
    pair = {"": job.model, "_without": bare}
    record: dict = {"train_seconds_per_epoch": job.seconds_per_epoch, "hardware": hardware.describe(job.device)}
    params = [count_params(model) for model in pair.values()]
    macs = [count_macs(model, _images(job, 1)[0]) for model in pair.values()]
    record |= {"params": params[0], "params_added": params[0] - params[1]}
    record |= {"macs": macs[0], "macs_added": macs[0] - macs[1]}
    times = {str(n): latencies(list(pair.values()), _images(job, n)[0]) for n in BATCHES}
    for i, suffix in enumerate(pair):
        record[f"latency_ms{suffix}"] = {n: round(medians[i], 4) for n, medians in times.items()}
    x, y = _images(job, BATCHES[-1])
    for suffix, model in pair.items():
        record[f"peak_memory_mb{suffix}"] = round(peak_memory(model, x, y), 3)
    how = "allocator" if job.device.type == "cuda" else "live tensors"
    return record | {"memory": how, "memory_batch": BATCHES[-1], "dtype": "float32", "repeats": REPEATS}, {}
