"""`python -m benchmarks.precision [--quick]`: is a network trained in bf16 as good as one trained in float32?

AT+FSR on a part of CIFAR-10, both precisions from the same seeds, judged in float32 on the same test images by the
same float32 attack. One training is a minute or more; every finished one is kept in the record at once, and a further
call does what is missing.
"""

import time

import torch

from benchmarks import measure
from fsr.attacks import attack_named
from fsr.config import FSRSpec, Run, content_id, for_dataset, replace
from fsr.data import as_float, load, part_of_test
from fsr.evaluate import is_correct
from fsr.files import MissingRecord, load_json
from fsr.plots.style import BLUE, VERMILION, panels, percent_axis, styled
from fsr.statistics import seed_summary
from fsr.train import Trainer, fit
from fsr.train.fast import fast_net

PRECISIONS = ("float32", "bf16")
FULL = for_dataset("cifar10", width=16, module=FSRSpec(), train_size=10_000, holdout=0, epochs=5)
QUICK = for_dataset(
    "digits", width=16, blocks=(1, 1, 1, 1), module=FSRSpec(at=("layer3",)), holdout=0, train_size=1024, epochs=5
)  # fmt: skip


def train_and_judge(run: Run, images: int, device: torch.device) -> dict:
    """Train and judge one run: a row of the record."""
    data = load(run, device)
    started = time.monotonic()
    trainer = fit(Trainer(run, data, device=device))
    seconds = time.monotonic() - started
    x, y, index = part_of_test(data, images)
    x, model = as_float(x), trainer.model.eval()
    net = fast_net(model, precision="float32")
    flags: dict[str, list[bool]] = {"clean": [], "pgd20": []}
    for rows in torch.arange(len(y), device=x.device).split(250):
        x_adv = attack_named("pgd20")(net, x[rows], y[rows], eps=run.eps, seed=0, indices=index[rows.cpu()])
        flags["clean"] += is_correct(model, x[rows], y[rows]).tolist()
        flags["pgd20"] += is_correct(model, x_adv, y[rows]).tolist()
    row = {"id": content_id(run), "precision": run.precision, "seed": run.seed, "images": len(y), "seconds": seconds}
    row |= {name: sum(values) / len(values) for name, values in flags.items()}
    return row | {"train_total": trainer.progress.rows[-1]["train_total"], "switches": trainer.crafter.switches}


def conclusion(rows: list[dict]) -> dict:
    """Per attack: mean and standard deviation over seeds of each precision, and of bf16 - float32 seed by seed."""
    found = {}
    seeds = sorted({row["seed"] for row in rows})
    for attack in ("clean", "pgd20"):
        by = {p: {row["seed"]: row[attack] for row in rows if row["precision"] == p} for p in PRECISIONS}
        both = [seed for seed in seeds if all(seed in by[p] for p in PRECISIONS)]
        parts = {p: [by[p][seed] for seed in both] for p in PRECISIONS}
        parts["difference"] = [b - a for a, b in zip(parts["float32"], parts["bf16"])]
        found[attack] = {name: seed_summary(values)._asdict() for name, values in parts.items() if len(values) > 1}
    return found


@styled
def draw(rows: list[dict]):
    """One panel per attack: accuracy by seed, both precisions."""
    figure, (axes,) = panels(1, 2, 2.4)
    for ax, attack in zip(axes, ("clean", "pgd20")):
        for precision, colour in zip(PRECISIONS, (BLUE, VERMILION)):
            mine = sorted((row["seed"], row[attack]) for row in rows if row["precision"] == precision)
            ax.plot([seed for seed, _ in mine], [value for _, value in mine], "o", color=colour, label=precision)
        seeds = sorted({row["seed"] for row in rows})
        ax.set(xticks=seeds, xlim=(min(seeds) - 0.4, max(seeds) + 0.4))
        ax.set_xlabel("seed")
        ax.set_title({"clean": "no attack", "pgd20": "PGD-20"}[attack])
        percent_axis(ax)
    axes[0].set_ylabel("accuracy")
    axes[0].legend()
    return figure


def earlier(name: str, device: torch.device) -> list[dict]:
    """Rows of the record that is there, if any."""
    try:
        return load_json(measure.record_path(name, device))["rows"]
    except MissingRecord:
        return []


def main() -> None:
    """Train what is missing, print one line per training, keep the record, draw."""
    given = measure.arguments(__doc__, lambda p: p.add_argument("--seeds", type=int, default=3))
    base, images = (QUICK, 200) if given.quick else (FULL, 2000)
    name = "precision-quick" if given.quick else "precision"
    runs = [replace(base, precision=p, seed=seed) for seed in range(given.seeds) for p in PRECISIONS]
    rows = [row for row in earlier(name, given.device) if row["id"] in {content_id(run) for run in runs}]
    for run in runs:
        if content_id(run) not in {row["id"] for row in rows}:
            rows.append(row := train_and_judge(run, images, given.device))
            print({k: v for k, v in row.items() if k not in ("id", "switches")}, flush=True)
            measure.save(name, rows, given.device, conclusion=conclusion(rows))
    print(conclusion(rows))
    print(measure.save_figure(draw(rows), name, given.device))


if __name__ == "__main__":
    main()
