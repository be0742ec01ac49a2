"""Our AutoAttack loop against pyautoattack called plainly, a kill after every batch, and planted defences."""

import copy
import logging
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fsr.attacks import ATTACKS
from fsr.attacks import auto as a
from fsr.attacks import components as c
from fsr.attacks.query import square
from fsr.files import UsageError

SHORT = {"steps": 8, "queries": 60}


class Net(nn.Module):
    """A small convolutional net whose robust accuracy at eps 0.04 lies in between."""

    def __init__(self, seed=0, classes=6):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, classes),
        )

    def forward(self, x):
        return 20 * self.layers(x)


@pytest.fixture(scope="module")
def problem():
    """A net, 30 images and labels: mostly its own predictions, some of them wrong from the start."""
    generator = torch.Generator().manual_seed(1)
    net, x = Net().eval(), torch.rand(30, 3, 8, 8, generator=generator)
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::9] = (y[::9] + 1) % 6
    return net, x, y


EPS = 0.04


def run(problem, **options):
    net, x, y = problem
    return a.autoattack(net, x, y, **{"eps": EPS, "batch": 7, **SHORT, **options})


def plain(problem, version="standard", seed=3, batch=7, **changes):
    """pyautoattack called plainly, with the same cut of its budget."""
    from pyautoattack import AutoAttack

    net, x, y = problem
    net = copy.deepcopy(net)  # its FAB leaves gradients in the parameters
    theirs = AutoAttack(net, eps=EPS, version=version, seed=seed, device="cpu")
    for attack in (theirs.apgd, theirs.apgd_targeted):
        attack.n_iter, attack.n_iter_2, attack.n_iter_min, attack.size_decr = 8, 1, 1, 1
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 5
    theirs.fab.n_iter, theirs.square.n_queries = 8, 60
    for name, value in changes.items():
        setattr(theirs, name, value)
    x_adv, _ = theirs.run_standard_evaluation(x, y, batch_size=batch)
    with torch.no_grad():
        return x_adv, net(x_adv).argmax(1) == y


