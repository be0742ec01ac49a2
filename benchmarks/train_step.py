"""`python -m benchmarks.train_step [--quick] [--only TEXT]`: one training step, plain against fast, as sizes grow."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.plain import PlainTrainer
from fsr.config import DATASETS, FSRSpec, Run, for_dataset, replace
from fsr.models import count_macs, model_of
from fsr.train.fast import Crafter
from fsr.train.objectives import Objective, Stepper

SMALL = for_dataset("cifar10", backbone="resnet18", width=16, module=FSRSpec(), holdout=0)
FULL = replace(SMALL, width=None)


def cases(quick: bool, device: torch.device) -> dict[str, Run]:
    """What is measured: ResNet-18 of width 16, one size at a time around it, then the three backbones at full width.

    WRN-34-10 has batch 16 on a CPU, where the plain step on 128 images takes many minutes.
    """
    base = replace(SMALL, batch=64) if quick else SMALL
    cases = {"resnet18 w16 at+fsr": base, "resnet18 w16 at": replace(base, module=None)}
    cases["digits resnet10 w8 at+fsr"] = for_dataset(
        "digits", width=8, blocks=(1, 1, 1, 1), module=FSRSpec(at=("layer3",)), precision="float32", train_size=1197
    )
    grow: dict[str, tuple] = {"batch": (32, 64, 256, 512), "width": (8, 32), "steps": (1, 5, 20)}
    if quick:
        grow = {"batch": (16,), "width": (8,), "steps": (1,)}
    for field, values in grow.items():
        cases |= {f"{field} {value}": replace(base, **{field: value}) for value in values}
    if not quick:
        batch = 128 if device.type == "cuda" else 16
        wide = replace(FULL, backbone="wideresnet34", batch=batch)
        cases["resnet18 w16 trades"] = replace(base, module=None, method="trades")
        cases |= {"resnet18 w64 at+fsr": FULL, "vgg16 w64 at+fsr": replace(FULL, backbone="vgg16")}
        cases[f"wideresnet34 w10 at+fsr, batch {batch}"] = wide
    return cases


class FastStep:
    """One step of the fast path on a batch; switches: as for Crafter."""

    def __init__(self, run: Run, device: torch.device, **switches):
        self.model = model_of(run).to(device).train()
        self.crafter = Crafter(self.model, run, device, **switches)
        self.stepper = Stepper(Objective(self.model, run), run, device)
        self.generator = torch.Generator(device)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Craft and update."""
        self.stepper.step(x, self.crafter.craft(x, y, self.generator), y)


def operations(run: Run, model, x: Tensor, *, parameter_gradients: bool) -> float:
    """Floating point operations of one training step: 2 per multiply-accumulate; a backward pass costs one forward pass
    for the input's gradient and one for the parameters'."""
    passes = run.steps * (3 if parameter_gradients else 2) + 3 * (1 + (run.method in ("trades", "mart")))
    return 2.0 * count_macs(model, x[:1]) * run.batch * passes


def measured(run: Run, sides: dict, rounds: int, device: torch.device) -> tuple[dict, measure.Rounds]:
    """(seconds, first calls and images per second of each side's `step`, all in turn; the rounds themselves)."""
    size = DATASETS[run.dataset].size
    x, y = torch.rand(run.batch, 3, size, size, device=device), torch.arange(run.batch, device=device) % 10
    repeats = 10 if device.type == "cuda" else 1  # there a single step is timed by its latency and not its throughput

    def several(step: Callable) -> Callable[[], None]:
        def call() -> None:
            for _ in range(repeats):
                step(x, y)

        return call

    first, times = measure.interleaved({name: several(side.step) for name, side in sides.items()}, rounds, device)
    times = {side: [seconds / repeats for seconds in each] for side, each in times.items()}
    seconds = {side: measure.spread(each) for side, each in times.items()}
    row = {"timed_together": repeats, "method": run.label, "seconds": seconds}
    row |= {field: getattr(run, field) for field in ("backbone", "width", "batch", "steps")}
    row |= {"first_call_seconds": {side: each[0] for side, each in first.items()}}
    return row | {"images_per_second": {side: run.batch / s["median"] for side, s in seconds.items()}}, times


def measure_case(name: str, run: Run, rounds: int, device: torch.device, peak: dict[str, float]) -> dict:
    """One row: the plain step and the fast one, compiled where that is the default and not; share of the peak."""
    torch.manual_seed(0)
    torch._dynamo.reset()  # else a size compiled before makes this one's shapes dynamic, another measurement
    plain, fast = PlainTrainer(run, model_of(run).to(device).train()), FastStep(run, device)
    sides = {"plain": plain, "fast": fast, "fast, not compiled": FastStep(run, device, compile=False)}
    row, times = measured(run, sides, rounds, device)
    x = torch.rand(1, 3, *2 * [DATASETS[run.dataset].size], device=device)
    flops = operations(run, plain.model, x, parameter_gradients=False) / row["seconds"]["fast"]["median"]
    precision = "bf16" if "bfloat16" in fast.crafter.switches["crafting"] else "float32"
    row |= {"switches": fast.crafter.switches, "flops": flops, "share_of_peak": flops / peak[precision]}
    return {"case": name, "ratio": measure.ratios(times, "plain", "fast"), **row}


def main() -> None:
    """Measure, print one line per case, write the record and the plot; with --only, one of their own."""
    given = measure.arguments(__doc__)
    some = measure.chosen(cases(given.quick, given.device), given.only)
    peak, rows = measure.peak_flops(given.device), []
    for name, run in some.items():
        rows.append(row := measure_case(name, run, given.rounds, given.device, peak))
        seconds = {side: round(value["median"], 4) for side, value in row["seconds"].items()}
        print(f"{name:28s} {row['ratio']['median']:5.2f}x {seconds}", flush=True)
        path = measure.save("train_step", rows, given, peak_flops=peak)
    print(path, measure.draw(path, rows, "Training step: PGD-10 and update"))


if __name__ == "__main__":
    main()
