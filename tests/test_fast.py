"""Fast crafting and updating give what the plain definitions give, and leave the live network as they should."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fsr.config import FSRSpec, PeerSpec, Run, replace
from fsr.models import intervene, model_of
from fsr.models.modes import eval_mode
from fsr.train import fast, update
from fsr.train.fast import Crafter, disagreement, fast_net
from fsr.train.fold import FoldedConv, randomised_statistics
from fsr.train.objectives import Objective, craft, draw_start, start
from fsr.train.update import Stepper, ema_update

RESNET = {"backbone": "resnet18", "width": 8, "blocks": (1, 1, 1, 1), "eps": 0.1, "alpha": 0.03, "steps": 3, "batch": 8}
TINY = Run(**RESNET, precision="float32")
OTHERS = {
    "natural": {"method": "natural"},
    "trades": {"method": "trades"},
    "mart": {"method": "mart"},
    "trades+fsr": {"method": "trades", "module": FSRSpec()},
    "mart+fsr": {"method": "mart", "module": FSRSpec()},
    **{f"at+{kind}": {"module": FSRSpec(kind=kind)} for kind in ("fsr", "separation", "residual", "aux")},
    "at+fsr hard": {"module": FSRSpec(mask="hard", granularity="spatial")},
    "at+fsr twice": {"module": FSRSpec(at=("layer2", "layer3"))},
    **{f"at+{name}": {"module": PeerSpec(name=name)} for name in ("fd", "cas", "cifs")},
    "trades+cas": {"method": "trades", "module": PeerSpec(name="cas")},
    "awp": {"awp": 0.01},
    "vgg": {"backbone": "vgg16", "width": 4, "blocks": None, "module": FSRSpec()},
    "wrn": {"backbone": "wideresnet34", "width": 1, "blocks": (1, 1, 1), "module": FSRSpec()},
}
RUNS = {"at": TINY} | {name: replace(TINY, **changes) for name, changes in OTHERS.items()}
# Share of pixels whose sign may be a tie: near its start the KL loss is nearly flat.
TIES = {"natural": 0.0, "at": 2e-3, "mart": 2e-3, "trades": 2e-2}
each_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())


def network(run: Run) -> nn.Module:
    """The run's network in training mode, with logits spread widely enough for a KL gradient above rounding."""
    model = randomised_statistics(model_of(run).requires_grad_(False))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    last.weight.mul_(20)
    return model.requires_grad_(True).train()


def images(n: int, size: int = 8):
    return torch.rand(n, 3, size, size), torch.arange(n) % 10


def plain_craft(model, x, y, run, generator=None, noise=None):
    if run.method == "natural":
        return x
    with eval_mode(model):
        return craft(model, run, start(x, run, draw_start(x, run, generator) if noise is None else noise), x, y)


def sgd(model, run):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=run.momentum, weight_decay=run.weight_decay)


# --- crafting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@each_run
def test_folded_crafting_equals_plain_crafting_up_to_sign_ties(run, channels_last):
    model, (x, y) = network(run), images(8)
    noise = torch.rand_like(x)
    crafter = Crafter(copy.deepcopy(model), run, channels_last=channels_last)
    x_adv = crafter.craft(x, y, noise=noise)
    expected = plain_craft(model, x, y, run, noise=noise)
    assert disagreement(x_adv, expected) <= TIES[run.method]
    assert run.method == "natural" or disagreement(x_adv, x) > 0.5


@pytest.mark.parametrize("run", [RUNS["at"], RUNS["trades"]], ids=["at", "trades"])
def test_starts_come_from_the_generator_as_in_plain_crafting(run):
    model, (x, y) = network(run), images(8)
    draw = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    x_adv = Crafter(model, run).craft(x, y, draw())
    assert disagreement(x_adv, plain_craft(model, x, y, run, generator=draw())) <= TIES[run.method]


def test_crafted_images_stay_in_the_ball_and_in_range(monkeypatch):
    monkeypatch.setattr(fast, "bf16_is_fast", lambda: True)
    run = replace(TINY, precision="bf16", module=FSRSpec())
    x, y = images(8)
    x_adv = Crafter(network(run), run).craft(x, y)
    assert x_adv.dtype == torch.float32 and not x_adv.requires_grad
    assert float((x_adv - x).abs().max()) <= run.eps + 1e-6
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1


