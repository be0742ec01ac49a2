"""The benchmarks time the same computation on both sides, interleaved, and name machines by their parts only."""

import itertools
import mmap
import platform
import time

import pytest
import torch

from benchmarks import evaluate, gpu, measure, pipeline, plain, precision, train_step
from fsr.config import FSRSpec, for_dataset, replace
from fsr.files import load_json
from fsr.models import model_of
from fsr.train.fast import Crafter, disagreement

CPU = torch.device("cpu")
TINY = for_dataset(
    "digits", width=8, blocks=(1, 1, 1, 1), module=FSRSpec(at=("layer3",)), batch=16, steps=2, precision="float32"
)  # fmt: skip


def test_plain_side_crafts_what_the_fast_side_crafts():
    model = model_of(TINY).train()
    x, y = torch.rand(16, 3, 8, 8), torch.arange(16) % 10
    torch.manual_seed(3)
    expected = plain.PlainTrainer(TINY, model).craft(x, y)
    torch.manual_seed(3)
    x_adv = Crafter(model, TINY).craft(x, y, noise=torch.rand_like(x))
    assert disagreement(x_adv, expected) <= 5e-3
    assert all(module.training for module in model.modules())


def test_plain_step_trains_and_reports_its_losses():
    model = model_of(TINY).train()
    before = [p.detach().clone() for p in model.parameters()]
    parts = plain.PlainTrainer(TINY, model).step(torch.rand(16, 3, 8, 8), torch.arange(16) % 10)
    assert set(parts) == {"cls", "sep", "rec"} and all(isinstance(v, float) for v in parts.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_loader_gives_augmented_images_of_the_usual_kind():
    data = pipeline.random_data(replace(TINY, dataset="cifar10"), 20)
    x, y = next(iter(plain.loader(data.train_x, data.train_y, replace(TINY, dataset="cifar10"))))
    assert x.shape == (16, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    assert y.dtype == torch.int64


def test_sides_take_turns_and_ratios_are_within_rounds(monkeypatch):
    order = []
    clock = itertools.count()
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


def test_memory_is_seen_while_a_function_holds_it():
    idle = measure.peak_memory(lambda: None, CPU)
    if idle is None:
        pytest.skip("no /proc/self/statm on this system")

    def hold() -> None:
        with mmap.mmap(-1, 64 * 2**20) as block:  # pages of its own: an allocator might hand out freed ones
            block.write(b"1" * len(block))
            time.sleep(0.2)

    assert measure.peak_memory(hold, CPU) >= idle + 48 * 2**20


def test_operations_count_every_pass():
    model, x = model_of(TINY), torch.rand(2, 3, 8, 8)
    one = 2.0 * train_step.count_macs(model, x[:1]) * TINY.batch
    assert train_step.operations(TINY, model, x, parameter_gradients=True) == one * (2 * 3 + 3)
    assert train_step.operations(TINY, model, x, parameter_gradients=False) == one * (2 * 2 + 3)
    assert train_step.operations(replace(TINY, method="trades"), model, x, parameter_gradients=False) == one * (
        2 * 2 + 6
    )


def test_one_case_of_each_makes_a_record_and_a_figure(root):
    rows = [train_step.measure_case("step", TINY, 1, CPU, {"float32": 1e9, "bf16": 1e9})]
    rows.append(pipeline.measure_case("pass", TINY, 40, 1, CPU))
    path = measure.save("test", rows, CPU)
    assert load_json(path)["rows"][1]["images"] == 40
    assert measure.save_figure(measure.draw_ratios(rows, "t"), "test", CPU).stat().st_size > 0
    assert rows[0]["ratio"]["low"] <= rows[0]["ratio"]["median"] <= rows[0]["ratio"]["high"]


def test_every_list_of_cases_holds_valid_runs():
    for quick in (True, False):
        assert train_step.cases(quick, CPU) and pipeline.cases(quick, CPU) and gpu.step_cases(quick)


def test_evaluation_compares_sides_image_by_image():
    flags = {"plain": torch.tensor([True, True, False]), "fast": torch.tensor([True, False, False])}
    row = evaluate.compare("x", {side: (lambda side=side: flags[side]) for side in flags}, 1, 3, CPU)
    assert row["robust_accuracy"] == pytest.approx({"plain": 2 / 3, "fast": 1 / 3}) and row["disagreeing_images"] == 1


def test_precision_pairs_differences_by_seed():
    rows = [
        {"precision": p, "seed": seed, "clean": base + shift, "pgd20": 0.1}
        for seed, base in enumerate((0.5, 0.9))
        for p, shift in (("float32", 0.0), ("bf16", 0.01))
    ]
    found = precision.conclusion([*rows, {"precision": "bf16", "seed": 7, "clean": 0.0, "pgd20": 0.0}])
    assert found["clean"]["difference"]["mean"] == pytest.approx(0.01)
    assert found["clean"]["difference"]["sd"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("wrong", [["--device", "foo"], ["--root", __file__]])
def test_a_wrong_device_or_place_is_one_line_before_anything_is_measured(monkeypatch, capsys, root, wrong):
    monkeypatch.setattr("sys.argv", ["train_step", "--quick", *wrong])
    with pytest.raises(SystemExit, match="2"):
        train_step.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_case_that_does_not_exist_is_refused_with_those_that_do(monkeypatch, capsys, root):
    monkeypatch.setattr("sys.argv", ["train_step", "--quick", "--device", "cpu", "--only", "resnet99"])
    with pytest.raises(SystemExit) as stopped:
        train_step.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "resnet99" in said and "resnet18 w16 at+fsr" in said


def test_on_a_gpu_the_cases_that_work_are_kept_when_one_fails(root, monkeypatch):
    def case(name, *_):
        if "w16" in name:
            raise TypeError("no such kernel")
        return {"case": name, "ratio": {"median": 2.0, "low": 2.0, "high": 2.0}, "seconds": {}}

    monkeypatch.setattr(gpu.train_step, "measure_case", case)
    monkeypatch.setattr(gpu.pipeline, "measure_case", case)
    monkeypatch.setattr(gpu, "profile", lambda *_: "a table")
    monkeypatch.setattr(gpu, "packed", lambda run, k, *_: {"runs": k})
    monkeypatch.setattr(gpu.measure, "peak_flops", lambda device: {"float32": 1e9})
    monkeypatch.setattr("sys.argv", ["gpu", "--quick", "--device", "cpu", "--parts", "twin"])
    gpu.main()
    part = load_json(measure.record_path("gpu-twin", CPU))
    assert [row["case"] for row in part["rows"]] == ["a quarter of it, AT alone"]
    assert not measure.record_path("gpu", CPU).exists()  # which holds all parts
    monkeypatch.setattr("sys.argv", ["gpu", "--quick", "--device", "cpu", "--parts", "nonsense"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(gpu.measure, "peak_flops", lambda device: pytest.fail("something was measured first"))
        gpu.main()
    monkeypatch.setattr("sys.argv", ["gpu", "--quick", "--device", "cpu"])
    gpu.main()
    record = load_json(measure.record_path("gpu", CPU))
    assert [row["case"] for row in record["rows"]] == [
        "epoch of 256 images",
        "a quarter of it, AT alone",
        "resnet18 w64 at+fsr",
    ]
    assert record["failed"] == {"resnet18 w16 at+fsr": "no such kernel"} and record["profile"] == "a table"
