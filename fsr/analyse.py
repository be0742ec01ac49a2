"""What a trained network does inside, and what it costs, by the kind that records use: F1, F2, F8, T7 and T8.

N images, C channels, h and w positions, K classes; f is the map (N, C, h, w) that the last inserted module was given.
"""

import timeit
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsr import hardware
from fsr.attacks import ATTACKS
from fsr.config import Analysis, Run, replace
from fsr.data import Data, as_float, batches, part_of_test
from fsr.models import BACKBONES, FSR, Classifier, count_macs, count_params, model_of
from fsr.models.modes import copied, eval_mode, hooked

ATTACK, BATCH = "pgd20", 250  # of every analysis
STREAMS = ("robust", "nonrobust", "recalibrated")
BINS = 40  # 0.05 and 0.95 are edges
SATURATED = 0.05  # below it, or above 1 minus it, the mask's slope m (1 - m) / tau is at most a fifth of its largest
PERPLEXITY, SEED = 30, 0  # of t-SNE
TEMPERATURE = 0.07  # of the neighbours' weights exp(similarity / temperature)
LATENCY_BATCHES = (1, 128)  # peak memory at the last
WARMUPS, REPEATS = 2, 9  # passes that are not timed, and those that are


class Seen(NamedTuple):
    """One batch at the last inserted module."""

    logits: Tensor  # (N, K) of the network
    maps: dict[str, Tensor]  # f, output, and the streams that exist: each (N, C, h, w)
    mask: Any  # (N, C, h, w) in [0, 1], or None


class Inspection:
    """A network in eval mode, the test images to look at, and the last inserted module."""

    def __init__(self, model: Classifier, run: Run, analysis: Analysis, data: Data):
        self.model, self.run, self.data = model, run, data
        count = None if analysis.images is None else min(analysis.images, len(data.test_y))
        self.x, self.y, self.index = part_of_test(data, count)  # x: uint8
        parts = {part: name for name, part in model.named_modules() if part in model.inserted()}
        last: Any = list(parts)[-1] if parts else None
        self.module: Any = last and last.module
        # in the bare network; where nothing was inserted, where FSR would sit
        self.place = parts.get(last, BACKBONES[run.backbone].fsr_stage).removeprefix("net.").replace(".submodule", "")

    def see(self, x: Tensor) -> Seen:
        """The network on x (N, 3, H, W) in [0, 1]; no gradients."""
        parts = [part.submodule for part in self.model.inserted()] or [self.model.net.get_submodule(self.place)]
        inputs = list[Tensor]()
        with torch.no_grad(), hooked(parts, lambda module, _, f: inputs.append(f)):
            logits, streams = self.model.trace(x.clone())
        maps, mask = {"f": inputs[-1]}, streams[-1].mask if streams else None
        if streams:
            maps["output"] = streams[-1].features
        if mask is not None:  # neither peers nor the residual and the heads alone
            maps |= {name: f for name in STREAMS if (f := getattr(streams[-1], name)) is not None}
        return Seen(logits, maps, mask)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Seen, Seen]]:
        """Batches of (x, x_adv under PGD-20, y, what is seen of x, of x_adv): float32 in [0, 1], labels (N,)."""
        for rows in batches(len(self.y), BATCH):
            x, y = as_float(self.x[rows]), self.y[rows]
            x_adv = ATTACKS[ATTACK](self.model, x, y, eps=self.run.eps, indices=self.index[rows])
            yield x, x_adv, y, self.see(x), self.see(x_adv)


def masks(job: Inspection) -> tuple[dict, dict]:
    """F2: histograms of the mask, per entry of f, and its shares beyond 0.05 and 0.95 and moved across one half."""
    arrays: dict[str, Any] = {"edges": np.linspace(0, 1, BINS + 1), "hist_clean": 0, "hist_adv": 0}
    count = Counter[str]()
    for *_, clean, adv in job.pairs():
        for name, mask in (("clean", clean.mask), ("adv", adv.mask)):
            bins = (mask.flatten().double() * BINS).long().clamp_(0, BINS - 1)  # 1 belongs to the last one
            arrays[f"hist_{name}"] += torch.bincount(bins, minlength=BINS).cpu().numpy()
            count[f"saturated_{name}"] += int(((mask < SATURATED) | (mask > 1 - SATURATED)).sum())
        count["flipped"] += int(((clean.mask > 0.5) ^ (adv.mask > 0.5)).sum())
    total = int(arrays["hist_clean"].sum())
    return {"tau": job.module.tau, "entries": total} | {name: n / total for name, n in count.items()}, arrays


