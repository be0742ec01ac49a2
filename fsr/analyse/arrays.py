"""What F1, F2, F8 and T7 show: attention maps, mask histograms, the feature space, and what streams know."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.analyse.inspection import STREAMS, Inspection, fsr_module, lacks, pairs, pooled, see
from fsr.data import as_float, batches

BINS = 40  # 0.05 and 0.95 are edges
SATURATED = 0.05  # below it, or above 1 minus it, the mask's slope m (1 - m) / tau is at most a fifth of its largest
PERPLEXITY, SEED = 30, 0  # of t-SNE
TEMPERATURE = 0.07  # of the neighbours' weights exp(similarity / temperature)
KEPT_BYTES = 2**18  # pooled features are kept beside their t-SNE up to this size


def histogram(values: Tensor, bins: int = BINS) -> Tensor:
    """Counts of values in [0, 1], any shape, in equal bins, (bins,) int64; 1 belongs to the last bin."""
    where = (values.flatten().double() * bins).long().clamp_(0, bins - 1)
    return torch.bincount(where, minlength=bins)


def saturated(values: Tensor) -> int:
    """How many values lie below 0.05 or above 0.95."""
    return int(((values < SATURATED) | (values > 1 - SATURATED)).sum())


def masks(job: Inspection) -> tuple[dict, dict]:
    """F2: histograms of the mask on clean and adversarial images, and the shares of its saturated entries.

    flipped: share of entries that the attack moves across one half. Every mask counts once per entry of f.
    """
    module, reason = fsr_module(job), lacks(job, recalibrated=False)
    if module is None or reason is not None:
        return {"not_applicable": reason}, {}
    hist = {name: torch.zeros(BINS, dtype=torch.int64) for name in ("clean", "adv")}
    tally, flips, entries = dict.fromkeys(hist, 0), 0, 0
    for x, x_adv, _ in pairs(job):
        seen = {"clean": see(job, x).mask, "adv": see(job, x_adv).mask}
        for name, mask in seen.items():
            hist[name] += histogram(mask).cpu()
            tally[name] += saturated(mask)
        flips += int(((seen["clean"] > 0.5) ^ (seen["adv"] > 0.5)).sum())
        entries += seen["clean"].numel()
    record = job.facts(job.images()[2]) | {"tau": module.tau, "entries": entries, "flipped": flips / entries}
    record |= {f"saturated_{name}": count / entries for name, count in tally.items()}
    arrays = {f"hist_{name}": counts.numpy() for name, counts in hist.items()}
    return record, {"edges": np.linspace(0, 1, BINS + 1), **arrays}


def attention(features: Tensor) -> np.ndarray:
    """Mean over channels of |f|: (N, C, h, w) to (N, h, w) float16."""
    return features.abs().mean(1).half().cpu().numpy()


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def maps(job: Inspection) -> tuple[dict, dict]:
    """F1: natural and adversarial images (uint8), the network's answers, and every stream's map under attack."""
    if (reason := lacks(job)) is not None:
        return {"not_applicable": reason}, {}
    parts = []
    for x, x_adv, y in pairs(job):
        seen = see(job, x_adv)
        part = {"labels": y, "pred_clean": see(job, x).logits.argmax(1), "pred_adv": seen.logits.argmax(1)}
        part |= {"natural": (x * 255).round().to(torch.uint8), "adversarial": (x_adv * 255).round().to(torch.uint8)}
        named = {"f": "f", "features": "output"} | {name: name for name in STREAMS}
        shown = {f"map_{key}": attention(seen.maps[name]) for key, name in named.items()}
        parts.append({name: tensor.cpu().numpy() for name, tensor in part.items()} | shown)
    index = job.images()[2]
    return job.facts(index), _joined(parts) | {"index": index.numpy()}


def _perplexity(n: int) -> float:
    return min(PERPLEXITY, max(1.0, (n - 1) / 3))  # t-SNE refuses more than a third of the neighbours


def embedded(points: np.ndarray) -> np.ndarray:
    """t-SNE of points (n, C) with a fixed seed: (n, 2) float16."""
    from sklearn.manifold import TSNE

    start = "pca" if len(points) > 1 and np.ptp(points, axis=0).any() else "random"  # equal points have no axes
    tsne = TSNE(perplexity=_perplexity(len(points)), init=start, random_state=SEED)
    return tsne.fit_transform(points.astype(np.float32)).astype(np.float16)


def features(job: Inspection) -> tuple[dict, dict]:
    """F8: t-SNE, (n, 2), of pooled f- and recalibrated f- under attack; of narrow networks the features too."""
    if (reason := lacks(job)) is not None:
        return {"not_applicable": reason}, {}
    parts = []
    for _, x_adv, y in pairs(job):
        seen = see(job, x_adv)
        part = {name: pooled(seen.maps[name]).cpu().numpy() for name in ("nonrobust", "recalibrated")}
        parts.append(part | {"labels": y.cpu().numpy()})
    arrays, index = _joined(parts), job.images()[2]
    for name in ("nonrobust", "recalibrated"):
        arrays[f"tsne_{name}"] = embedded(arrays[name])
        pool = arrays.pop(name).astype(np.float16)
        if 2 * pool.nbytes <= KEPT_BYTES:
            arrays[name] = pool
    return job.facts(index) | {"perplexity": _perplexity(len(index)), "seed": SEED}, arrays | {"index": index.numpy()}


def knn(bank: Tensor, bank_y: Tensor, queries: Tensor, *, k: int, classes: int, chunk: int = 500) -> Tensor:
    """Classes of the queries, (N,) int64, by cosine nearest neighbours with weights exp(similarity / 0.07).

    bank: (M, C); bank_y: (M,) int64; queries: (N, C); k at most M. The weighted vote of Wu et al. (2018), section 3.4.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    answers = []
    for part in queries.split(chunk):
        similarity, where = (part @ bank.T).topk(k, dim=1)  # (n, k)
        weight = (similarity / TEMPERATURE).exp()
        votes = F.one_hot(bank_y[where], classes).to(weight.dtype)  # a product, not scatter_add: repeatable on a GPU
        answers.append(torch.bmm(weight[:, None], votes).squeeze(1).argmax(1))
    return torch.cat(answers)


