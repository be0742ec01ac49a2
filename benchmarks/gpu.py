"""`python -m benchmarks.gpu [--only TEXT]`: what each part of the fast training step gains, one added after the other.

ResNet-18, VGG-16 and WRN-34-10 with FSR at full width: the plain step, then with the folded copy, channels last,
compiled, recorded as a CUDA graph (all with the GPU's TF32 convolutions), and in bf16. Then a whole epoch as trained,
plain against fast. Rows are saved as they are made. Runs on a CPU too, without graphs.
"""

import itertools

import torch

from benchmarks import measure, pipeline
from benchmarks.plain import PlainTrainer
from benchmarks.train_step import FULL, SMALL, FastStep, measured
from fsr.config import Run, replace
from fsr.models import model_of

PARTS: dict[str, dict] = {  # what is switched on, in this order
    "+ folding": {"layout": torch.contiguous_format, "compile": False, "graphs": False},
    "+ channels last": {"layout": torch.channels_last},
    "+ compile": {"compile": True},
    "+ CUDA graphs": {"graphs": True},
}


def ablation(name: str, run: Run, rounds: int, device: torch.device) -> list[dict]:
    """A row per part: how many times faster than plain with it and all before it, and than without it."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    exact = replace(run, precision="float32")
    sides: dict = {"plain": PlainTrainer(exact, model_of(exact).to(device).train())}
    switches: dict = {}
    for part, more in PARTS.items():
        switches = switches | more
        if device.type == "cuda" or not more.get("graphs"):
            sides[part] = FastStep(exact, device, **switches)
    sides["bf16 for TF32"] = FastStep(replace(run, precision="bf16"), device, **switches)
    row, times = measured(run, sides, rounds, device)
    names = list(sides)
    return [
        row
        | {"case": f"{name}: {part}", "ratio": measure.ratios(times, "plain", part)}
        | {"gain": measure.ratios(times, before, part), "switches": sides[part].crafter.switches}
        for before, part in itertools.pairwise(names)
    ]


def cases(quick: bool) -> dict[str, Run]:
    """By name; quick: the small network."""
    if quick:
        return {"resnet18 w16": replace(SMALL, batch=16, steps=2)}
    return {name: replace(FULL, backbone=name) for name in ("resnet18", "vgg16", "wideresnet34")}


def main() -> None:
    """All cases, each saved and printed as it is done; one that fails is named and the others go on."""
    given, rows, failed = measure.arguments(__doc__), [], {}
    n = 64 if given.quick else 12_800
    epoch = {f"epoch of {n} images": SMALL if given.quick else FULL}
    for name, run in measure.chosen({**cases(given.quick), **epoch}, given.only).items():
        try:
            if name in epoch:
                rows.append(pipeline.measure_case(name, run, n, 1, given.device))
            else:
                rows += ablation(name, run, given.rounds, given.device)
        except Exception as error:
            failed[name] = str(error)[:500]
        path = measure.save("gpu", rows, given, failed=failed)
    for row in rows:
        print(f"{row['case']:40s} {row['ratio']['median']:5.2f}x plain", row.get("gain", {}).get("median", ""))
    print(failed or "", path, measure.draw(path, rows, "What each part of the fast step gains"))


if __name__ == "__main__":
    main()
