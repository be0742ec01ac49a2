"""`python -m benchmarks.evaluate [--quick] [--run RUN_ID]`: evaluation attacks, plain against fast.

Plain: the attack on the float32 network as it is, AutoAttack by `pyautoattack` alone. Fast: the same attack on the
folded copy, judged by the float32 network. Without --run a ResNet-10 is trained on the embedded digits first: on
a network without any robustness AutoAttack ends at once and there is nothing to compare.
"""

import torch
from torch import Tensor, nn

from benchmarks import measure
from fsr.attacks import ATTACKS, autoattack
from fsr.config import FSRSpec, Run, for_dataset
from fsr.data import as_float, load, part_of_test
from fsr.evaluate import batch_size, is_correct
from fsr.runs import load_model
from fsr.store import config_of
from fsr.train import Trainer, fit
from fsr.train.fast import FastNet

MODULE = FSRSpec(at=("layer3",))
DIGITS = for_dataset("digits", width=16, blocks=(1, 1, 1, 1), module=MODULE, holdout=100, epochs=12, lr=0.05)


def subject(name: str | None, device: torch.device) -> tuple[Run, nn.Module]:
    """The network to attack, in eval mode: a recorded run's last weights, or one trained now on digits."""
    if name is not None:
        run = config_of(name)
        return run, load_model(run, "last").to(device).eval()
    return DIGITS, fit(Trainer(DIGITS, load(DIGITS, device), device=device)).model.eval()


def packaged(model: nn.Module, x: Tensor, y: Tensor, eps: float, batch: int) -> Tensor:
    """AutoAttack as the package runs it, on the plain network; which images stay right, (N,) bool."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, eps=eps, seed=0, device=x.device, version="standard")
    result = attack.run_standard_evaluation(x, y, batch_size=batch)
    return is_correct(model, result[0] if isinstance(result, tuple) else result, y)


def compare(name: str, sides: dict, rounds: int, n: int, device: torch.device) -> dict:
    """One row; sides: functions that give (N,) bool, which images stay right."""
    kept: dict[str, Tensor] = {}
    functions = {side: (lambda side=side, f=f: kept.update({side: f()})) for side, f in sides.items()}
    if rounds == 1:  # dear: no warm-up, which fast pays for by its first call
        times = {side: [measure.timed(function, device)] for side, function in functions.items()}
    else:
        _, times = measure.interleaved(functions, rounds, device)
    row = {"case": name, "images": n, "seconds": {side: measure.spread(t) for side, t in times.items()}}
    row |= {"robust_accuracy": {side: kept[side].float().mean().item() for side in sides}}
    row |= {"disagreeing_images": int((kept["plain"] != kept["fast"]).sum())}
    return row | {"ratio": measure.ratios(times, "plain", "fast")}


def rows_for(run: Run, model: nn.Module, x: Tensor, y: Tensor, given) -> list[dict]:
    """PGD-20 in several rounds, AutoAttack once."""
    batch = batch_size(given.device)
    net = FastNet(model, x[:batch], run.precision)

    def pgd(target) -> Tensor:
        return is_correct(model, ATTACKS["pgd20"](target, x, y, eps=run.eps), y)

    def fast_autoattack() -> Tensor:
        return autoattack(net, x, y, eps=run.eps, judge=model, batch=batch, keep_images=False).correct

    pgd_sides = {"plain": lambda: pgd(model), "fast": lambda: pgd(net)}
    sides = {"plain": lambda: packaged(model, x, y, run.eps, batch), "fast": fast_autoattack}
    cases = {"PGD-20": (pgd_sides, given.rounds), "AutoAttack": (sides, 1)}
    some = measure.chosen(cases, given.only).items()
    return [compare(name, sides, rounds, len(y), given.device) for name, (sides, rounds) in some]


def _options(parser) -> None:
    parser.add_argument("--run", default=None, help="a recorded run's id; default: train on digits first")
    parser.add_argument("--images", type=int, default=None, help="test images")


def main() -> None:
    """Measure, print one line per case, write the record and the plot."""
    given = measure.arguments(__doc__, _options)
    run, model = subject(given.run, given.device)
    images, y, _ = part_of_test(load(run, given.device), given.images or (40 if given.quick else 200))
    rows = rows_for(run, model, as_float(images), y, given)
    for row in rows:
        seconds = {side: round(value["median"], 2) for side, value in row["seconds"].items()}
        print(f"{row['case']:12s} {row['ratio']['median']:5.2f}x {seconds} robust {row['robust_accuracy']}", flush=True)
    about = {"dataset": run.dataset, "backbone": run.backbone, "width": run.width, "method": run.label}
    path = measure.save("evaluate", rows, given, run=about)
    print(path, measure.draw(path, rows, f"Evaluation, {run.dataset}"))


if __name__ == "__main__":
    main()
