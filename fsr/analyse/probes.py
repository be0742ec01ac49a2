"""T7: what each stream knows about the class, by the auxiliary head and by its nearest neighbours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.analyse.look import Job, Seen, fsr_module, pairs, pooled, see
from fsr.data import as_float, batches

TEMPERATURE = 0.07  # of the neighbours' weights exp(similarity / temperature)


def neighbours(job: Job) -> int:
    """k of the settings that two readers would choose differently: 200, 10 on digits, never more than the bank has."""
    return min(10 if job.run.dataset == "digits" else 200, len(job.data.train_y))


def knn(bank: Tensor, bank_y: Tensor, queries: Tensor, *, k: int, classes: int, chunk: int = 500) -> Tensor:
    """Classes of the queries, (N,) int64, by cosine nearest neighbours with weights exp(similarity / 0.07).

    bank: (M, C); bank_y: (M,) int64; queries: (N, C); k at most M. The weighted vote of Wu et al. (2018), section 3.4.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    found = []
    for part in queries.split(chunk):
        similarity, where = (part @ bank.T).topk(k, dim=1)  # (n, k)
        weight = (similarity / TEMPERATURE).exp()
        votes = F.one_hot(bank_y[where], classes).to(weight.dtype)  # a product, not scatter_add: repeatable on a GPU
        found.append(torch.bmm(weight[:, None], votes).squeeze(1).argmax(1))
    return torch.cat(found)


def _bank(job: Job) -> tuple[dict[str, Tensor], Tensor]:
    """Pooled clean training features of every stream, name to (M, C), and their labels (M,)."""
    x, y = job.data.train_x, job.data.train_y
    parts: dict[str, list[Tensor]] = {}
    for rows in batches(len(y), job.batch):
        seen = see(job, as_float(x[rows.to(x.device)].to(job.device)))
        for name, features in seen.maps.items():
            parts.setdefault(name, []).append(pooled(features))
    return {name: torch.cat(found) for name, found in parts.items()}, y.to(job.device)


class _Probes:
    """Both probes, and their tallies: (stream, probe) to images right."""

    def __init__(self, job: Job):
        self.bank, self.bank_y = _bank(job)
        module = fsr_module(job)
        self.head = None if module is None else module.aux
        self.k, self.classes = neighbours(job), job.data.classes

    def right(self, seen: Seen, y: Tensor) -> dict[tuple[str, str], int]:
        """How many of a batch each stream gets right by each probe, and the network itself as ("output", "network")."""
        found = {("output", "network"): int((seen.logits.argmax(1) == y).sum())}
        for name, features in seen.maps.items():
            flat = pooled(features)
            if self.head is not None:
                with torch.no_grad():
                    found[name, "aux"] = int((self.head(flat).argmax(1) == y).sum())
            classes = knn(self.bank[name], self.bank_y, flat, k=self.k, classes=self.classes)
            found[name, "knn"] = int((classes == y).sum())
        return found


def _rows(tally: dict[tuple[str, str], int], n: int, attack: str) -> list[dict]:
    return [
        {"stream": stream, "probe": probe, "attack": attack, "n": n, "correct": correct}
        for (stream, probe), correct in tally.items()
        if probe != "network"
    ]


def streams(job: Job) -> tuple[dict, dict]:
    """Accuracy of every stream under PGD-20 (`rows`) and without attack (`rows_clean`).

    Streams: f, robust, nonrobust, recalibrated, output (f after the module). The auxiliary head was trained on the
    middle three; on f and output it is a guest. Networks without FSR have the neighbours' rows of what they have.
    """
    probes = _Probes(job)
    totals: list[dict[tuple[str, str], int]] = [{}, {}]
    for x, x_adv, y in pairs(job):
        for total, images in zip(totals, (x, x_adv)):
            for key, count in probes.right(see(job, images), y).items():
                total[key] = total.get(key, 0) + count
    index = job.images()[2]
    record = job.facts(index) | {"k": probes.k, "temperature": TEMPERATURE, "bank": len(probes.bank_y)}
    record |= {"network_clean": totals[0]["output", "network"], "network_adv": totals[1]["output", "network"]}
    rows = {"rows": _rows(totals[1], len(index), "pgd20"), "rows_clean": _rows(totals[0], len(index), "clean")}
    return record | rows, {}
