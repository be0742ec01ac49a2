"""T7: what each stream knows about the class, by the auxiliary head and by its nearest neighbours."""

from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.analyse.inspection import Inspection, fsr_module, pairs, pooled, see
from fsr.data import as_float, batches

TEMPERATURE = 0.07  # of the neighbours' weights exp(similarity / temperature)


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


def _rows(counts: Counter, attack: str, n: int) -> list[dict]:
    return [
        {"stream": stream, "probe": probe, "attack": attack, "n": n, "correct": correct}
        for (stream, probe), correct in counts.items()
    ]


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
    rows = {
        "rows": _rows(counts["pgd20"], "pgd20", len(index)),
        "rows_clean": _rows(counts["clean"], "clean", len(index)),
    }
    return record | rows, {}
