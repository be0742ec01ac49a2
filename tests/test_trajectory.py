"""Five training steps of the authors' own code, in float64, repeated by the Trainer with the folded crafting copy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fsr.config import FSRSpec, Run
from fsr.data import Data
from fsr.models import FSR
from fsr.models.official import our_name
from fsr.train import Trainer, loop

STEPS, STREAMS = 5, FSR.streams


@pytest.fixture(scope="module")
def fixture():
    with np.load(Path(__file__).parent / "parity" / "trajectory.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def under_our_names(fixture, prefix: str) -> dict[str, torch.Tensor]:
    named = {k.removeprefix(prefix): v for k, v in fixture.items() if k.startswith(prefix)}
    return {our_name(name, "resnet18", "layer4"): v for name, v in named.items()}


@pytest.fixture
def trainer(fixture, monkeypatch):
    """Width 8, hidden 8, float64, their 1e-8 inside each logarithm and in tau; images neither cropped nor flipped."""
    x, y = fixture["images"].flatten(0, 1), fixture["labels"].flatten()
    data = Data(x, y, x[:0], y[:0], x[:0], y[:0], tuple("0123456789"))
    run = Run(width=8, module=FSRSpec(hidden=8), batch=8, epochs=1, holdout=0, precision="float32")
    monkeypatch.setattr(loop, "augment", lambda x, **_: x)
    monkeypatch.setattr(loop, "as_float", lambda x: x.double() / 255)
    trainer = Trainer(run, data)
    missing, unknown = trainer.model.load_state_dict(under_our_names(fixture, "init."), strict=False)
    assert not unknown and all(name.endswith("num_batches_tracked") for name in missing)
    trainer.model.double().train()
    trainer.ema.double()
    for module in trainer.model.modules():
        if isinstance(module, FSR):
            module.stable_eps = 1e-8
    return trainer


def test_the_trainer_repeats_the_authors_own_training_steps(fixture, trainer, monkeypatch):
    theirs = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "steps": 10, "eps": 8 / 255, "alpha": 2 / 255}
    assert theirs.items() <= vars(trainer.run).items()
    crafted, update = [], trainer.stepper.step
    monkeypatch.setattr(trainer.stepper, "step", lambda x, x_adv, y, **_: (crafted.append(x_adv), update(x, x_adv, y)))
    for step in range(STEPS):
        start, masks = fixture["start_uniform"][step].double(), tuple(fixture["mask_uniform"][step].double())
        monkeypatch.setattr("fsr.train.fast.draw_start", lambda *_, start=start: start)
        monkeypatch.setattr(FSR, "streams", lambda self, f, y=None, masks=masks: STREAMS(self, f, y, u=masks))
        trainer.step(torch.arange(8 * step, 8 * step + 8))
        mean = trainer.stepper.tally()
        final, robust, nonrobust, recalibrated = fixture["losses"][step].tolist()
        assert mean["cls"] == pytest.approx(final, rel=1e-9)
        assert mean["sep"] == pytest.approx(robust + nonrobust, rel=1e-9)
        assert mean["rec"] == pytest.approx(recalibrated, rel=1e-9)
        assert torch.equal(crafted[step].float(), fixture["adv_images"][step])
    assert trainer.crafter.copy is not None and len(trainer.crafter.copy.pairs) == 24  # every BatchNorm is folded
    norms, heads = under_our_names(fixture, "final_norm."), under_our_names(fixture, "final_head.")
    state = trainer.model.state_dict()
    assert norms.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    for name, norm in norms.items():
        torch.testing.assert_close(state[name].norm(), norm, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state[name].flatten()[:8], heads[name], rtol=1e-9, atol=1e-9)
