"""AutoAttack against pyautoattack called plainly, kills, planted defences; N-Attack against its algorithm, slowly."""

import copy
import itertools
import logging
import sys

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack, checks
from tiny import Net

from fsr.attacks import ATTACKS
from fsr.attacks import auto as a
from fsr.attacks import gradient as query
from fsr.files import UsageError

EPS, SHORT = 0.01, {"steps": 8, "queries": 60}
versions = pytest.mark.parametrize("version", ["standard", "rand"])


@pytest.fixture(scope="module")
def problem():
    """A net, 30 images and labels: mostly its own predictions, some of them wrong from the start."""
    net, x = Net(), torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::9] = (y[::9] + 1) % 6
    return net, x, y


def run(problem, **options):
    return a.autoattack(*problem, **{"eps": EPS, "batch": 7, **SHORT, **options})


def right(net, x, y):
    with torch.no_grad():
        return net(x).argmax(1) == y


@pytest.mark.parametrize("version, batch", [("standard", 7), ("standard", 30), ("rand", 7)])
def test_same_outcomes_and_images_as_the_package_called_plainly(problem, version, batch):
    net, x, y = problem
    theirs = AutoAttack(copy.deepcopy(net), eps=EPS, version=version, seed=3, device="cpu")  # it fills gradients
    for attack in (theirs.apgd, theirs.apgd_targeted):
        attack.n_iter, attack.n_iter_2, attack.n_iter_min, attack.size_decr = 8, 1, 1, 1
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 5
    theirs.fab.n_iter, theirs.square.n_queries = 8, 60
    x_adv, _ = theirs.run_standard_evaluation(x, y, batch_size=batch)
    ours = run(problem, version=version, seed=3, batch=batch)
    assert torch.equal(ours.correct, right(net, x_adv, y)) and 0 < ours.correct.sum() < ours.clean.sum() < 30
    torch.testing.assert_close(ours.x_adv, x_adv, rtol=0, atol=1e-6)


@versions
def test_full_budget_is_the_packages_own(version):
    theirs = AutoAttack(Net(), eps=EPS, version=version, seed=0, device="cpu")
    assert list(a.VERSIONS[version]) == theirs.attacks_to_run
    originals = {"apgd-ce": theirs.apgd, "apgd-dlr": theirs.apgd, "apgd-t": theirs.apgd_targeted}
    originals |= {"fab-t": theirs.fab, "square": theirs.square}
    theirs.fab.targeted, how = True, {"draws": 20 if version == "rand" else 1, "log": a.Log({})}
    for name in a.VERSIONS[version]:
        ours = a.component(name, Net(), eps=EPS, seed=0, device="cpu", **how)
        ignored = {"model", "predict", "logger", "get_diff_logits_grads_batch_targeted"}
        ignored |= {"loss"} if name.startswith("apgd") else set()
        first, other = ({k: v for k, v in vars(o).items() if k not in ignored} for o in (ours, originals[name]))
        assert first == other


def test_outcomes_are_cumulative_and_images_break_what_they_claim(problem):
    (net, x, y), result = problem, run(problem)
    assert list(result.outcomes) == list(a.VERSIONS["standard"]) and result.flips == {}
    each = [result.clean, *result.outcomes.values()]
    assert not any((after & ~before).any() for before, after in itertools.pairwise(each))
    assert torch.equal(each[-1], result.correct)
    broken = result.clean & ~result.correct
    assert not right(net, result.x_adv, y)[broken].any() and torch.equal(result.x_adv[~broken], x[~broken])
    assert (result.x_adv - x).abs().max() <= EPS + 1e-6 and result.x_adv.min() >= 0 and result.x_adv.max() <= 1


@versions
def test_a_kill_after_any_batch_changes_nothing(problem, tmp_path, version):
    whole, file, kills, state, chunks = run(problem, version=version), tmp_path / "state.npz", 0, {}, []

    def on_chunk(state):
        np.savez(file, **state)
        chunks.append(None)
        if len(chunks) % 2 == 0:
            raise InterruptedError

    while True:
        try:
            result = run(problem, version=version, state=state, on_chunk=on_chunk)
            break
        except InterruptedError:
            kills += 1
            torch.manual_seed(kills)  # a new process has another global state
            state = dict(np.load(file))
    again = run((None, *problem[1:]), version=version, state=state)  # a finished state asks no network
    assert kills >= 3 and result.flags == whole.flags and torch.equal(again.correct, whole.correct)
    assert torch.equal(result.correct, whole.correct) and torch.equal(result.x_adv, whole.x_adv)
    assert all(torch.equal(result.outcomes[k], v) for k, v in whole.outcomes.items())


