"""The loop: the recipe's numbers, equal to the authors' own steps, resumable bit for bit."""

import copy
import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from tiny import FSR_HERE, Wrapped, parity, tiny_run

from fsr import data
from fsr.config import FSRSpec, Run
from fsr.data import as_float
from fsr.files import Interrupted
from fsr.models import FSR
from fsr.models.build import our_name
from fsr.train import Callbacks, Trainer, fit
from fsr.train import loop as train
from fsr.train.objectives import learning_rate, stream_seed


def trainer_of(run: Run, **options) -> Trainer:
    return Trainer(run, data.load(run), **options)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_learning_rate_drops_where_the_authors_code_drops_it():
    rates = [learning_rate(Run(), epoch) for epoch in range(1, 101)]
    assert rates == pytest.approx([0.1] * 74 + [0.01] * 15 + [0.001] * 11)
    assert [learning_rate(Run(epochs=10), epoch) for epoch in (7, 8)] == pytest.approx([0.1, 0.01])


def test_seeds_differ_by_purpose_and_step_never_change_and_reach_everything_random(monkeypatch):
    assert stream_seed(0, "batch", 1) != stream_seed(0, "mask", 1) != stream_seed(0, "batch", 2)
    # the first eight bytes of `printf 0/batch/0 | sha256sum`, halved; records of all earlier runs rest on it
    assert stream_seed(0, "batch", 0) == 5278119267937101927 and stream_seed(0, "init") == 1519069808562059438
    seeds = []
    monkeypatch.setattr(train, "stream_seed", lambda *parts: seeds.append(parts) or stream_seed(*parts))
    trainer_of(tiny_run(seed=7)).epoch()
    assert {parts[1]: parts[0] for parts in seeds if len(parts) > 1} == {"init": 7, "order": 7, "batch": 7, "mask": 7}


def test_weights_are_perturbed_after_a_tenth_of_the_epochs(monkeypatch):
    trainer, seen = trainer_of(tiny_run(epochs=20, awp=0.01)), []
    monkeypatch.setattr(trainer.stepper, "step", lambda *_, awp: seen.append(awp))
    for trainer.progress.epoch in (1, 2, 3, 4):
        trainer.step(torch.arange(32))
    assert seen == [False, False, True, True]


def test_training_images_are_cropped_and_flipped_as_cifar_asks(monkeypatch):
    """CIFAR-10: four pixels of zeros around, a random crop, a random flip."""
    run = Run(width=4, blocks=(1, 1, 1, 1), batch=8, steps=1, epochs=1, holdout=0, precision="float32")
    x, y, seen = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8), []
    trainer = Trainer(run, data.Data(x, y, x[:0], y[:0], x, y, tuple("0123456789")))
    monkeypatch.setattr(trainer.stepper, "step", lambda x, *_, **__: seen.append(x))
    trainer.step(torch.arange(8))
    generator = torch.Generator().manual_seed(stream_seed(0, "batch", 0))
    assert torch.equal(seen[0], as_float(data.augment(x, pad=4, flip=True, generator=generator)))


def test_held_out_images_are_judged_clean_and_attacked_on_the_network_asked_for(monkeypatch):
    """An attack that inverts every image turns every answer of a judge of brightness."""
    trainer, seen = trainer_of(tiny_run()), []
    net = Wrapped(torch.nn.Flatten(), after=lambda x: (x.mean(1, keepdim=True) - 0.5) * torch.tensor([-1.0, 1.0]))
    trainer.ema, trainer.data = net, replace(trainer.data, held_y=net(as_float(trainer.data.held_x)).argmax(1))

    def attack(x, y, generator, *, source, noise):
        seen.append((source, generator.initial_seed()))
        return 1 - x

    monkeypatch.setattr(trainer.crafter, "craft", attack)
    accuracies = trainer._held_out()
    assert (accuracies["ema_held_clean_acc"], accuracies["ema_held_robust_acc"]) == (1.0, 0.0)
    assert seen == [(one, stream_seed("held-out")) for one in (trainer.model, net)]  # the same start in every epoch


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_run_stopped_after_any_batch_ends_as_if_it_had_not_been(stop_after):
    run = tiny_run(module=FSR_HERE)
    whole, seen, saved = fit(trainer_of(run)), [], {}

    def on_stop(trainer: Trainer) -> None:
        saved["tensors"] = {k: v.clone() for k, v in trainer.tensors().items()}
        saved["progress"] = json.loads(json.dumps(asdict(trainer.progress)))

    callbacks = Callbacks(lambda _: None, lambda *_: seen.append(1), on_stop, None, lambda: len(seen) >= stop_after)
    with pytest.raises(Interrupted):
        fit(trainer_of(run), callbacks)
    torch.rand(7)  # whatever else the process draws must not matter
    resumed = trainer_of(run)
    resumed.restore(**saved)
    fit(resumed)
    assert same(resumed.tensors(), whole.tensors())
    rows = [[{**row, "seconds": 0} for row in one.progress.rows] for one in (resumed, whole)]
    assert rows[0] == rows[1]