def test_crafting_leaves_mode_statistics_and_gradients_of_the_live_network():
    model, (x, y) = network(RUNS["at+fsr"]), images(8)
    before = copy.deepcopy(model.state_dict())
    Crafter(model, RUNS["at+fsr"]).craft(x, y)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_crafting_follows_the_live_weights():
    run, (x, y) = RUNS["at"], images(8)
    model, noise = network(run), torch.rand_like(x)
    crafter = Crafter(model, run)
    first = crafter.craft(x, y, noise=noise)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    second = crafter.craft(x, y, noise=noise)
    assert disagreement(first, second) > 0.1
    assert disagreement(second, plain_craft(model, x, y, run, noise=noise)) <= TIES[run.method]


@pytest.mark.parametrize("method", ["at", "natural"])
def test_held_out_attack_on_another_source_and_other_sizes(method):
    run, (x, y) = replace(TINY, method=method), images(19)
    model, average = network(run), network(run)
    noise = torch.rand_like(x)
    crafter = Crafter(model, run)
    crafter.attack(x[:8], y[:8])
    x_adv = crafter.attack(x, y, source=average, noise=noise)
    expected = plain_craft(average, x, y, replace(run, method="at"), noise=noise)
    assert disagreement(x_adv, expected) <= TIES["at"]


def unrolled(monkeypatch, seen=None):
    """What would be compiled is run as it was traced: it must read the copy's tensors and hold its own gradient."""

    def run_graph(graph, **_):
        return lambda *tensors: (seen.append(len(tensors[0])) if seen is not None else None, graph(*tensors))[1]

    monkeypatch.setattr(torch, "compile", run_graph)


@pytest.mark.parametrize("name", ["trades+fsr", "at+cifs"])
def test_traced_steps_get_whole_batches_and_follow_weights_that_change(monkeypatch, name):
    """An odd last batch is filled up for compiled code, which exists for one size, and cut again."""
    run, (x, y), sizes = RUNS[name], images(21), []
    unrolled(monkeypatch, sizes)
    model, noise = network(run), torch.randn(21, 3, 8, 8)
    crafter = Crafter(model, run, compile=True)
    crafter.craft(*images(5))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
    x_adv = crafter.craft(x, y, noise=noise)
    assert set(sizes) == {run.batch} and x_adv.shape == x.shape and crafter.switches["compile"] is True
    assert disagreement(x_adv, plain_craft(model, x, y, run, noise=noise)) <= TIES[run.method]


def broken(*_args, **_options):
    raise RuntimeError("no compiler here")


