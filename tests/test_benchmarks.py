"""The benchmarks time the same computation on both sides, interleaved, and name machines by their parts only."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure, pipeline, plain, train_step
from fsr.config import FSRSpec, for_dataset
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


def test_one_case_of_each_makes_a_record_and_a_figure(root):
    rows = [train_step.measure_case("step", TINY, 1, CPU, {"float32": 1e9, "bf16": 1e9})]
    rows.append(pipeline.measure_case("pass", TINY, 40, 1, CPU))
    path = measure.save("test", rows, GIVEN)
    assert load_json(path)["rows"][1]["images"] == 40 and measure.draw(path, rows, "t").stat().st_size > 0
    assert rows[0]["ratio"]["low"] <= rows[0]["ratio"]["median"] <= rows[0]["ratio"]["high"]


@pytest.mark.parametrize("wrong", ["--device foo", f"--root {__file__}", "--device cpu --only resnet99"])
def test_wrong_use_is_one_line_before_anything_is_measured(monkeypatch, capsys, root, wrong):
    monkeypatch.setattr("sys.argv", ["train_step", "--quick", *wrong.split()])
    with pytest.raises(SystemExit, match="2"):
        train_step.main()
    assert capsys.readouterr().err.count("\n") == 1