def test_best_keeps_the_weights_of_the_first_epoch_with_the_highest_held_out_accuracy(monkeypatch):
    values, weights, trainer = iter((0.2, 0.5, 0.5, 0.1)), [], trainer_of(tiny_run(epochs=4))
    monkeypatch.setattr(trainer, "_held_out", lambda: {"held_robust_acc": next(values)})
    keep = lambda t: weights.append({k: v.clone() for k, v in t.model.state_dict().items()})  # noqa: E731
    fit(trainer, Callbacks(on_epoch=keep))
    rates = [learning_rate(trainer.run, epoch) for epoch in (1, 2, 3, 4)]
    assert [row["lr"] for row in trainer.progress.rows] == rates and len(set(rates)) > 1
    assert trainer.progress.best_epoch == 2 and same(trainer.best, weights[1]) and not same(weights[1], weights[3])
    assert set(trainer.checkpoints()) == {"last", "best", "ema"}


def test_without_held_out_images_there_is_no_best_and_the_callers_random_numbers_stay():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer = fit(trainer_of(tiny_run(holdout=0, epochs=1)))
    assert torch.equal(torch.rand(3), expected)
    assert set(trainer.checkpoints()) == {"last", "ema"} and math.isnan(trainer.progress.rows[0]["held_clean_acc"])


STEPS, STREAMS = 5, FSR.streams


@pytest.fixture(scope="module")
def fixture():
    return parity("trajectory")


def under_our_names(fixture, prefix: str) -> dict[str, torch.Tensor]:
    named = {k.removeprefix(prefix): v for k, v in fixture.items() if k.startswith(prefix)}
    return {our_name(name, "resnet18", "layer4"): v for name, v in named.items()}


@pytest.fixture
def trainer(fixture, monkeypatch):
    """Width 8, hidden 8, float64, their 1e-8 inside each logarithm and in tau; images neither cropped nor flipped."""
    x, y = fixture["images"].flatten(0, 1), fixture["labels"].flatten()
    theirs = data.Data(x, y, x[:0], y[:0], x[:0], y[:0], tuple("0123456789"))
    run = Run(width=8, module=FSRSpec(hidden=8), batch=8, epochs=1, holdout=0, precision="float32")
    monkeypatch.setattr(train, "augment", lambda x, **_: x)
    monkeypatch.setattr(train, "as_float", lambda x: x.double() / 255)
    trainer = Trainer(run, theirs)
    missing, unknown = trainer.model.load_state_dict(under_our_names(fixture, "init."), strict=False)
    assert not unknown and all(name.endswith("num_batches_tracked") for name in missing)
    trainer.model.double().train()
    trainer.ema.double()
    for module in trainer.model.modules():
        if isinstance(module, FSR):
            module.stable_eps = 1e-8
    return trainer


def test_the_trainer_repeats_the_authors_own_training_steps(fixture, trainer, monkeypatch):
    """Five, in float64, with the folded crafting copy."""
    theirs = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "steps": 10, "eps": 8 / 255, "alpha": 2 / 255}
    assert theirs.items() <= vars(trainer.run).items()
    crafted, update, average = [], trainer.stepper.step, copy.deepcopy(trainer.ema.state_dict())
    monkeypatch.setattr(trainer.stepper, "step", lambda x, x_adv, y, **_: (crafted.append(x_adv), update(x, x_adv, y)))
    for step in range(STEPS):
        start, masks = fixture["start_uniform"][step].double(), tuple(fixture["mask_uniform"][step].double())
        monkeypatch.setattr("fsr.train.fast.draw_start", lambda *_, start=start: start)
        monkeypatch.setattr(FSR, "streams", lambda self, f, y=None, masks=masks: STREAMS(self, f, y, u=masks))
        trainer.step(torch.arange(8 * step, 8 * step + 8))
        decay = min(0.9995, (1 + step) / (10 + step))  # our own average beside their weights
        for name, value in trainer.model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
        mean = trainer.stepper.tally()
        final, robust, nonrobust, recalibrated = fixture["losses"][step].tolist()
        assert mean["cls"] == pytest.approx(final, rel=1e-9)
        assert mean["sep"] == pytest.approx(robust + nonrobust, rel=1e-9)
        assert mean["rec"] == pytest.approx(recalibrated, rel=1e-9)
        assert torch.equal(crafted[step].float(), fixture["adv_images"][step])
    torch.testing.assert_close(trainer.ema.state_dict(), average)
    assert trainer.crafter.copy is not None and len(trainer.crafter.copy.pairs) == 24  # every BatchNorm is folded
    norms, heads = under_our_names(fixture, "final_norm."), under_our_names(fixture, "final_head.")
    state = trainer.model.state_dict()
    assert norms.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    for name, norm in norms.items():
        torch.testing.assert_close(state[name].norm(), norm, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state[name].flatten()[:8], heads[name], rtol=1e-9, atol=1e-9)