@pytest.mark.parametrize("version, batch", [("standard", 7), ("standard", 30), ("rand", 7)])
def test_same_outcomes_and_images_as_the_package_called_plainly(problem, version, batch):
    ours = run(problem, version=version, seed=3, batch=batch)
    x_adv, correct = plain(problem, version, batch=batch)
    assert torch.equal(ours.correct, correct)
    torch.testing.assert_close(ours.x_adv, x_adv, rtol=0, atol=1e-6)
    assert 0 < ours.correct.sum() < ours.clean.sum() < 30


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_same_outcomes_and_images_as_the_package_at_full_budget(problem, version):
    from pyautoattack import AutoAttack

    net, x, y = problem
    theirs = AutoAttack(copy.deepcopy(net), eps=0.01, version=version, seed=5, device="cpu")
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 5  # it would fail for six classes
    x_adv, _ = theirs.run_standard_evaluation(x, y, batch_size=10)
    ours = a.autoattack(net, x, y, eps=0.01, version=version, seed=5, batch=10)
    torch.testing.assert_close(ours.x_adv, x_adv, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(ours.correct, net(x_adv).argmax(1) == y)
    assert 3 < ours.correct.sum() < ours.clean.sum() - 3


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_full_budget_is_the_packages_own(version):
    from pyautoattack import AutoAttack

    theirs = AutoAttack(Net(), eps=EPS, version=version, seed=0, device="cpu")
    names, budget = a._attacks_of(version, None), c.Budget(draws=20 if version == "rand" else 1)
    assert list(names) == theirs.attacks_to_run
    originals = {
        "apgd-ce": theirs.apgd,
        "apgd-dlr": theirs.apgd,
        "apgd-t": theirs.apgd_targeted,
        "fab-t": theirs.fab,
        "square": theirs.square,
    }
    theirs.fab.targeted = True
    for name in names:
        ours = c.component(name, Net(), eps=EPS, seed=0, device="cpu", budget=budget, log=c.Log())
        ignored = {"model", "predict", "logger", "loss" if name.startswith("apgd") else ""}
        mine, other = ({k: v for k, v in vars(o).items() if k not in ignored} for o in (ours, originals[name]))
        assert mine == other
    assert c.Budget() == c.Budget(steps=100, queries=5000, draws=1, targets=9, rescale=False)


def test_outcomes_are_cumulative_and_images_break_what_they_claim(problem):
    net, x, y = problem
    result = run(problem)
    previous = result.clean
    assert list(result.outcomes) == list(a.STANDARD)
    for after in result.outcomes.values():
        assert not (after & ~previous).any()
        previous = after
    assert torch.equal(previous, result.correct)
    broken = result.clean & ~result.correct
    with torch.no_grad():
        assert (net(result.x_adv).argmax(1) != y)[broken].all()
    assert (result.x_adv - x).abs().max() <= EPS + 1e-6 and result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(result.x_adv[~broken], x[~broken])
    assert set(result.seconds) == set(a.STANDARD) and result.flips == {}


class Killed(Exception):
    """The process dies here."""


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_a_kill_after_any_batch_changes_nothing(problem, tmp_path, version):
    whole = run(problem, version=version)
    file, kills, state = tmp_path / "state.npz", 0, {}
    while True:
        chunks = 0

        def on_chunk(state):
            nonlocal chunks
            np.savez(file, **state)
            chunks += 1
            if chunks == 2:
                raise Killed

        try:
            result = run(problem, version=version, state=state, on_chunk=on_chunk)
            break
        except Killed:
            kills += 1
            torch.manual_seed(kills)  # a new process has another global state
            state = dict(np.load(file))
    assert kills >= 3
    assert torch.equal(result.correct, whole.correct) and torch.equal(result.x_adv, whole.x_adv)
    assert all(torch.equal(result.outcomes[k], v) for k, v in whole.outcomes.items())
    assert result.flags == whole.flags


def test_a_finished_state_asks_the_model_nothing(problem):
    state = {}
    result = run(problem, state=state)

    def dead(x):
        raise AssertionError("asked the model again")

    again = run((dead, *problem[1:]), state=state)
    assert torch.equal(again.correct, result.correct)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"eps": 0.05}, "eps"),
        ({"batch": 8}, "batch"),
        ({"seed": 9}, "seed"),
        ({"steps": 3}, "steps"),
        ({"version": "rand"}, "attacks"),
    ],
)
def test_a_state_of_another_evaluation_is_refused(problem, changes, name):
    state = {}
    run(problem, state=state)
    with pytest.raises(UsageError, match=name):
        run(problem, state=state, **changes)
    net, x, y = problem
    with pytest.raises(UsageError, match="images"):
        run((net, x.flip(0), y), state=state)


def test_small_states_keep_no_images(problem):
    state = {}
    result = run(problem, keep_images=False, state=state)
    assert result.x_adv is None and "x_adv" not in state
    assert torch.equal(result.correct, run(problem).correct)


def test_nothing_outside_is_touched(problem, caplog):
    from pyautoattack import checks

    net, x, _ = problem
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    checks.funcs["grad"] = 17
    calls = []

    def trace(frame, event, arg):
        calls.append(event)

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), x.clone()
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    old = sys.gettrace()
    sys.settrace(trace)
    try:
        with caplog.at_level(logging.DEBUG):
            run(problem)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(old)
    assert before[0] == random.getstate() and before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(before[2], torch.get_rng_state()) and torch.equal(before[3], x)
    assert checks.funcs["grad"] == 17
    checks.funcs["grad"] = 0
    assert not caplog.records, "the package's logging is not ours"
    assert all(p.grad is None for p in net.parameters()) and not net.training
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())


def test_state_is_restored_when_the_model_raises(problem):
    def broken(x):
        raise ValueError("out of memory")

    torch.manual_seed(4)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="memory"):
        run((broken, *problem[1:]))
    assert torch.equal(before, torch.get_rng_state())


# Flags, each by a defence that deserves it.


