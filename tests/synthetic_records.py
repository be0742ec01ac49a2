"""Made-up records in a test's own root, laid out like real ones: drawing and writing are tested without training.

Nothing here is ever written below the repository's results.
"""

from contextlib import contextmanager
from itertools import product

import numpy as np
import pandas as pd
import pytest

from fsr import experiments, files, store
from fsr.config import Run, run_id
from fsr.files import provenance, save_json, sha256

DIFFICULTY = {"clean": 0.95, "fgsm": 0.82, "pgd20": 0.78, "pgd100": 0.77, "cw": 0.76}
N = 200
CPU = {"cpu": "a test"}


@contextmanager
def made_up_root(folder):
    """Records go below folder and name the commit c0ffee, whatever this process has read of its own before."""
    provenance.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(folder))
        patch.setenv("FSR_COMMIT", "c0ffee")
        yield folder
    provenance.cache_clear()


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng([ord(c) for c in name])


def write_history(run: Run, epochs: int | None = None) -> None:
    """A plausible history.csv and env.json."""
    rng, part = _rng(run_id(run)), np.arange(1, (epochs or run.epochs) + 1) / run.epochs
    columns = {"epoch": np.arange(1, len(part) + 1), "seconds": 1.0, "lr": 0.1, "train_adv_acc": 0.1 + 0.7 * part}
    columns["train_cls"] = 2.3 - 1.5 * part + rng.normal(0, 0.03, len(part))
    columns |= {"train_sep": 3.5 - 1.5 * part, "train_rec": 2.4 - 1.4 * part} if run.fsr is not None else {}
    columns["held_robust_acc"] = 0.1 + 0.6 * part - 0.1 * np.maximum(0.0, part - 0.8)
    columns |= {"held_clean_acc": 0.1 + 0.85 * part, "ema_held_clean_acc": 0.1 + 0.86 * part}
    rows = pd.DataFrame(columns | {"ema_held_robust_acc": 0.1 + 0.63 * part}).to_dict("records")
    write_training(run, rows, checkpoints={}, commit="0123456789abcdef", seconds=15.0, best_epoch=12, hardware=CPU)


def write_training(run: Run, history: list[dict], **record) -> None:
    """history.csv and env.json with these facts."""
    record |= {"run_id": run_id(run), "history_sha256": sha256(store.save_history(run, history))}
    save_json(files.run_dir(run_id(run)) / "env.json", record)


def write_evaluation(run: Run, evaluation) -> None:
    """Per-sample outcomes: image i survives while its own threshold lies below the accuracy."""
    n, base = min(N, evaluation.images or N), DIFFICULTY.get(evaluation.attack, 0.75)
    if evaluation.attack != "clean":
        eps = run.eps if evaluation.eps is None else evaluation.eps
        base = 0.95 - (0.95 - base) * (eps / run.eps) ** 1.2 - 0.01 * np.log10((evaluation.steps or 20) / 20)
    thresholds = _rng("image").random(N)[:n] + _rng(run_id(run)).normal(0, 0.03, n)
    correct = thresholds < np.clip(base + 0.02 * (run.fsr is not None), 0, 1)
    flags = {"flags": {"zero_gradient": False}} if "autoattack" in evaluation.attack else {}
    store.save_evaluation(run, evaluation, np.arange(n), correct, seconds=1.0, hardware=CPU, **flags)


def _streams(run: Run) -> tuple[dict, dict]:
    correct = {"f": 120, "robust": 150, "nonrobust": 40, "recalibrated": 140, "output": 152}
    rows = []
    for (stream, count), (probe, less) in product(correct.items(), (("aux", 0), ("knn", 10))):
        rows.append({"attack": "pgd20", "n": N, "stream": stream, "probe": probe, "correct": count - less + run.seed})
    clean = [row | {"attack": "clean"} for row in rows]
    return {"rows": rows, "rows_clean": clean, "k": 10, "temperature": 0.07, "bank": N}, {}


def _masks(run: Run) -> tuple[dict, dict]:
    edges = np.linspace(0, 1, 41)
    distance = np.abs(edges[:-1] + edges[1:] - 1)
    powers = {"clean": 0.3, "adv": 0.25}
    counts = {name: (1000 * distance ** (p / run.fsr.tau)).astype(int) + 1 for name, p in powers.items()}
    shares = {f"saturated_{name}": float((c[:2].sum() + c[-2:].sum()) / c.sum()) for name, c in counts.items()}
    record = {"tau": run.fsr.tau, "entries": int(counts["adv"].sum()), "flipped": 0.08} | shares
    return record, {"edges": edges} | {f"hist_{name}": count for name, count in counts.items()}


def _maps(run: Run) -> tuple[dict, dict]:
    rng, size, labels = _rng("maps"), 8 if run.dataset == "digits" else 32, np.arange(8)
    natural, attacked = rng.integers(0, 256, (2, 8, 3, size, size), dtype=np.uint8)
    arrays = {"natural": natural, "adversarial": attacked, "labels": labels, "pred_clean": labels, "index": labels}
    arrays |= {f"map_{k}": rng.random((8, 4, 4)) for k in ("f", "robust", "nonrobust", "recalibrated", "features")}
    return {"n": 8}, arrays | {"pred_adv": (labels + labels % 2) % 10}


def _features(run: Run) -> tuple[dict, dict]:
    rng, labels = _rng("features"), np.arange(N) % 10
    near = 30 * rng.standard_normal((10, 2))[labels] + 4 * rng.standard_normal((N, 2))
    arrays = {"labels": labels, "index": np.arange(N), "tsne_nonrobust": near[::-1], "tsne_recalibrated": near}
    return {"perplexity": 30, "seed": 0}, arrays


def _cost(run: Run) -> tuple[dict, dict]:
    extra = 1000 if run.fsr is not None else 0
    record = {"params": 50_000 + extra, "params_added": extra, "macs": 900_000 + 20 * extra, "macs_added": 20 * extra}
    for name, value in (("latency_ms", {"1": 1.2, "128": 9.0}), ("peak_memory_mb", 20.0)):
        record |= {name: value, f"{name}_without": value}
    return record | {"train_seconds_per_epoch": 1.0 + extra / 10000, "hardware": CPU}, {}


# audits are left out: their layout belongs to the audit's own tests
MAKERS = {"streams": _streams, "masks": _masks, "maps": _maps, "features": _features, "cost": _cost}


def write_all(profile: str) -> None:
    """Every record that a profile plans, made up."""
    for run in experiments.SETS[profile]["all"]:
        store.save_config(run)
        if not store.is_trained(run):
            write_history(run)
        for evaluation in experiments.evaluations(profile, "all", run):
            write_evaluation(run, evaluation)
        for analysis in experiments.analyses(profile, "all", run):
            if analysis.kind in MAKERS and (run.fsr is not None or analysis.kind == "cost"):
                record, arrays = MAKERS[analysis.kind](run)
                facts = {"attack": "pgd20", "eps": run.eps, "classes": 10, "place": "layer3"}
                facts |= {"n": N, "class_names": [str(i) for i in range(10)]}
                store.save_analysis(run, analysis, facts | record, **arrays)
