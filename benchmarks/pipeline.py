"""`python -m benchmarks.pipeline [--quick]`: whole training from stored images on, plain against fast.

Plain: PIL augmentation in a single-process loader and the plain step. Fast: `fsr.train.Trainer` as it trains, with data
and augmentation on the device, and the running average that the plain side does not keep. Random images: the time
does not depend on what they show.
"""

import torch

from benchmarks import measure
from benchmarks.plain import PlainTrainer, loader
from fsr.config import DATASETS, FSRSpec, Run, for_dataset, replace
from fsr.data import Data, batches
from fsr.models import model_of
from fsr.train import Trainer

SMALL = for_dataset("cifar10", backbone="resnet18", width=16, module=FSRSpec(), holdout=0)


def random_data(run: Run, n: int) -> Data:
    """n training images of the run's shape, as uint8."""
    info = DATASETS[run.dataset]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, info.size, info.size), dtype=torch.uint8, generator=generator)
    y = torch.arange(n) % info.classes
    return Data(x, y, x[:0], y[:0], x[:0], y[:0], tuple(map(str, range(info.classes))))


def cases(quick: bool, device: torch.device) -> dict[str, tuple[Run, int]]:
    """Runs, each with its number of images: growth with images, then, on a GPU, full width."""
    if quick:
        return {"resnet18 w16, 128 images": (SMALL, 128), "resnet18 w16, 256 images": (SMALL, 256)}
    many = 32 if device.type == "cuda" else 4
    found = {f"resnet18 w16, {n * 128} images": (SMALL, n * 128) for n in (1, 4, 4 * many)}
    full = replace(SMALL, width=None)
    if device.type == "cuda":  # one step at full width takes two minutes on a small CPU: see train_step
        found[f"resnet18 w64, {128 * many} images"] = (full, 128 * many)
        found[f"wideresnet34 w10, {128 * 8} images"] = (replace(full, backbone="wideresnet34"), 128 * 8)
    return found


def measure_case(name: str, run: Run, n: int, rounds: int, device: torch.device) -> dict:
    """One row: seconds of one pass over the images."""
    torch.manual_seed(0)
    data = random_data(run, n)
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

    functions = {"plain": plain_pass, "fast": fast_pass}
    first, times = measure.interleaved(functions, rounds, device)
    row = {"case": name, "backbone": run.backbone, "width": run.width, "images": n, "method": run.label}
    row |= {"seconds": {side: measure.spread(t) for side, t in times.items()}}
    row |= {"first_pass_seconds": {side: t[0] for side, t in first.items()}, "switches": trainer.crafter.switches}
    row |= {"images_per_second": {side: n / measure.spread(t)["median"] for side, t in times.items()}}
    row |= {"peak_memory": {side: measure.peak_memory(function, device) for side, function in functions.items()}}
    return row | {"ratio": measure.ratios(times, "plain", "fast")}


def main() -> None:
    """Measure, print one line per case, write the record and the plot."""
    given, rows = measure.arguments(__doc__), []
    rounds = min(given.rounds, 3)
    for name, (run, n) in cases(given.quick, given.device).items():
        rows.append(row := measure_case(name, run, n, rounds, given.device))
        speeds = {side: round(value, 1) for side, value in row["images_per_second"].items()}
        print(f"{name:34s} {row['ratio']['median']:5.2f}x  images per second {speeds}", flush=True)
        measure.save("pipeline", rows, given.device, rounds=rounds, quick=given.quick)
    figure = measure.draw_ratios(rows, "Training from stored images on")
    print(measure.save_figure(figure, "pipeline", given.device))


if __name__ == "__main__":
    main()
