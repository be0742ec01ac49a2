"""Made-up records in a test's own root, laid out like real ones: drawing and writing are tested without training.

Nothing here is ever written below the repository's results.
"""

from contextlib import contextmanager

import numpy as np
import pytest

from fsr import experiments, files, store
from fsr.config import Analysis, Run, run_id
from fsr.files import MissingRecord, provenance, save_json, sha256

DIFFICULTY = {"clean": 0.95, "fgsm": 0.82, "pgd20": 0.78, "pgd100": 0.77, "cw": 0.76}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
N = 200


@contextmanager
def made_up_root(folder):
    """Records go below folder and name the commit c0ffee, whatever this process has read of its own before."""
    provenance.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(folder))
        patch.setenv("FSR_COMMIT", "c0ffee")
        yield folder
    provenance.cache_clear()


def _rng(*parts) -> np.random.Generator:
    return np.random.default_rng([ord(c) for c in "-".join(map(str, parts))])


def write_history(run: Run, epochs: int | None = None) -> None:
    """A plausible history.csv and env.json."""
    rng, rows = _rng(run_id(run)), []
    for epoch in range(1, (epochs or run.epochs) + 1):
        part = epoch / run.epochs
        row = {"epoch": epoch, "seconds": 1.0, "lr": 0.1, "train_cls": 2.3 - 1.5 * part + rng.normal(0, 0.03)}
        if run.fsr is not None:
            row |= {"train_sep": 3.5 - 1.5 * part, "train_rec": 2.4 - 1.4 * part}
        row |= {"train_adv_acc": 0.1 + 0.7 * part, "held_clean_acc": 0.1 + 0.85 * part}
        robust = 0.1 + 0.6 * part - 0.1 * max(0.0, part - 0.8) + rng.normal(0, 0.01)
        row |= {"held_robust_acc": robust, "ema_held_clean_acc": 0.1 + 0.86 * part}
        rows.append(row | {"ema_held_robust_acc": 0.1 + 0.63 * part})
    data = store.save_history(run, rows)
    record = {
        "commit": COMMIT,
        "history_sha256": sha256(data),
        "seconds": 15.0,
        "run_id": run_id(run),
        "best_epoch": 12,
    }
    save_json(files.run_dir(run_id(run)) / "env.json", record | {"checkpoints": {}, "hardware": {"cpu": "a test"}})


def _accuracy(run: Run, evaluation) -> float:
    eps = run.eps if evaluation.eps is None else evaluation.eps
    base = DIFFICULTY.get(evaluation.attack, 0.75)
    if evaluation.attack != "clean":
        base = 0.95 - (0.95 - base) * (eps / run.eps) ** 1.2
        base -= 0.01 * np.log10((evaluation.steps or 20) / 20)
    return float(np.clip(base + 0.02 * (run.fsr is not None), 0, 1))


def write_evaluation(run: Run, evaluation) -> None:
    """Per-sample outcomes: image i survives while its own threshold lies below the accuracy."""
    n = min(N, evaluation.images or N)
    thresholds = _rng("image").random(N)[:n] + _rng(run_id(run)).normal(0, 0.03, n)
    correct = thresholds < _accuracy(run, evaluation)
    flags = {"flags": {"zero_gradient": False}} if "autoattack" in evaluation.attack else {}
    store.save_evaluation(run, evaluation, np.arange(n), correct, seconds=1.0, hardware={"cpu": "a test"}, **flags)


def _facts(run: Run, n: int) -> dict:
    names = [str(i) for i in range(10)]
    return {"n": n, "attack": "pgd20", "eps": run.eps, "classes": 10, "class_names": names, "place": "layer3"}


def _streams(run: Run) -> tuple[dict, dict]:
    correct = {"f": 120, "robust": 150, "nonrobust": 40, "recalibrated": 140, "output": 152}
    keys = {"attack": "pgd20", "n": N}
    rows = [
        keys | {"stream": stream, "probe": probe, "correct": count - less + run.seed}
        for stream, count in correct.items()
        for probe, less in (("aux", 0), ("knn", 10))
    ]
    clean = [row | {"attack": "clean"} for row in rows]
    return _facts(run, N) | {"rows": rows, "rows_clean": clean, "k": 10, "temperature": 0.07, "bank": N}, {}