def _gathered(job: Inspection, of: Callable[[Tensor, Tensor, Seen, Seen], dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """labels, index, and what `of` makes of (x, x_adv, clean, adv), joined over the batches."""
    parts = [{"labels": y} | of(x, x_adv, clean, adv) for x, x_adv, y, clean, adv in job.pairs()]
    joined = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return joined | {"index": job.index.numpy()}


def maps(job: Inspection) -> tuple[dict, dict]:
    """F1: images (uint8), answers, and under attack every stream's mean over channels of |f|, (N, h, w) float16."""

    def of(x: Tensor, x_adv: Tensor, clean: Seen, adv: Seen) -> dict[str, Tensor]:
        images = {name: (v * 255).round().to(torch.uint8) for name, v in (("natural", x), ("adversarial", x_adv))}
        answers = {"pred_clean": clean.logits.argmax(1), "pred_adv": adv.logits.argmax(1)}
        shown = {"features" if name == "output" else name: f for name, f in adv.maps.items()}
        return images | answers | {f"map_{name}": f.abs().mean(1).half() for name, f in shown.items()}

    return {}, _gathered(job, of)


def features(job: Inspection) -> tuple[dict, dict]:
    """F8: t-SNE, (n, 2), of pooled f- and recalibrated f- under attack."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, max(1.0, (len(job.y) - 1) / 3))  # t-SNE refuses more than a third of the neighbours
    arrays = _gathered(job, lambda x, x_adv, clean, adv: {name: adv.maps[name].mean((2, 3)) for name in STREAMS[1:]})
    for name in STREAMS[1:]:
        points = arrays.pop(name)
        start = "pca" if np.ptp(points, axis=0).any() else "random"  # equal points have no axes
        tsne = TSNE(perplexity=perplexity, init=start, random_state=SEED)
        arrays[f"tsne_{name}"] = tsne.fit_transform(points).astype(np.float16)
    return {"perplexity": perplexity, "seed": SEED}, arrays


def knn(bank: Tensor, bank_y: Tensor, queries: Tensor, *, k: int, classes: int) -> Tensor:
    """Classes (N,) of queries (N, C) by a weighted vote of k cosine neighbours in bank (M, C) (Wu et al. 2018)."""
    similarity, where = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(k, dim=1)  # (N, k)
    weight = (similarity / TEMPERATURE).exp()
    votes = F.one_hot(bank_y[where], classes).to(weight.dtype)  # a product, not scatter_add: repeatable on a GPU
    return torch.bmm(weight[:, None], votes).squeeze(1).argmax(1)


def streams(job: Inspection) -> tuple[dict, dict]:
    """T7: accuracy of every stream under PGD-20 (`rows`) and without attack (`rows_clean`), by head and neighbours."""
    bank_y, head = job.data.train_y, getattr(job.module, "aux", None)
    k = min(10 if job.run.dataset == "digits" else 200, len(bank_y))
    parts = defaultdict[str, list[Tensor]](list)  # pooled clean training features of every stream
    for rows in batches(len(bank_y), BATCH):
        for name, f in job.see(as_float(job.data.train_x[rows])).maps.items():
            parts[name].append(f.mean((2, 3)))
    bank = {name: torch.cat(features) for name, features in parts.items()}
    correct = Counter[tuple[str, str, str]]()  # of (attack, stream, probe)
    for _, _, y, clean, adv in job.pairs():
        for attack, seen in (("clean", clean), (ATTACK, adv)):
            correct[attack, "network", ""] += int((seen.logits.argmax(1) == y).sum())
            for name, f in seen.maps.items():
                pooled = f.mean((2, 3))
                answers = {} if head is None else {"aux": head(pooled).argmax(1)}
                answers["knn"] = knn(bank[name], bank_y, pooled, k=k, classes=job.data.classes)
                correct.update({(attack, name, probe): int((guess == y).sum()) for probe, guess in answers.items()})
    record: dict = {"k": k, "temperature": TEMPERATURE, "bank": len(bank_y)}
    for attack, network, key in (("clean", "network_clean", "rows_clean"), (ATTACK, "network_adv", "rows")):
        record[network] = correct.pop((attack, "network", ""))
        own = {(name, probe): n for (of, name, probe), n in correct.items() if of == attack}
        same = {"attack": attack, "n": len(job.y)}
        record[key] = [{"stream": name, "probe": probe, **same, "correct": n} for (name, probe), n in own.items()]
    return record, {}


def peak_memory(model: Classifier, x: Tensor, y: Tensor) -> float:
    """MiB at the peak of one training batch without optimiser: a GPU's allocator counts, or torch its live tensors."""
    from torch.distributed._tools.mem_tracker import MemTracker

    model, tracker, before = copied(model).train(), MemTracker(), 0
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
    return (1000 * np.median(turns[WARMUPS:], axis=0)).tolist()


def cost(job: Inspection) -> dict:
    """T8: parameters, latency and MACs of inference, memory of training; `_without`: the same without modules."""
    with torch.random.fork_rng([]):  # the plain network's weights, which cost nothing
        bare = model_of(replace(job.run, module=None), job.data.classes).to(job.data.test_x.device).eval()
    pair, data = [job.model, bare], job.data
    rows = torch.arange(LATENCY_BATCHES[-1]) % len(data.test_y)  # from the first again
    x, y = as_float(data.test_x[rows]), data.test_y[rows]
    params, macs = [count_params(model) for model in pair], [count_macs(model, x[:1]) for model in pair]
    record: dict = {"memory": "allocator" if x.is_cuda else "live tensors", "memory_batch": LATENCY_BATCHES[-1]}
    record |= {"params": params[0], "params_added": params[0] - params[1]}
    record |= {"macs": macs[0], "macs_added": macs[0] - macs[1]}
    times = {str(n): latencies(pair, x[:n]) for n in LATENCY_BATCHES}
    for i, suffix in enumerate(("", "_without")):
        record[f"latency_ms{suffix}"] = {n: round(medians[i], 4) for n, medians in times.items()}
        record[f"peak_memory_mb{suffix}"] = round(peak_memory(pair[i], x, y), 3)
    return record | {"dtype": "float32", "repeats": REPEATS, "hardware": hardware.describe(x.device)}


ANALYSES = {"streams": streams, "masks": masks, "maps": maps, "features": features, "cost": cost}


def analyse(model: Classifier, run: Run, analysis: Analysis, data, *, seconds_per_epoch=None) -> tuple[dict, dict]:
    """(record, arrays) of one analysis of a run's network, in float32 and eval mode; model is left as it was.

    data: on the model's device; seconds_per_epoch: of cost. Deterministic on a CPU but for cost's times. A kind that
    needs what the network does not have gives {"not_applicable": why}.
    """
    kind = analysis.kind
    with eval_mode(model), hardware.exact_float32():
        job = Inspection(model, run, analysis, data)
        if kind == "cost":
            return cost(job) | {"train_seconds_per_epoch": seconds_per_epoch}, {}
        has_mask = isinstance(job.module, FSR) and job.module.has_mask
        if kind != "streams" and (not has_mask or (kind != "masks" and job.module.correct is None)):
            return {"not_applicable": f"{run.label} has no FSR {'recalibration' if has_mask else 'mask'}"}, {}
        record, arrays = ANALYSES[kind](job)
    record |= {"n": len(job.y), "attack": ATTACK, "eps": run.eps, "place": job.place}
    return record | {"classes": data.classes, "class_names": list(data.class_names)}, arrays