def _bank(job: Inspection) -> tuple[dict[str, Tensor], Tensor]:
    """Pooled clean training features of every stream, name to (M, C), and their labels (M,)."""
    x, y = job.data.train_x, job.data.train_y
    parts: dict[str, list[Tensor]] = {}
    for rows in batches(len(y), job.batch):
        for name, features in see(job, as_float(x[rows.to(x.device)].to(job.device))).maps.items():
            parts.setdefault(name, []).append(pooled(features))
    return {name: torch.cat(features) for name, features in parts.items()}, y.to(job.device)


def streams(job: Inspection) -> tuple[dict, dict]:
    """Accuracy of every stream under PGD-20 (`rows`) and without attack (`rows_clean`), by head and neighbours.

    Streams: f, robust, nonrobust, recalibrated, output. The auxiliary head was trained on the middle three alone.
    Networks without FSR have the neighbours' rows of what they have.
    """
    bank, bank_y = _bank(job)
    module, classes = fsr_module(job), job.data.classes
    head = None if module is None else module.aux
    k = min(10 if job.run.dataset == "digits" else 200, len(bank_y))
    counts, network = {name: Counter[tuple[str, str]]() for name in ("clean", "pgd20")}, Counter[str]()
    for x, x_adv, y in pairs(job):
        for attack, images in (("clean", x), ("pgd20", x_adv)):
            seen = see(job, images)
            network[attack] += int((seen.logits.argmax(1) == y).sum())
            for name, features in seen.maps.items():
                flat = pooled(features)
                if head is not None:
                    with torch.no_grad():
                        counts[attack][name, "aux"] += int((head(flat).argmax(1) == y).sum())
                answers = knn(bank[name], bank_y, flat, k=k, classes=classes)
                counts[attack][name, "knn"] += int((answers == y).sum())
    index = job.images()[2]
    record = job.facts(index) | {"k": k, "temperature": TEMPERATURE, "bank": len(bank_y)}
    record |= {"network_clean": network["clean"], "network_adv": network["pgd20"]}
    for key, attack in (("rows", "pgd20"), ("rows_clean", "clean")):
        cells = [{"stream": stream, "probe": probe} for stream, probe in counts[attack]]
        same = {"attack": attack, "n": len(index)}
        record[key] = [cell | same | {"correct": c} for cell, c in zip(cells, counts[attack].values())]
    return record, {}