def test_an_honest_net_raises_no_flag(problem, monkeypatch):
    from pyautoattack import checks

    monkeypatch.setitem(checks.funcs, "backward", 5)  # an earlier model was dynamic; this one is not
    flags = run(problem, queries=1).flags
    assert not any(flags[name] for name in c.FLAGS) and flags["messages"] == {}


@pytest.mark.parametrize(
    "flag, wrap",
    [
        ("randomised", lambda net: lambda x: net(x) + 0.1 * torch.randn(len(x), 6)),
        ("probabilities", lambda net: lambda x: net(x).softmax(1)),
        ("dynamic", lambda net: lambda x: net(x) + 0 * grad(net, x).sum()),
        ("zero_gradient", lambda net: lambda x: net((x * 7).round() / 7)),
    ],
)
def test_flags_are_captured(problem, flag, wrap):
    net, x, y = problem
    result = run((wrap(net), x, y), queries=20)
    assert result.flags[flag] and flag in result.flags["messages"]
    assert (result.flags["zero_gradient_points"] > 0) == (flag == "zero_gradient")


def grad(net, x):
    """A model that differentiates while it answers."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(net(leaf).sum(), leaf)[0]


def test_square_beats_whitebox_is_flagged_where_gradients_are_cut(problem):
    net, x, y = problem
    result = a.autoattack(lambda x: net(x.detach()), x, y, eps=0.1, steps=3, queries=300, batch=30)
    assert result.flags["square_beats_whitebox"] and result.flags["zero_gradient"]
    assert result.outcomes["fab-t"].sum() > result.correct.sum()


def test_images_that_are_not_finite_count_for_nothing():
    x = torch.full((3, 1, 2, 2), 0.5)
    x_adv = torch.stack([torch.full((1, 2, 2), v) for v in (torch.nan, 9.0, 0.52)])
    attack = SimpleNamespace(perturb=lambda x, y: x_adv)
    assert c.crafted(attack, x, None, 0.1)[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.6, 0.52])


# Precision: the judge decides.


class Coarse(nn.Module):
    """A faster twin whose logits differ a little: it errs on some images that the judge gets right, and the reverse."""

    def __init__(self, net, size=0.3):
        super().__init__()
        self.net, self.shift = net, size * torch.tensor([-1.0, 0.0, 1.0, 0.0, -1.0, 0.0])

    def forward(self, x):
        return self.net(x) + self.shift


def test_only_the_judge_decides_and_what_only_the_fast_model_gets_wrong_is_attacked_again(problem):
    net, x, y = problem
    result = run((Coarse(net), x, y), eps=0.01, judge=net)
    with torch.no_grad():
        clean = net(x).argmax(1) == y
        stands = net(result.x_adv).argmax(1) == y
        twin_wrong_clean = (Coarse(net)(x).argmax(1) != y) & clean
    assert torch.equal(result.clean, clean) and torch.equal(stands, result.correct)
    assert sum(result.flips.values()) > 0
    assert twin_wrong_clean.any(), "the test needs images that the twin would never let be attacked"
    weak = run((Coarse(net), x, y), eps=0.01).x_adv  # without a judge they stay unattacked
    with torch.no_grad():
        unattacked = twin_wrong_clean & (net(weak).argmax(1) == y)
    assert (unattacked & ~result.correct).sum() > 0


def test_a_noisy_model_is_judged_by_the_mean_of_draws(problem):
    net, x, y = problem[0], problem[1][:14], problem[2][:14]

    def noisy(x):
        return net(x) + 0.5 * torch.randn(len(x), 6)

    def mean(x):
        return torch.stack([noisy(x).softmax(1) for _ in range(20)]).mean(0)

    unlucky = run((noisy, x, y), version="rand", eps=1e-4)
    fair = run((noisy, x, y), version="rand", eps=1e-4, judge=mean)
    assert fair.clean.sum() > unlucky.clean.sum(), "one unlucky draw is not an error"
    assert fair.correct.sum() > unlucky.correct.sum() and sum(fair.flips.values()) > 0


# Single components and the registry.


def test_square_alone_breaks_images_by_scores_only(problem):
    net, x, y = problem

    def scores(x):
        assert not torch.is_grad_enabled()
        return net(x)

    state = torch.get_rng_state()
    x_adv = square(scores, x, y, eps=0.1, queries=300, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        right, was = net(x_adv).argmax(1) == y, net(x).argmax(1) == y
    assert right.sum() < was.sum() and (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert torch.equal(x_adv, square(scores, x, y, eps=0.1, queries=300, seed=1))


def test_a_model_that_returns_its_own_memory_is_not_written_into():
    """Square sets logits to -inf; here the logits are the image's first pixels themselves."""
    x = torch.rand(8, 1, 3, 3)
    original, y = x.clone(), x.flatten(1)[:, :6].argmax(1)
    x_adv = square(lambda x: x.flatten(1)[:, :6], x, y, eps=0.3, queries=200)
    assert torch.equal(x, original)
    broken = x_adv.flatten(1)[:, :6].argmax(1) != y
    assert broken.sum() > 4 and (x_adv - x).abs().flatten(1).amax(1)[broken].min() > 0


