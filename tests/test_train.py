"""The loop: the recipe's numbers, equal to a plain loop written out, and resumable bit for bit."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from tiny import FSR_HERE, tiny_run

from fsr import data
from fsr.config import Run
from fsr.data import as_float
from fsr.files import Diverged, Interrupted
from fsr.models import model_of
from fsr.train import Callbacks, Trainer, fit
from fsr.train import loop as train
from fsr.train.objectives import Objective, craft, draw_start, start
from fsr.train.update import learning_rate, stream_seed


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k].cpu(), b[k].cpu()) for k in a)


def rows_without_time(trainer: Trainer) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.progress.rows]


def test_the_learning_rate_drops_where_the_authors_code_drops_it():
    rates = [learning_rate(Run(), epoch) for epoch in range(1, 101)]
    assert rates[:74] == [0.1] * 74
    assert rates[74:89] == [pytest.approx(0.01)] * 15
    assert rates[89:] == [pytest.approx(0.001)] * 11
    assert learning_rate(Run(epochs=10), 7) == 0.1 and learning_rate(Run(epochs=10), 8) == pytest.approx(0.01)


def test_seeds_differ_by_purpose_and_step_and_never_change():
    assert stream_seed(0, "batch", 1) != stream_seed(0, "mask", 1) != stream_seed(0, "batch", 2)
    # the first eight bytes of `printf 0/batch/0 | sha256sum`, halved; records of all earlier runs rest on it
    assert stream_seed(0, "batch", 0) == 5278119267937101927 and stream_seed(0, "init") == 1519069808562059438


def test_the_runs_seed_reaches_weights_order_starts_and_noise(monkeypatch):
    asked = []
    monkeypatch.setattr(train, "stream_seed", lambda *parts: asked.append(parts) or stream_seed(*parts))
    run = tiny_run(seed=7)
    Trainer(run, data.load(run)).epoch()
    assert {parts[1]: parts[0] for parts in asked if len(parts) > 1} == {"init": 7, "order": 7, "batch": 7, "mask": 7}


def test_weights_are_perturbed_after_a_tenth_of_the_epochs(monkeypatch):
    run = tiny_run(epochs=20, awp=0.01)
    trainer, seen = Trainer(run, data.load(run)), []
    monkeypatch.setattr(trainer.stepper, "step", lambda *_, awp: seen.append(awp))
    for epoch in (1, 2, 3, 4):
        trainer.progress.epoch = epoch
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
    run, net, seen = tiny_run(), Bright(), []
    d = data.load(run)
    trainer = Trainer(run, replace(d, held_y=net(as_float(d.held_x)).argmax(1)))
    trainer.ema = net

    def attack(x, y, generator, *, source, noise):
        seen.append((source, generator.initial_seed()))
        return 1 - x

    monkeypatch.setattr(trainer.crafter, "attack", attack)
    found = trainer._held_out()
    assert (found["ema_held_clean_acc"], found["ema_held_robust_acc"]) == (1.0, 0.0)
    assert seen == [(one, stream_seed("held-out")) for one in (trainer.model, net)]  # the same start in every epoch


def plain_loop(run: Run, d) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The recipe written out slowly: no fast path, no trainer."""
    torch.manual_seed(stream_seed(run.seed, "init"))
    model = model_of(run, num_classes=10)
    ema = copy.deepcopy(model)
    objective = Objective(model, run)
    optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=0.9, weight_decay=5e-4)
    step = 0
    for epoch in range(1, run.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run, epoch)
        order = torch.randperm(len(d.train_y), generator=torch.Generator().manual_seed(stream_seed(0, "order", epoch)))
        for index in order.split(run.batch):
            generator = torch.Generator().manual_seed(stream_seed(run.seed, "batch", step))
            torch.manual_seed(stream_seed(run.seed, "mask", step))
            x, y = as_float(d.train_x[index]), d.train_y[index]
            model.eval()
            x_adv = craft(model, run, start(x, run, draw_start(x, run, generator)), x, y)
            model.train()
            parts, _ = objective(x, x_adv, y)
            optimizer.zero_grad()
            objective.total(parts).backward()
            optimizer.step()
            decay = min(0.9995, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, b in zip(ema.state_dict().values(), model.state_dict().values()):
                    a.copy_(decay * a + (1 - decay) * b if a.is_floating_point() else b)
            step += 1
    return model, ema


@pytest.mark.parametrize("module", [None, FSR_HERE], ids=["at", "at+fsr"])
def test_training_equals_the_recipe_written_out(module):
    # a sign tie of the folded network may move single pixels, so weights agree closely and not to the bit
    run = tiny_run(module=module, epochs=1)
    d = data.load(run)
    trainer = fit(Trainer(run, d))
    model, ema = plain_loop(run, d)
    torch.manual_seed(stream_seed(run.seed, "init"))
    start = model_of(run, num_classes=10)
    apart, moved = (
        torch.stack([(a - b).norm() for a, b in zip(one.parameters(), other.parameters())]).norm()
        for one, other in ((trainer.model, model), (model, start))
    )
    assert apart < 0.05 * moved, (apart, moved)
    for mine, theirs in ((trainer.model, model), (trainer.ema, ema)):
        for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values()):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_run_stopped_after_any_batch_ends_as_if_it_had_not_been(stop_after):
    run = tiny_run(module=FSR_HERE)
    d = data.load(run)
    whole = fit(Trainer(run, d))
    seen, saved = [], {}

    def on_stop(trainer: Trainer) -> None:
        saved["tensors"] = {k: v.clone() for k, v in trainer.tensors().items()}
        saved["progress"] = json.loads(json.dumps(asdict(trainer.progress)))

    callbacks = Callbacks(lambda *_: None, lambda *_: seen.append(1), on_stop, None, lambda: len(seen) >= stop_after)
    with pytest.raises(Interrupted):
        fit(Trainer(run, d), callbacks)
    torch.rand(7)  # whatever else the process draws must not matter
    resumed = Trainer(run, d)
    resumed.restore(saved["tensors"], saved["progress"])
    fit(resumed)
    assert same(resumed.tensors(), whole.tensors())
    assert rows_without_time(resumed) == rows_without_time(whole)