def _masks(run: Run) -> tuple[dict, dict]:
    edges = np.linspace(0, 1, 41)
    x = (edges[:-1] + edges[1:]) / 2
    power = {"clean": 0.3 / run.fsr.tau, "adv": 0.25 / run.fsr.tau}
    counts = {k: (1000 * (np.abs(x - 0.5) * 2) ** p).astype(int) + 1 for k, p in power.items()}
    share = {f"saturated_{k}": float((c[:2].sum() + c[-2:].sum()) / c.sum()) for k, c in counts.items()}
    record = _facts(run, N) | {"tau": run.fsr.tau, "entries": int(counts["adv"].sum()), "flipped": 0.08}
    return record | share, {"edges": edges, "hist_clean": counts["clean"], "hist_adv": counts["adv"]}


def _maps(run: Run) -> tuple[dict, dict]:
    rng, size = _rng("maps"), 8 if run.dataset == "digits" else 32
    natural = rng.integers(0, 256, (8, 3, size, size), dtype=np.uint8)
    attacked = np.clip(natural.astype(int) + rng.integers(-30, 31, natural.shape), 0, 255).astype(np.uint8)
    labels = np.arange(8)
    arrays = {"natural": natural, "adversarial": attacked, "labels": labels, "pred_clean": labels, "index": labels}
    arrays["pred_adv"] = (labels + labels % 2) % 10
    keys = ("map_f", "map_robust", "map_nonrobust", "map_recalibrated", "map_features")
    return _facts(run, 8), arrays | {k: rng.random((8, 4, 4)).astype(np.float16) for k in keys}


def _features(run: Run) -> tuple[dict, dict]:
    rng, labels = _rng("features"), np.arange(N) % 10
    centres = 30 * rng.standard_normal((10, 2))
    arrays = {"labels": labels, "index": np.arange(N)}
    arrays["tsne_nonrobust"] = (30 * rng.standard_normal((N, 2))).astype(np.float16)
    arrays["tsne_recalibrated"] = (centres[labels] + 4 * rng.standard_normal((N, 2))).astype(np.float16)
    return _facts(run, N) | {"perplexity": 30, "seed": 0}, arrays


def _cost(run: Run) -> tuple[dict, dict]:
    extra = 1000 if run.fsr is not None else 0
    record = {"train_seconds_per_epoch": 1.0 + extra / 10000, "params": 50_000 + extra, "params_added": extra}
    record |= {"macs": 900_000 + 20 * extra, "macs_added": 20 * extra, "memory": "live tensors"}
    for name, value in (("latency_ms", {"1": 1.2, "128": 9.0}), ("peak_memory_mb", 20.0)):
        record |= {name: value, f"{name}_without": value}
    return record | {"memory_batch": 128, "dtype": "float32", "repeats": 9, "hardware": {"cpu": "a test"}}, {}


MAKERS = {"streams": _streams, "masks": _masks, "maps": _maps, "features": _features, "cost": _cost}


def write_analysis(run: Run, analysis: Analysis) -> None:
    """A made-up analysis; audits are left out: their layout belongs to the audit's own tests."""
    if analysis.kind in MAKERS and (run.fsr is not None or analysis.kind == "cost"):
        record, arrays = MAKERS[analysis.kind](run)
        store.save_analysis(run, analysis, record, **arrays)


def write_all(profile: str, kinds: tuple[str, ...] = ("all",)) -> None:
    """Every record that a profile plans, made up."""
    for kind in kinds:
        for run in experiments.SETS[profile][kind]:
            store.save_config(run)
            try:
                store.environment(run)
            except MissingRecord:
                write_history(run)
            for evaluation in experiments.evaluations(profile, kind, run):
                write_evaluation(run, evaluation)
            for analysis in experiments.analyses(profile, kind, run):
                write_analysis(run, analysis)
