"""`python -m benchmarks.train_step [--quick] [--only TEXT]`: one training step, plain against fast, as sizes grow."""

import re
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.plain import PlainTrainer
from fsr.config import DATASETS, FSRSpec, Run, for_dataset, replace
from fsr.models import count_macs, model_of
from fsr.train.fast import Crafter
from fsr.train.objectives import Objective
from fsr.train.update import Stepper, sgd

SMALL = for_dataset("cifar10", backbone="resnet18", width=16, module=FSRSpec())
FULL = replace(SMALL, width=None)


UPDATE_COMPILED = "resnet18 w64 at+fsr"


def cases(quick: bool, device: torch.device) -> dict[str, Run]:
    """What is measured: ResNet-18 of width 16, one size at a time around it, then the three backbones at full width.

    WRN-34-10 has batch 16 on a CPU, where the plain step on 128 images takes many minutes.
    """
    base = replace(SMALL, batch=64) if quick else SMALL
    found = {"resnet18 w16 at+fsr": base, "resnet18 w16 at": replace(base, module=None)}
    found["digits resnet10 w8 at+fsr"] = for_dataset(
        "digits", width=8, blocks=(1, 1, 1, 1), module=FSRSpec(at=("layer3",)), precision="float32", train_size=1197
    )
    grow: dict[str, tuple] = {"batch": (32, 64, 256, 512), "width": (8, 32), "steps": (1, 5, 20)}
    if quick:
        grow = {"batch": (16,), "width": (8,), "steps": (1,)}
    for field, values in grow.items():
        found |= {f"{field} {value}": replace(base, **{field: value}) for value in values}
    if not quick:
        batch = 128 if device.type == "cuda" else 16
        wide = replace(FULL, backbone="wideresnet34", batch=batch)
        found["resnet18 w16 trades"] = replace(base, module=None, method="trades")
        found |= {"resnet18 w64 at+fsr": FULL, "vgg16 w64 at+fsr": replace(FULL, backbone="vgg16")}
        found[f"wideresnet34 w10 at+fsr, batch {batch}"] = wide
    return found


class FastStep:
    """One step of the fast path on a batch; update: compile that too; switches: as for Crafter."""

    def __init__(self, run: Run, device: torch.device, update: bool = False, **switches):
        self.model = model_of(run).to(device).train()
        self.crafter = Crafter(self.model, run, device, **switches)
        self.stepper = Stepper(Objective(self.model, run), sgd(self.model, run, device), run, device, compile=update)
        self.generator = torch.Generator(device)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Craft and update."""
        self.stepper.step(x, self.crafter.craft(x, y, self.generator), y)


def operations(run: Run, model, x: Tensor, *, parameter_gradients: bool) -> float:
    """Floating point operations of one training step: 2 per multiply-accumulate; a backward pass costs one forward pass
    for the input's gradient and one for the parameters'."""
    passes = run.steps * (3 if parameter_gradients else 2) + 3 * (1 + (run.method in ("trades", "mart")))
    return 2.0 * count_macs(model, x[:1]) * run.batch * passes


def sides_of(name: str, run: Run, device: torch.device) -> dict[str, FastStep]:
    """The fast step and what it is compared with besides the plain one: without compiling."""
    sides = {"fast": FastStep(run, device), "fast, not compiled": FastStep(run, device, compile=False)}
    if device.type == "cuda" and name == UPDATE_COMPILED:  # minutes of compiling: once
        sides["fast, update compiled"] = FastStep(run, device, update=True)
    return sides


def speeds(run: Run, model, x: Tensor, times: measure.Rounds, peak: dict[str, float], precision: str) -> dict:
    """What follows from the seconds of each side: ratios, images and operations per second, share of the peak.

    precision: of the fast sides' crafting, "bf16" or "float32"; the plain one is float32.
    """
    medians = {side: measure.spread(seconds)["median"] for side, seconds in times.items()}
    flops = {
        side: operations(run, model, x, parameter_gradients=side == "plain") / seconds
        for side, seconds in medians.items()
    }
    row = {"ratio": measure.ratios(times, "plain", "fast")}
    row |= {"ratio_not_compiled": measure.ratios(times, "plain", "fast, not compiled")}
    share = {side: f / peak["float32" if side == "plain" else precision] for side, f in flops.items()}
    rate = {side: run.batch / seconds for side, seconds in medians.items()}
    return {**row, "images_per_second": rate, "flops": flops, "share_of_peak": share}


def measure_case(name: str, run: Run, rounds: int, device: torch.device, peak: dict[str, float]) -> dict:
    """One row: seconds of the plain step and of every fast one, all in turn, and what follows."""
    torch.manual_seed(0)
    torch._dynamo.reset()  # else a size compiled before makes this one's shapes dynamic, another measurement
    size = DATASETS[run.dataset].size
    x, y = torch.rand(run.batch, 3, size, size, device=device), torch.arange(run.batch, device=device) % 10
    plain = PlainTrainer(run, model_of(run).to(device).train())
    sides = sides_of(name, run, device)
    repeats = 10 if device.type == "cuda" else 1  # there a single step is timed by its latency and not its throughput

    def several(step) -> Callable[[], None]:
        """A call of as many steps as are timed together."""

        def call() -> None:
            for _ in range(repeats):
                step(x, y)

        return call

    functions = {side: several(step.step) for side, step in {"plain": plain, **sides}.items()}
    first, times = measure.interleaved(functions, rounds, device)
    times = {side: [seconds / repeats for seconds in each] for side, each in times.items()}
    switches = sides["fast"].crafter.switches
    row = {"case": name, "timed_together": repeats, "method": run.label, "switches": switches}
    row |= {field: getattr(run, field) for field in ("backbone", "width", "batch", "steps")}
    row |= {"seconds": {side: measure.spread(t) for side, t in times.items()}}
    row |= {"first_call_seconds": {side: t[0] for side, t in first.items()}}
    row |= speeds(run, plain.model, x, times, peak, "bf16" if "bfloat16" in switches["crafting"] else "float32")
    row |= {"peak_memory": {side: measure.peak_memory(function, device) for side, function in functions.items()}}
    return row


def main() -> None:
    """Measure, print one line per case, write the record and the plot; with --only, one of their own."""
    only = "measure the cases with TEXT in their name, into a record of their own"
    given = measure.arguments(__doc__, lambda p: p.add_argument("--only", metavar="TEXT", default="", help=only))
    known = cases(given.quick, given.device)
    wanted = {name: run for name, run in known.items() if given.only in name}
    if not wanted:
        print(f"--only {given.only}: there is no such case; type a part of one of: {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    record = "-".join(["train_step", *filter(None, [re.sub(r"[^a-z0-9]+", "-", given.only.lower()).strip("-")])])
    peak, rows = measure.peak_flops(given.device), []
    for name, run in wanted.items():
        rows.append(row := measure_case(name, run, given.rounds, given.device, peak))
        seconds = {side: value["median"] for side, value in row["seconds"].items()}
        print(
            f"{name:28s} {row['ratio']['median']:5.2f}x", {side: round(s, 4) for side, s in seconds.items()}, flush=True
        )
        measure.save(record, rows, given.device, peak_flops=peak, rounds=given.rounds, quick=given.quick)
    figure = measure.draw_ratios(rows, "Training step: PGD-10 and update")
    print(measure.save_figure(figure, record, given.device))


if __name__ == "__main__":
    main()