def test_a_state_of_another_evaluation_is_refused(problem):
    (net, x, y), state = problem, {}
    run(problem, state=state)
    for changes in ({"eps": 0.05}, {"batch": 8}, {"seed": 9}, {"steps": 3}, {"version": "rand"}):
        name = {"version": "attacks"}.get(*changes, *changes)
        with pytest.raises(UsageError, match=f"another evaluation's: it differs in {name}"):
            run(problem, state=state, **changes)
    with pytest.raises(UsageError, match="images"):
        run((net, x.flip(0), y), state=state)


def test_trace_logs_and_random_state_stay_as_they_were(problem, caplog):
    def broken(x):
        torch.rand(1)
        raise ValueError("out of memory")

    before = torch.get_rng_state()
    sys.settrace(trace := lambda frame, event, arg: None)
    with caplog.at_level(logging.DEBUG):
        run(problem)
    with pytest.raises(ValueError, match="memory"):
        run((broken, *problem[1:]))
    assert sys.gettrace() is trace and not caplog.records
    assert torch.equal(before, torch.get_rng_state())


def grad(net, x):
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(net(leaf).sum(), leaf)[0]


DEFENCES = {
    "": lambda net: net,
    "randomised": lambda net: lambda x: net(x) + 0.1 * torch.randn(len(x), 6),
    "probabilities": lambda net: lambda x: net(x).softmax(1),
    "dynamic": lambda net: lambda x: net(x) + 0 * grad(net, x).sum(),
    "zero_gradient": lambda net: lambda x: net((x * 7).round() / 7),
}


@pytest.mark.parametrize("flag", DEFENCES)
def test_each_flag_is_raised_by_the_defence_that_deserves_it(problem, flag, monkeypatch):
    monkeypatch.setitem(checks.funcs, "backward", 5)  # an earlier model was dynamic; this is none of its
    net, x, y = problem
    flags = run((DEFENCES[flag](net), x, y), queries=20).flags
    assert flags["messages"].keys() >= {flag} - {""}
    assert (flags["zero_gradient_points"] > 0) == (flag == "zero_gradient")
    assert flag or not any(flags[name] for name in a.FLAGS)


def test_square_beats_whitebox_is_flagged_where_gradients_are_cut(problem):
    net, x, y = problem
    result = a.autoattack(lambda x: net(x.detach()), x, y, eps=0.1, steps=3, queries=300, batch=30)
    assert result.flags["square_beats_whitebox"] and result.flags["zero_gradient"]
    assert result.outcomes["fab-t"].sum() > result.correct.sum()


def test_only_the_judge_decides_and_what_only_the_fast_model_gets_wrong_is_attacked_again(problem):
    net, x, y = problem
    coarse = lambda x: net(x) + torch.tensor([-0.3, 0.0, 0.3, 0.0, -0.3, 0.0])  # noqa: E731
    result, weak = run((coarse, x, y), judge=net), run((coarse, x, y)).x_adv
    clean = right(net, x, y)
    unattacked = ~right(coarse, x, y) & clean & right(net, weak, y)
    assert torch.equal(result.clean, clean) and torch.equal(right(net, result.x_adv, y), result.correct)
    assert sum(result.flips.values()) > 0 and (unattacked & ~result.correct).sum() > 0


def test_a_model_that_returns_its_own_memory_is_not_written_into():
    """Square sets logits to -inf; here the logits are the image's first pixels themselves."""
    x = torch.rand(8, 1, 3, 3)
    original, y = x.clone(), x.flatten(1)[:, :6].argmax(1)
    x_adv = ATTACKS["square"](lambda x: x.flatten(1)[:, :6], x, y, eps=0.3, queries=200)
    broken = x_adv.flatten(1)[:, :6].argmax(1) != y
    assert torch.equal(x, original) and broken.sum() > 4
    assert (x_adv - x).abs().flatten(1).amax(1)[broken].min() > 0


def test_a_longer_square_is_a_rescaled_one():
    """1,000 queries go through the whole schedule of sizes: at its end the squares are single pixels."""
    for rescale, size in ((True, 0.8 / 512), (False, 0.8 / 16)):
        how = {"eps": EPS, "seed": 0, "device": "cpu", "log": a.Log({}), "queries": 1000, "rescale": rescale}
        assert a.component("square", Net(), **how).p_selection(900) == size


@pytest.mark.parametrize("n", [1, 2])
def test_one_image_or_none_left_is_no_special_case(problem, n):
    net, x, y = problem[0], problem[1][1 : 1 + n], problem[2][1 : 1 + n]
    assert len(run((net, x, y)).correct) == n
    wrong = run((net, x, (y + 1) % 6))
    assert not wrong.clean.any() and not wrong.correct.any()
    for name in ("square", "apgd-ce"):
        assert torch.equal(ATTACKS[name](net, x, (y + 1) % 6, eps=EPS), x)


