"""`python -m benchmarks.pipeline [--quick]`: whole training from stored images on, plain against fast.

Plain: PIL augmentation in a single-process loader and the plain step. Fast: `fsr.train.Trainer` as it trains, with data
and augmentation on the device, and the running average that the plain side does not keep.
"""

import torch

from benchmarks import measure
from benchmarks.plain import PlainTrainer, loader
from benchmarks.train_step import FULL, SMALL
from fsr.config import Run, replace
from fsr.data import batches
from fsr.models import model_of
from fsr.train import Trainer


def cases(quick: bool, device: torch.device) -> dict[str, tuple[Run, int]]:
    """Runs, each with its number of images: growth with images, then, on a GPU, full width."""
    if quick:
        return {"resnet18 w16, 128 images": (SMALL, 128)}
    many = 32 if device.type == "cuda" else 4
    cases = {f"resnet18 w16, {n * 128} images": (SMALL, n * 128) for n in (1, 4, 4 * many)}
    if device.type == "cuda":  # one step at full width takes two minutes on a small CPU: see train_step
        cases[f"resnet18 w64, {128 * many} images"] = (FULL, 128 * many)
        cases[f"wideresnet34 w10, {128 * 8} images"] = (replace(FULL, backbone="wideresnet34"), 128 * 8)
    return cases


def measure_case(name: str, run: Run, n: int, rounds: int, device: torch.device) -> dict:
    """One row: seconds of one pass over n images."""
    torch.manual_seed(0)
    data = measure.random_data(run, n)
    plain = PlainTrainer(run, model_of(run).to(device).train())
    images = loader(data.train_x, data.train_y, run)
    trainer = Trainer(run, data.to(device), device=device)
    trainer.model.train()
    # On the device beforehand, as training does once per epoch: a copy from the host makes it wait for the device.
    parts = [part.to(device) for part in batches(n, run.batch, generator=torch.Generator().manual_seed(0))]

    def plain_pass() -> None:
        for x, y in images:
            plain.step(x.to(device), y.to(device))

    def fast_pass() -> None:
        for index in parts:
            trainer.step(index)
        trainer.stepper.tally()

    first, times = measure.interleaved({"plain": plain_pass, "fast": fast_pass}, rounds, device)
    row = {"case": name, "backbone": run.backbone, "width": run.width, "images": n, "method": run.label}
    row |= {"seconds": {side: measure.spread(t) for side, t in times.items()}, "switches": trainer.crafter.switches}
    row |= {"first_pass_seconds": {side: t[0] for side, t in first.items()}}
    row |= {"images_per_second": {side: n / measure.spread(t)["median"] for side, t in times.items()}}
    return row | {"ratio": measure.ratios(times, "plain", "fast")}


def main() -> None:
    """Measure, print one line per case, write the record and the plot."""
    given, rows = measure.arguments(__doc__), []
    for name, (run, n) in measure.chosen(cases(given.quick, given.device), given.only).items():
        rows.append(row := measure_case(name, run, n, min(given.rounds, 3), given.device))
        speeds = {side: round(value, 1) for side, value in row["images_per_second"].items()}
        print(f"{name:34s} {row['ratio']['median']:5.2f}x  images per second {speeds}", flush=True)
        path = measure.save("pipeline", rows, given)
    print(path, measure.draw(path, rows, "Training from stored images on"))


if __name__ == "__main__":
    main()
