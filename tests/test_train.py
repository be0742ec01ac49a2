"""The loop: the recipe's numbers, equal to a plain loop written out, and resumable bit for bit."""

import copy
import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from tiny import FSR_HERE, tiny_run

from fsr import data
from fsr.config import Run
from fsr.data import as_float
from fsr.files import Interrupted
from fsr.models import model_of
from fsr.train import Callbacks, Trainer, fit
from fsr.train import loop as train
from fsr.train.objectives import Objective, craft, draw_start, learning_rate, start, stream_seed


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
    asked = []
    monkeypatch.setattr(train, "stream_seed", lambda *parts: asked.append(parts) or stream_seed(*parts))
    trainer_of(tiny_run(seed=7)).epoch()
    assert {parts[1]: parts[0] for parts in asked if len(parts) > 1} == {"init": 7, "order": 7, "batch": 7, "mask": 7}


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


class Bright(torch.nn.Module):
    """Is an image dark (class 0) or bright (class 1)?"""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_held_out_images_are_judged_clean_and_attacked_on_the_network_asked_for(monkeypatch):
    """An attack that inverts every image turns every answer of a judge of brightness."""
    trainer, net, seen = trainer_of(tiny_run()), Bright(), []
    trainer.ema, trainer.data = net, replace(trainer.data, held_y=net(as_float(trainer.data.held_x)).argmax(1))

    def attack(x, y, generator, *, source, noise):
        seen.append((source, generator.initial_seed()))
        return 1 - x

    monkeypatch.setattr(trainer.crafter, "attack", attack)
    found = trainer._held_out()
    assert (found["ema_held_clean_acc"], found["ema_held_robust_acc"]) == (1.0, 0.0)
    assert seen == [(one, stream_seed("held-out")) for one in (trainer.model, net)]  # the same start in every epoch


def plain_loop(run: Run, d) -> list[torch.nn.Module]:
    """The recipe written out slowly, no fast path, no trainer: the network as initialised, trained, and its average."""
    torch.manual_seed(stream_seed(run.seed, "init"))
    model = model_of(run, num_classes=10)
    first, ema = copy.deepcopy(model), copy.deepcopy(model)
    objective, step = Objective(model, run), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(1, run.epochs + 1):
        optimizer.param_groups[0]["lr"] = learning_rate(run, epoch)
        order = torch.randperm(len(d.train_y), generator=torch.Generator().manual_seed(stream_seed(0, "order", epoch)))
        for index in order.split(run.batch):
            generator = torch.Generator().manual_seed(stream_seed(run.seed, "batch", step))
            torch.manual_seed(stream_seed(run.seed, "mask", step))
            x, y = as_float(d.train_x[index]), d.train_y[index]
            model.eval()
            x_adv = craft(model, run, start(x, run, draw_start(x, run, generator)), x, y)
            model.train()
            optimizer.zero_grad()
            objective.total(objective(x, x_adv, y)[0]).backward()
            optimizer.step()
            decay = min(0.9995, (1 + step) / (10 + step))
            for a, b in zip(ema.state_dict().values(), model.state_dict().values()):
                a.copy_(decay * a + (1 - decay) * b if a.is_floating_point() else b)
            step += 1
    return [first, model, ema]


@pytest.mark.parametrize("changes", [{}, {"module": FSR_HERE}, {"method": "mart"}], ids=str)
def test_training_equals_the_recipe_written_out(changes):
    # a sign tie of the folded network may move single pixels, so weights agree closely and not to the bit
    run = tiny_run(epochs=1, **changes)
    trainer = fit(trainer_of(run))
    first, model, ema = plain_loop(run, trainer.data)
    mine, theirs, before = (torch.cat([p.flatten() for p in n.parameters()]) for n in (trainer.model, model, first))
    assert (mine - theirs).norm() < 0.05 * (theirs - before).norm()
    for mine, theirs in ((trainer.model, model), (trainer.ema, ema)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), atol=2e-3, rtol=2e-2)


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
    values, kept, trainer = iter((0.2, 0.5, 0.5, 0.1)), [], trainer_of(tiny_run(epochs=4))
    monkeypatch.setattr(trainer, "_held_out", lambda: {"held_robust_acc": next(values)})
    keep = lambda t: kept.append({k: v.clone() for k, v in t.model.state_dict().items()})  # noqa: E731
    fit(trainer, Callbacks(on_epoch=keep))
    assert trainer.progress.best_epoch == 2 and same(trainer.best, kept[1]) and not same(kept[1], kept[3])
    assert set(trainer.checkpoints()) == {"last", "best", "ema"}


def test_without_held_out_images_there_is_no_best_and_the_callers_random_numbers_stay():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer = fit(trainer_of(tiny_run(holdout=0, epochs=1)))
    assert torch.equal(torch.rand(3), expected)
    assert set(trainer.checkpoints()) == {"last", "ema"} and math.isnan(trainer.progress.rows[0]["held_clean_acc"])


def test_the_average_lies_in_memory_as_the_weights_do():
    trainer = trainer_of(tiny_run(width=16), switches={"channels_last": True})
    pairs = list(zip(trainer.model.parameters(), trainer.ema.parameters(), strict=True))
    assert all(a.stride() == b.stride() for a, b in pairs) and any(not a.is_contiguous() for a, _ in pairs)