def test_best_keeps_the_weights_of_the_first_epoch_with_the_highest_held_out_accuracy(monkeypatch):
    run, values, kept = tiny_run(epochs=4), iter((0.2, 0.5, 0.5, 0.1)), []
    trainer = Trainer(run, data.load(run))
    monkeypatch.setattr(trainer, "_held_out", lambda: {"held_robust_acc": next(values)})
    keep = lambda t: kept.append({k: v.clone() for k, v in t.model.state_dict().items()})  # noqa: E731
    fit(trainer, Callbacks(on_epoch=keep))
    assert trainer.progress.best_epoch == 2 and same(trainer.best, kept[1]) and not same(kept[1], kept[3])
    assert set(trainer.checkpoints()) == {"last", "best", "ema"}


def test_without_held_out_images_there_is_no_best():
    run = tiny_run(holdout=0, epochs=1)
    assert set(fit(Trainer(run, data.load(run))).checkpoints()) == {"last", "ema"}


def test_training_leaves_the_callers_random_numbers_alone():
    run = tiny_run(epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(Trainer(run, data.load(run)))
    assert torch.equal(torch.rand(3), expected)


def test_divergence_stops_with_epoch_and_step_after_the_last_good_epoch_was_handed_out():
    run = tiny_run(lr=0.1, epochs=3)
    trainer, good = Trainer(run, data.load(run)), []

    def on_epoch(trainer: Trainer) -> None:
        good.append(trainer.progress.epoch)
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(float("nan"))

    with pytest.raises(Diverged, match="epoch 2, step 1"):
        fit(trainer, Callbacks(on_epoch=on_epoch))
    assert good == [2]


def test_the_average_lies_in_memory_as_the_weights_do():
    run = tiny_run(width=16)
    trainer = Trainer(run, data.load(run), switches={"channels_last": True})
    pairs = list(zip(trainer.model.parameters(), trainer.ema.parameters(), strict=True))
    assert all(a.stride() == b.stride() for a, b in pairs) and any(not a.is_contiguous() for a, _ in pairs)