def test_too_few_classes_and_wrong_versions_are_refused(problem):
    three = Net(classes=3), problem[1], problem[2] % 3
    with pytest.raises(UsageError, match="4 classes"):
        run(three)
    assert run(three, version="custom", attacks=("apgd-ce", "fab-t")).outcomes.keys() == {"apgd-ce", "fab-t"}
    for options in ({"version": "plus"}, {"version": "custom"}, {"attacks": ("square",)}, {"batch": 0}):
        with pytest.raises(UsageError, match="version"):
            run(problem, **options)
    with pytest.raises(UsageError, match="apgd-t, fab-t"):
        run(problem, version="custom", attacks=("fab",))


class Linear:
    """Two classes with logits (w.x + b, 0), and the sizes of the batches that it was asked about."""

    def __init__(self, bias=0.0, pixels=16):
        self.w, self.bias, self.sizes = torch.linspace(-1, 1, pixels, dtype=torch.float64), bias, []

    def __call__(self, x):
        self.sizes.append(len(x))
        z = x.flatten(1) @ self.w.to(x.dtype) + self.bias
        return torch.stack([z, torch.zeros_like(z)], dim=1)


def images(n=4):
    x = 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.zeros(n, dtype=torch.long)


def slow_nattack(model, x, label, *, eps, population, turns, first, noises, sigma=0.1, step=0.02):
    """One image, one member at a time, straight from the algorithm; returns the image."""
    mean, z = first.copy(), np.arctanh((2 * x - 1) * (1 - 1e-6))
    for turn in range(turns):
        scores = []
        for member in noises[turn]:
            image = (np.tanh(z + mean + sigma * member) + 1) / 2
            image = np.clip(x + np.clip(image - x, -eps, eps), 0, 1)
            logits = model(torch.from_numpy(image)[None])[0].numpy()
            if logits.argmax() != label:
                return image
            scores.append(-0.5 * max(logits[label] - logits[1 - label], 0))
        scores = np.array(scores)
        scores = (scores - scores.mean()) / (scores.std() + 1e-7)
        for score, member in zip(scores, noises[turn]):
            mean += step / (population * sigma) * score * member
    return np.clip(x + np.clip((np.tanh(z + mean) + 1) / 2 - x, -eps, eps), 0, 1)


@pytest.mark.parametrize("bias, breaks", [(4.0, False), (0.62, True)])
def test_equals_a_slow_rederivation(bias, breaks):
    (x, y), population, turns, model = images(3), 20, 6, Linear(bias)
    x_adv = query.nattack(model, x, y, eps=0.05, queries=population * turns + 7, population=population, seed=4)
    first = 0.001 * query.noise_for(x, seed=4, kind="standard_normal")
    seeds = [torch.Generator().manual_seed(4 * 1_000_003 + turn) for turn in range(turns)]
    noises = [torch.randn((population, 1, 4, 4), generator=seed, dtype=torch.float64).numpy() for seed in seeds]
    assert (model(x_adv).argmax(1) != 0).any().item() is breaks
    for n in range(3):
        more = {"population": population, "turns": turns, "first": first[n].numpy(), "noises": noises}
        expected = slow_nattack(model, x[n].numpy(), 0, eps=0.05, **more)
        np.testing.assert_allclose(x_adv[n].numpy(), expected, atol=1e-9)


def test_never_asks_more_than_its_queries_and_stops_when_done():
    (x, y), model = images(2), Linear(bias=50.0)
    query.nattack(model, x, y, eps=0.1, queries=1000, population=300)
    assert sum(model.sizes) - 2 == 2 * 900
    model = Linear(bias=-50.0)
    assert torch.equal(query.nattack(model, x, y, eps=0.1, queries=1000), x), "wrong from the start: nothing to attack"
    assert sum(model.sizes) == 2
    barely = Linear(bias=-float(Linear()(x)[0, 0]) + 1e-6)
    query.nattack(barely, x[:1], y[:1], eps=0.1, queries=20_000, population=300)
    assert sum(barely.sizes) <= 1 + 300


@pytest.mark.parametrize("limit", [40 * 16, 39 * 16, 5 * 16, 1])
def test_a_population_that_does_not_fit_is_asked_part_by_part(monkeypatch, limit):
    (x, y), model, how = images(3), Linear(bias=0.62), {"eps": 0.05, "queries": 400, "population": 40, "seed": 1}
    whole = query.nattack(Linear(bias=0.62), x, y, **how)
    monkeypatch.setattr(query, "VALUES_PER_PASS", limit)
    parts = query.nattack(model, x, y, **how)
    assert 16 * max(model.sizes[1:]) <= max(limit, 16)
    if limit >= 16 * 16:  # the same draws
        torch.testing.assert_close(parts, whole)
