"""The benchmarks time the same computation on both sides, interleaved, and name machines by their parts only."""

import itertools
import platform
from types import SimpleNamespace

import pytest
import torch

from benchmarks import evaluate, gpu, measure, pipeline, plain, train_step
from fsr.config import FSRSpec, for_dataset, replace
from fsr.files import load_json
from fsr.models import model_of
from fsr.train.fast import Crafter

CPU = torch.device("cpu")
SIZES = {"width": 8, "blocks": (1, 1, 1, 1), "batch": 16, "steps": 2}
TINY = for_dataset("digits", module=FSRSpec(at=("layer3",)), precision="float32", **SIZES)
GIVEN = SimpleNamespace(device=CPU, only="", rounds=1, quick=True)


def test_plain_side_crafts_what_the_fast_side_crafts_and_trains():
    model = model_of(TINY).train()
    x, y, before = torch.rand(16, 3, 8, 8), torch.arange(16) % 10, [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(3)
    expected = plain.PlainTrainer(TINY, model).craft(x, y)
    torch.manual_seed(3)
    x_adv = Crafter(model, TINY).craft(x, y, noise=torch.rand_like(x))
    assert (~torch.isclose(x_adv, expected, rtol=0, atol=1e-6)).float().mean() <= 5e-3
    assert all(module.training for module in model.modules())
    parts = plain.PlainTrainer(TINY, model).step(x, y)
    assert set(parts) == {"cls", "sep", "rec"} and all(isinstance(v, float) for v in parts.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_sides_take_turns_and_ratios_are_within_rounds(monkeypatch):
    order, clock = [], itertools.count()
    monkeypatch.setattr(measure, "timed", lambda function, _device: (function(), float(next(clock)))[1])
    sides = {name: (lambda name=name: order.append(name)) for name in "ab"}
    first, times = measure.interleaved(sides, 3, CPU)
    assert order == list("abababab" + "ab")
    assert first == {"a": [0.0], "b": [1.0]} and times == {"a": [2.0, 4.0, 6.0], "b": [3.0, 5.0, 7.0]}
    assert measure.ratios({"x": [4, 10, 9], "y": [2, 1, 3]}, "x", "y") == {"median": 3, "low": 2, "high": 10}


def test_machine_is_named_by_its_parts():
    name = measure.machine(CPU)
    assert "cores" in name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not platform.node() or platform.node().lower() not in name


def test_operations_count_every_pass():
    model, x = model_of(TINY), torch.rand(2, 3, 8, 8)
    one = 2.0 * train_step.count_macs(model, x[:1]) * TINY.batch
    count = train_step.operations
    assert count(TINY, model, x, parameter_gradients=True) == one * (2 * 3 + 3)
    assert count(TINY, model, x, parameter_gradients=False) == one * (2 * 2 + 3)
    assert count(replace(TINY, method="trades"), model, x, parameter_gradients=False) == one * (2 * 2 + 6)


def test_one_case_of_each_makes_a_record_and_a_figure(root):
    rows = [train_step.measure_case("step", TINY, 1, CPU, {"float32": 1e9, "bf16": 1e9})]
    rows.append(pipeline.measure_case("pass", TINY, 40, 1, CPU))
    path = measure.save("test", rows, GIVEN)
    assert load_json(path)["rows"][1]["images"] == 40 and measure.draw(path, rows, "t").stat().st_size > 0
    assert rows[0]["ratio"]["low"] <= rows[0]["ratio"]["median"] <= rows[0]["ratio"]["high"]


def test_an_ablation_adds_one_part_after_the_other(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    rows = gpu.ablation("tiny", TINY, 1, CPU)
    assert all(train_step.cases(quick, CPU) and pipeline.cases(quick, CPU) and gpu.cases(quick) for quick in (0, 1))
    names = ["+ folding", "+ channels last", "+ compile", "+ update compiled", "bf16 for TF32"]
    assert [row["case"] for row in rows] == [f"tiny: {name}" for name in names]  # no CUDA graphs on a CPU
    assert [row["switches"]["channels_last"] for row in rows] == [False, True, True, True, True]
    assert [row["switches"]["compile"] for row in rows] == [False, False, True, True, True]
    assert rows[0]["gain"] == rows[0]["ratio"]


def test_evaluation_compares_sides_image_by_image():
    flags = {"plain": torch.tensor([True, True, False]), "fast": torch.tensor([True, False, False])}
    row = evaluate.compare("x", {side: (lambda side=side: flags[side]) for side in flags}, 1, 3, CPU)
    assert row["robust_accuracy"] == pytest.approx({"plain": 2 / 3, "fast": 1 / 3}) and row["disagreeing_images"] == 1


@pytest.mark.parametrize("wrong", ["--device foo", f"--root {__file__}", "--device cpu --only resnet99"])
def test_wrong_use_is_one_line_before_anything_is_measured(monkeypatch, capsys, root, wrong):
    monkeypatch.setattr("sys.argv", ["train_step", "--quick", *wrong.split()])
    with pytest.raises(SystemExit, match="2"):
        train_step.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_cases_that_work_are_kept_when_one_fails(root, monkeypatch, capsys):
    def broken(*_):
        raise TypeError("no such kernel")

    row = {"case": "epoch of 64 images", "ratio": {"median": 2.0, "low": 2.0, "high": 2.0}}
    monkeypatch.setattr(gpu, "ablation", broken)
    monkeypatch.setattr(gpu.pipeline, "measure_case", lambda *_: row)
    monkeypatch.setattr("sys.argv", ["gpu", "--quick", "--device", "cpu"])
    gpu.main()
    (path,) = (root / "results" / "benchmarks").glob("gpu-*.json")
    record = load_json(path)
    assert record["failed"] == {"resnet18 w16": "no such kernel"}
    assert [r["case"] for r in record["rows"]] == [row["case"]]
    assert "no such kernel" in capsys.readouterr().out