WRONG = {"no compiler here": broken, "differ": lambda graph, **_: lambda *tensors: graph(*tensors) + 1}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_compile_or_disagrees_is_left_out_and_logged(monkeypatch, caplog, said):
    monkeypatch.setattr(torch, "compile", WRONG[said])
    run, (x, y) = RUNS["at"], images(8)
    model, noise = network(run), torch.rand_like(x)
    crafter = Crafter(model, run, compile=True)
    x_adv = crafter.craft(x, y, noise=noise)
    assert said in caplog.text and crafter.switches["compile"] is False
    assert disagreement(x_adv, plain_craft(model, x, y, run, noise=noise)) <= TIES[run.method]
    caplog.clear()
    logits = fast_net(model.eval(), compile=True)(x)
    assert said in caplog.text
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["at", "trades"])
def test_a_network_that_cannot_be_copied_is_crafted_on_itself(caplog, method):
    """A hook that the folded copy would lose; the running average, a copy of its own, is attacked itself as well."""
    run, (x, y) = replace(TINY, method=method), images(19)
    model, other = network(run), network(run)
    for net in (model, other):
        net.net.bn1.register_forward_hook(lambda _m, _x, out: 2 * out)
        net.net.layer1[0].conv1.register_forward_hook(lambda _m, _x, out: 2 * out + 1)
    crafter, noise = Crafter(model, run, compile=True), torch.rand_like(x)
    for source in (model, other):
        x_adv = crafter.attack(x, y, source=source, noise=noise)
        assert disagreement(x_adv, plain_craft(source, x, y, run, noise=noise)) <= TIES[method]
    assert all(m.training for m in model.modules())
    assert caplog.text.count("crafted on the network itself") == 1 and crafter.copy is None
    assert crafter.switches == {
        "compile": False, "channels_last": False, "graphs": False, "crafting": "float32",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("run", [RUNS["at+fsr"], RUNS["trades"], RUNS["at+cas"]], ids=["at+fsr", "trades", "at+cas"])
def test_compiled_crafting_equals_plain_crafting(run):
    model, (x, y) = network(run), images(13)
    noise = torch.rand_like(x)
    crafter = Crafter(model, run, compile=True)
    x_adv = crafter.craft(x, y, noise=noise)
    assert crafter.switches["compile"] is True
    assert disagreement(x_adv, plain_craft(model, x, y, run, noise=noise)) <= 2 * TIES[run.method]


def test_first_step_on_kl_is_not_lost_in_bf16_rounding(monkeypatch):
    monkeypatch.setattr(fast, "bf16_is_fast", lambda: True)  # slow elsewhere, and the same
    run, (x, y) = replace(RUNS["trades"], steps=1), images(8)
    model, noise = network(run), torch.randn(8, 3, 8, 8)
    expected = plain_craft(model, x, y, run, noise=noise)
    x_adv = Crafter(model, replace(run, precision="bf16")).craft(x, y, noise=noise)
    assert disagreement(x_adv, expected) <= TIES["trades"]


def test_defaults_keep_narrow_networks_contiguous_and_uncompiled_on_a_cpu():
    wide = Crafter(model_of(replace(TINY, width=16)), replace(TINY, width=16))
    narrow = Crafter(model_of(TINY), TINY)
    assert wide.switches["channels_last"] and not narrow.switches["channels_last"]
    narrow.craft(*images(8))
    assert narrow.switches["compile"] is False and narrow.switches["graphs"] is False


def test_odd_last_batch_of_a_narrow_network_trains():
    """torch 2.15 crashed in a channels-last 1x1 stride-2 convolution of 8 channels on two threads with an odd batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run, (x, y) = replace(TINY, steps=1), images(5)
        model = network(run)
        crafter = Crafter(model, run)
        stepper = Stepper(Objective(model, run), sgd(model, run), run)
        stepper.step(x, crafter.craft(x, y), y)
        assert math.isfinite(stepper.tally()["total"])
        assert all(p.is_contiguous() for p in model.parameters())
    finally:
        torch.set_num_threads(threads)


# --- updating ---------------------------------------------------------------------------------------------------


@each_run
def test_update_equals_the_plain_update(run):
    model = network(run)
    other = copy.deepcopy(model)
    x, y = images(8)
    x_adv = (x + 0.05).clamp(0, 1)
    run = replace(run, awp=0.0)
    stepper = Stepper(Objective(model, run), sgd(model, run), run)
    objective, optimizer = Objective(other, run), sgd(other, run)
    for step in range(2):
        torch.manual_seed(step)
        stepper.step(x, x_adv, y)
        torch.manual_seed(step)
        parts, _ = objective(x, x_adv, y)
        optimizer.zero_grad()
        sum(objective.weights[name] * part for name, part in parts.items()).backward()
        optimizer.step()
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        torch.testing.assert_close(a, b)


def test_channels_last_update_equals_the_plain_update():
    run, (x, y) = RUNS["at+fsr"], images(8)
    model = network(run)
    other = copy.deepcopy(model)
    for net in (model, other):
        if net is model:
            net.to(memory_format=torch.channels_last)
        stepper = Stepper(Objective(net, run), sgd(net, run), run)
        assert stepper.channels_last == (net is model)
        torch.manual_seed(0)
        stepper.step(x, x, y)
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_bf16_update_keeps_weights_and_losses_in_float32(monkeypatch):
    monkeypatch.setattr(fast, "bf16_is_fast", lambda: True)
    run, (x, y) = replace(RUNS["mart+fsr"], precision="bf16"), images(8)
    model = network(run)
    seen = {}
    objective = Objective(model, run)
    objective.register_forward_hook(lambda _m, _i, out: seen.update(out[0]))
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda _m, _i, out: seen.update(conv=out))
    Stepper(objective, sgd(model, run), run).step(x, x, y)
    assert seen.pop("conv").dtype == torch.bfloat16
    assert {t.dtype for t in seen.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_bf16_falls_back_to_float32_without_native_units(monkeypatch):
    monkeypatch.setattr(fast, "bf16_is_fast", lambda: False)
    run = replace(TINY, precision="bf16")
    model = network(run)
    crafter, stepper = Crafter(model, run), Stepper(Objective(model, run), sgd(model, run), run)
    crafter.craft(*images(8))
    assert crafter.switches["crafting"] == "float32" and not stepper.autocast


def test_the_first_step_on_kl_is_exact_float32_and_no_other(monkeypatch):
    """On a GPU convolutions would else keep 10 bits of it; a CPU only shows the switch."""
    monkeypatch.setattr(fast, "bf16_is_fast", lambda: True)
    run = replace(RUNS["trades+fsr"], precision="bf16")
    crafter, seen, plain = Crafter(network(run), run), [], fast.craft

    def noting(net, *rest, steps, **more):
        seen.append((net is crafter.exact.net, torch.backends.cudnn.conv.fp32_precision == "ieee", steps))
        return plain(net, *rest, steps=steps, **more)

    monkeypatch.setattr(fast, "craft", noting)
    place, before = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    place.fp32_precision = "tf32"
    try:
        crafter.craft(*images(8))
    finally:
        place.fp32_precision = before
    assert seen == [(True, True, 1), (False, False, run.steps - 1)]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_weight_perturbation_is_seen_by_the_gradient_and_taken_off(precision, monkeypatch):
    monkeypatch.setattr(fast, "bf16_is_fast", lambda: True)
    run = replace(TINY, awp=0.5, precision=precision)
    x, y = images(8)
    model = network(run)
    start = copy.deepcopy(model.state_dict())
    weights = {}
    for awp in (False, True):
        model.load_state_dict(start)
        stepper = Stepper(Objective(model, run), torch.optim.SGD(model.parameters(), lr=1e-3), run)
        stepper.step(x, x, y, awp=awp)
        weights[awp] = [p.detach().clone() for p in model.parameters()]
    before = list(start[name] for name, _ in model.named_parameters())
    moved = [torch.cat([(a - b).flatten() for a, b in zip(weights[awp], before)]) for awp in (False, True)]
    assert float(F.cosine_similarity(moved[0], moved[1], dim=0)) < 0.99  # autocast's cache would make them equal
    assert float(moved[1].norm()) < 10 * float(moved[0].norm())  # half of each weight, were it still on


@pytest.mark.slow
def test_a_compiled_update_is_the_same_update():
    x, y = images(8)
    start = network(TINY)
    after = []
    for compile in (False, True):
        net = copy.deepcopy(start)
        stepper = Stepper(Objective(net, TINY), update.sgd(net, TINY, torch.device("cpu")), TINY, compile=compile)
        stepper.step(x, (x + 0.05).clamp(0, 1), y)
        after.append([*net.parameters()])
    for before, plain, fused in zip(start.parameters(), *after, strict=True):
        assert (plain - fused).norm() < 1e-3 * (plain - before).norm()  # of how far the step went


def test_tally_is_the_mean_over_images_of_ragged_batches():
    run = RUNS["at+fsr"]
    model = network(run)
    objective = Objective(model, run)
    batches = [images(8), images(3)]
    expected = {}
    for x, y in batches:
        torch.manual_seed(0)
        parts, logits = objective(x, x, y)
        values = {**parts, "total": objective.total(parts), "adv_acc": (logits.argmax(1) == y).double().mean()}
        for name, value in values.items():
            expected[name] = expected.get(name, 0) + value.item() * len(y) / 11
    stepper = Stepper(objective, torch.optim.SGD(model.parameters(), lr=0.0), run)
    for x, y in batches:
        torch.manual_seed(0)
        stepper.step(x, x, y)
    tally = stepper.tally()
    assert tally == pytest.approx(expected, rel=1e-4)
    assert stepper.tally() == {} and stepper.first_bad_step == 0


def test_sums_survive_a_save_and_momentum_takes_on_its_weights_layout():
    run, (x, y) = TINY, images(8)
    model = network(run).to(memory_format=torch.channels_last)
    optimizer = sgd(model, run)
    stepper = Stepper(Objective(model, run), optimizer, run)
    stepper.step(x, x, y)
    saved = {k: v.clone() for k, v in stepper.sums.items()}
    weight = next(p for p in model.parameters() if p.ndim == 4)
    expected = optimizer.state[weight]["momentum_buffer"].clone()
    optimizer.state[weight]["momentum_buffer"] = expected.contiguous()
    other = Stepper(Objective(model, run), optimizer, run)
    other.load_sums(saved)
    assert other.tally() == stepper.tally()
    assert optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], expected)


def test_first_step_with_an_infinite_loss_is_named():
    model, (x, y) = network(TINY), images(8)
    stepper = Stepper(Objective(model, TINY), torch.optim.SGD(model.parameters(), lr=0.0), TINY)
    for value in (0.5, 0.5, math.nan, 0.5, math.nan):
        stepper.step(x, torch.full_like(x, value), y)
    assert math.isnan(stepper.tally()["total"]) and stepper.first_bad_step == 3


def test_average_moves_towards_the_model():
    model, ema = network(TINY), network(TINY).requires_grad_(False)
    model.net.bn1.num_batches_tracked.fill_(7)
    expected = {k: 0.75 * a + 0.25 * b for (k, a), b in zip(ema.state_dict().items(), model.state_dict().values())}
    ema_update(ema, model, 0.75)
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value, expected[name] if value.is_floating_point() else model.state_dict()[name])


# --- evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [RUNS[n] for n in ("at+fsr", "at+cifs", "wrn")], ids=["at+fsr", "at+cifs", "wrn"])
def test_fast_net_has_the_models_logits_and_input_gradients(run):
    model, (x, y) = network(run).eval(), images(8)
    net = fast_net(model, precision="float32")
    gradients = []
    for function in (model, net):
        leaf = x.clone().requires_grad_()
        logits = function(leaf)
        gradients.append(torch.autograd.grad(F.cross_entropy(logits, y), leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(net.trace(x)[0], model(x), rtol=1e-4, atol=1e-4)
    assert len(net.trace(x)[1]) == len(model.trace(x)[1])


def test_fast_net_in_bf16_gives_float32_logits_under_the_intervention_in_force(monkeypatch):
    monkeypatch.setattr(fast, "bf16_is_fast", lambda: True)  # on whatever processor
    run, (x, _) = replace(RUNS["at+fsr"], precision="bf16"), images(8)
    model = network(run).eval()
    with intervene(model, "mask_one"):
        net = fast_net(model, precision="bf16")
        expected, logits = model(x), net(x)
    plain = model(x)
    assert logits.dtype == torch.float32
    assert next(m for m in net.modules() if isinstance(m, FoldedConv)).weight.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.3 * (plain - expected).abs().max()


@pytest.mark.slow
def test_compiled_fast_net_has_the_models_logits_for_any_batch_size():
    model = network(RUNS["at+fsr"]).eval()
    net = fast_net(model, compile=True)
    for n in (8, 5, 1, 3):
        x, y = images(n)
        leaf = x.clone().requires_grad_()
        logits = net(leaf)
        torch.testing.assert_close(logits, model(x), rtol=1e-3, atol=1e-3)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
        assert gradient.abs().sum() > 0
    assert net._fast is not None


def test_a_single_image_goes_through_compiled_code_as_two():
    """Torch would compile batches of one as a shape of their own, for AutoAttack's last survivor."""
    model, x = model_of(TINY).eval(), torch.rand(3, 3, 8, 8)
    net, sizes = fast_net(model, compile=False), []
    net(x)
    net._fast = lambda images: sizes.append(len(images)) or net.net(images)
    torch.testing.assert_close(net(x[:1]), model(x[:1]), rtol=1e-4, atol=1e-5)
    net(x)
    assert sizes == [2, 3]