def test_a_longer_square_is_a_rescaled_one():
    """1,000 queries go through the whole schedule of sizes: at its end the squares are single pixels."""
    attacks = [
        c.component(
            "square", Net(), eps=EPS, seed=0, device="cpu", log=c.Log(), budget=c.Budget(queries=1000, rescale=rescale)
        )
        for rescale in (True, False)
    ]
    assert attacks[0].p_selection(900) == 0.8 / 512 and attacks[1].p_selection(900) == 0.8 / 16


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "autoattack-ci", "autoattack-rand", "autoattack"])
def test_registered_components_break_images_inside_the_ball(problem, name):
    net, x, y = problem
    if name in ("autoattack", "autoattack-rand"):
        assert not ATTACKS[name].takes, "the full AutoAttack has one budget"
        x, y = x[:3], y[:3]
    x_adv = ATTACKS[name](net, x, y, eps=EPS)
    with torch.no_grad():
        assert (net(x_adv.float()).argmax(1) == y).sum() < (net(x).argmax(1) == y).sum()
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert ATTACKS[name].survivors_ok and not ATTACKS[name].per_sample


@pytest.mark.parametrize("n", [1, 2])
def test_one_image_or_none_left_is_no_special_case(problem, n):
    net, x, y = problem
    assert len(run((net, x[1 : 1 + n], y[1 : 1 + n])).correct) == n
    wrong = run((net, x[1 : 1 + n], (y[1 : 1 + n] + 1) % 6))
    assert not wrong.clean.any() and not wrong.correct.any() and wrong.seconds == {}
    for name in ("square", "apgd-ce"):
        assert torch.equal(ATTACKS[name](net, x[1 : 1 + n], (y[1 : 1 + n] + 1) % 6, eps=EPS), x[1 : 1 + n])


def test_too_few_classes_and_wrong_versions_are_refused(problem):
    _, x, y = problem
    with pytest.raises(UsageError, match="4 classes"):
        a.autoattack(Net(classes=3).eval(), x, y % 3, eps=EPS)
    allowed = ("apgd-ce", "fab-t")
    three = a.autoattack(Net(classes=3).eval(), x, y % 3, eps=EPS, version="custom", attacks=allowed, steps=4)
    assert three.outcomes.keys() == {"apgd-ce", "fab-t"}
    for options in ({"version": "plus"}, {"version": "custom"}, {"version": "standard", "attacks": ("square",)}):
        with pytest.raises(UsageError, match="version"):
            run(problem, **options)
    with pytest.raises(UsageError, match="unknown attack"):
        run(problem, version="custom", attacks=("fab",))


def test_images_in_channels_last_are_attacked_like_others():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = torch.rand(6, 3, 8, 8)
    last, y = x.to(memory_format=torch.channels_last), model(x).argmax(dim=1)
    more = {"eps": 0.1, "steps": 3, "queries": 10, "seed": 1}
    assert torch.equal(a.autoattack(model, last, y, **more).correct, a.autoattack(model, x, y, **more).correct)
    torch.testing.assert_close(ATTACKS["apgd-dlr"](model, last, y, eps=0.1), ATTACKS["apgd-dlr"](model, x, y, eps=0.1))
