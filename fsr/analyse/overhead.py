"""T8: what the inserted module costs: the same network with and without it, measured in turns."""

import copy
import statistics
import timeit
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr import hardware
from fsr.config import replace
from fsr.data import as_float
from fsr.models import Classifier, count_macs, count_params, model_of

BATCHES = (1, 128)  # of latency; peak memory at the last
WARMUPS, REPEATS = 2, 9


def peak_memory(model: Classifier, x: Tensor, y: Tensor) -> float:
    """MiB at the peak of one training batch without optimiser: a GPU's allocator counts, or torch its live tensors."""
    from torch.distributed._tools.mem_tracker import MemTracker

    model, tracker, before = copy.deepcopy(model).train(), MemTracker(), 0
    tracker.track_external(model)
    if x.is_cuda:
        before = torch.cuda.memory_allocated(x.device) - sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        torch.cuda.reset_peak_memory_stats(x.device)
    with torch.random.fork_rng([x.device] * x.is_cuda), tracker:  # the mask's noise draws
        logits, streams = model.trace(x, y)
        outputs = [logits, *(aux for one in streams for aux in one.aux.values())]
        torch.stack([F.cross_entropy(output, y) for output in outputs]).sum().backward()
    alive = tracker.get_tracker_snapshot("peak")[x.device]["Total"]
    return (torch.cuda.max_memory_allocated(x.device) - before if x.is_cuda else alive) / 2**20


@torch.no_grad()
def latencies(models: list[Classifier], x: Tensor) -> list[float]:
    """Median milliseconds of an eval-mode pass of each model on x, in turns: a machine that slows down slows all."""

    def once(model: Classifier) -> None:
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    turns = [[timeit.timeit(partial(once, model), number=1) for model in models] for _ in range(WARMUPS + REPEATS)]
    return [1000 * statistics.median(times) for times in zip(*turns[WARMUPS:])]


def cost(job) -> dict:
    """T8: parameters, latency and MACs of inference, memory of training; `_without`: the same without modules."""
    with torch.random.fork_rng([]):  # the plain network's weights, which cost nothing
        bare = model_of(replace(job.run, module=None), job.data.classes).to(job.data.test_x.device).eval()
    pair, data = [job.model, bare], job.data
    rows = torch.arange(BATCHES[-1]) % len(data.test_y)  # from the first again
    x, y = as_float(data.test_x[rows]), data.test_y[rows]
    params, macs = [count_params(model) for model in pair], [count_macs(model, x[:1]) for model in pair]
    record: dict = {"memory": "allocator" if x.is_cuda else "live tensors", "memory_batch": BATCHES[-1]}
    record |= {"params": params[0], "params_added": params[0] - params[1]}
    record |= {"macs": macs[0], "macs_added": macs[0] - macs[1]}
    times = {str(n): latencies(pair, x[:n]) for n in BATCHES}
    for i, suffix in enumerate(("", "_without")):
        record[f"latency_ms{suffix}"] = {n: round(medians[i], 4) for n, medians in times.items()}
        record[f"peak_memory_mb{suffix}"] = round(peak_memory(pair[i], x, y), 3)
    return record | {"dtype": "float32", "repeats": REPEATS, "hardware": hardware.describe(x.device)}
