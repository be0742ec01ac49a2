"""Fast crafting and updating give what the plain definitions give, and leave the live network as they should."""

import copy
import math

import pytest
import torch
from test_objectives import crafted
from torch import nn
from torch.nn import functional as F

from fsr.config import FSRSpec, PeerSpec, Run, replace
from fsr.hardware import quick_float32
from fsr.models import model_of
from fsr.models.modes import eval_mode
from fsr.train import fast, fold
from fsr.train.fast import Crafter, FastNet
from fsr.train.fold import randomised_statistics
from fsr.train.objectives import PAIRS, Objective, Stepper, sgd

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
    "vgg": {"backbone": "vgg16", "width": 4, "blocks": None, "module": FSRSpec()},
    "wrn": {"backbone": "wideresnet34", "width": 2, "blocks": (1, 1, 1), "module": FSRSpec()},
}
RUNS = {"at": TINY} | {name: replace(TINY, **changes) for name, changes in OTHERS.items()}
OFF = {"compile": False, "channels_last": False, "graphs": False, "crafting": "float32"}
# Share of pixels whose sign may be a tie: near its start the KL loss is nearly flat.
TIES = {"natural": 0.0, "at": 2e-3, "mart": 2e-3, "trades": 2e-2}


def network(run: Run) -> nn.Module:
    """The run's network in training mode, with logits spread widely enough for a KL gradient above rounding."""
    model = randomised_statistics(model_of(run).requires_grad_(False))
    [m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight.mul_(20)
    return model.requires_grad_(True).train()


def images(n: int, size: int = 8):
    return torch.rand(n, 3, size, size), torch.arange(n) % 10


def differing(a, b) -> float:
    """Share of pixels."""
    return float((~((a - b).abs() <= 1e-6)).float().mean())


def agree(x_adv, model, x, y, run, noise) -> bool:
    """Are these the images that plain crafting on the model makes, up to sign ties?"""
    with eval_mode(model):
        return differing(x_adv, crafted(model, x, y, run, noise=noise)) <= TIES[run.method]


def stepper_of(model, run, **options) -> Stepper:
    return Stepper(Objective(model, run), sgd(model, run, torch.device("cpu")), run, **options)


@pytest.fixture
def bf16(monkeypatch):
    """bf16 on any processor: slow on some, and the same."""
    monkeypatch.setattr(fold, "bf16_is_fast", lambda: True)


# --- crafting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_folded_crafting_equals_plain_crafting_and_leaves_the_network_alone(run, channels_last):
    """On the live network, and with another number of images on its average."""
    model, average, (x, y) = network(run), network(run), images(19)
    noise = torch.rand_like(x) * (50 if run.method in PAIRS else 1)  # away from the start, where KL is flat
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    crafter = Crafter(model, run, channels_last=channels_last)
    x_adv = crafter.craft(x[:8], y[:8], noise=noise[:8])
    assert agree(x_adv, model, x[:8], y[:8], run, noise[:8])
    plain = replace(run, method="at") if run.method == "natural" else run
    assert agree(crafter.attack(x, y, source=average, noise=noise), average, x, y, plain, noise)
    assert crafter.copy is not None and torch.equal(torch.random.get_rng_state(), state)
    assert run.method == "natural" or differing(x_adv, x[:8]) > 0.5
    assert x_adv.dtype == torch.float32 and not x_adv.requires_grad
    assert (x_adv - x[:8]).abs().max() <= run.eps + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Compiled(nn.Module):
    """As torch.compile gives it since 2.14: a module without a truth value, as it has no length."""

    def __init__(self, graph, change=lambda out: out):
        super().__init__()
        self.graph, self.change, self.sizes = graph, change, []

    def forward(self, *tensors):
        self.sizes.append(len(tensors[0]))
        return self.change(self.graph(*tensors))

    def __len__(self):
        raise TypeError("object of type 'function' has no len()")

    __bool__ = __len__


@pytest.mark.parametrize("name", ["trades+fsr", "at+cifs"])
def test_traced_steps_get_whole_batches_and_follow_weights_that_change(monkeypatch, name):
    """What would be compiled is run as it was traced. An odd last batch is filled up for it, and cut again."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: made.append(Compiled(graph)) or made[-1])
    run, (x, y) = RUNS[name], images(21)
    model, noise = network(run), torch.randn(21, 3, 8, 8)
    crafter = Crafter(model, run, compile=True)
    crafter.craft(*images(5))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
    x_adv = crafter.craft(x, y, noise=noise)
    assert set(made[0].sizes) == {run.batch} and x_adv.shape == x.shape and crafter.switches["compile"] is True
    assert agree(x_adv, model, x, y, run, noise)


def broken(*_args, **_options):
    raise RuntimeError("no compiler here")


WRONG = {"no compiler here": broken, "differ": lambda graph, **_: Compiled(graph, lambda out: out + 1)}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_compile_or_disagrees_is_left_out_and_logged(monkeypatch, caplog, said):
    monkeypatch.setattr(torch, "compile", WRONG[said])
    run, (x, y) = TINY, images(8)
    model, noise = network(run), torch.rand_like(x)
    crafter = Crafter(model, run, compile=True)
    assert agree(crafter.craft(x, y, noise=noise), model, x, y, run, noise)
    assert said in caplog.text and crafter.switches["compile"] is False
    caplog.clear()
    logits = FastNet(model.eval(), compile=True)(x)
    assert said in caplog.text
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["at", "trades"])
def test_a_network_that_cannot_be_copied_is_crafted_on_itself(caplog, method):
    """A hook that folding would change; the running average, with its own, is attacked itself as well."""
    run, (x, y) = replace(TINY, method=method), images(19)
    model, average, noise = network(run), network(run), torch.rand_like(x)
    for net in (model, average):
        net.net.layer1[0].conv1.register_forward_hook(lambda _m, _x, out: 2 * out + 1)
    crafter = Crafter(model, run, compile=True)
    for source in (model, average):
        assert agree(crafter.attack(x, y, source=source, noise=noise), source, x, y, run, noise)
    assert all(m.training for m in model.modules())
    assert caplog.text.count("crafted on the network itself") == 1 and crafter.copy is None
    assert crafter.switches == OFF


@pytest.mark.slow
@pytest.mark.parametrize("name", ["at+fsr", "trades", "at+cas"])
def test_compiled_crafting_equals_plain_crafting(name):
    run, (x, y) = RUNS[name], images(13)
    model, noise = network(run), torch.rand_like(x)
    crafter = Crafter(model, run, compile=True)
    assert agree(crafter.craft(x, y, noise=noise), model, x, y, run, noise)
    assert crafter.switches["compile"] is True


def test_the_first_step_on_kl_is_exact_float32_and_no_other(monkeypatch, bf16):
    """bf16 rounding, and on a GPU TensorFloat-32, would drown it; a CPU only shows the latter's switch."""
    run, seen, plain, (x, y) = replace(RUNS["trades"], precision="bf16"), [], fast.craft, images(8)
    model, noise = network(run), torch.randn(8, 3, 8, 8)
    crafter = Crafter(model, run)

    def noting(net, *rest, steps, **more):
        seen.append((net is crafter.exact.net, torch.backends.cudnn.conv.fp32_precision == "ieee", steps))
        return plain(net, *rest, steps=steps, **more)

    monkeypatch.setattr(fast, "craft", noting)
    with quick_float32():
        crafter.craft(x, y)
    assert seen == [(True, True, 1), (False, False, run.steps - 1)]
    one = replace(run, steps=1)
    assert agree(Crafter(model, one).craft(x, y, noise=noise), model, x, y, one, noise)


def test_defaults_keep_narrow_networks_contiguous_and_uncompiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(fold, "bf16_is_fast", lambda: False)
    run = replace(TINY, precision="bf16")
    narrow, wide = Crafter(model_of(run), run), Crafter(model_of(replace(run, width=16)), replace(run, width=16))
    narrow.craft(*images(8))
    assert narrow.switches == OFF
    assert wide.switches["channels_last"] and not stepper_of(narrow.model, run).autocast


# --- updating ---------------------------------------------------------------------------------------------------


def test_bf16_update_keeps_weights_and_losses_in_float32(bf16):
    run, (x, y), seen = replace(RUNS["mart+fsr"], precision="bf16"), images(8), {}
    model = network(run)
    stepper = stepper_of(model, run)
    stepper.bare.register_forward_hook(lambda _m, _i, out: seen.update(out[0]))
    model.net.conv1.register_forward_hook(lambda _m, _i, out: seen.update(conv=out))
    stepper.step(x, x, y)
    assert seen.pop("conv").dtype == torch.bfloat16
    assert {t.dtype for t in (*seen.values(), *model.parameters())} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_weight_perturbation_is_seen_by_the_gradient_and_taken_off(precision, bf16):
    run, (x, y) = replace(TINY, awp=0.5, precision=precision), images(8)
    start, moved = network(run), []
    for awp in (False, True):
        model = copy.deepcopy(start)
        stepper_of(model, run).step(x, x, y, awp=awp)
        moved.append(torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), start.parameters())]))
    assert float(F.cosine_similarity(*moved, dim=0)) < 0.99  # autocast's cache would make them equal
    assert float(moved[1].norm()) < 10 * float(moved[0].norm())  # half of each weight, were it still on


@pytest.mark.slow
def test_a_compiled_update_is_the_same_update():
    run, (x, y) = replace(TINY, method="trades", module=FSRSpec(mask="soft")), images(8)
    start, after = network(run), []
    for compile in (False, True):
        net = copy.deepcopy(start)
        stepper_of(net, run, compile=compile).step(x, (x + 0.05).clamp(0, 1), y)
        after.append([*net.parameters()])
    for before, plain, fused in zip(start.parameters(), *after, strict=True):
        assert (plain - fused).norm() < 1e-3 * (plain - before).norm()  # of how far the step went


def test_tally_is_the_mean_over_images_of_ragged_batches_and_survives_a_save():
    run, batches, expected = replace(RUNS["at+fsr"], lr=1e-9), [images(8), images(3)], {}
    model = network(run)
    stepper, again = stepper_of(model, run), stepper_of(model, run)
    for x, y in batches:
        torch.manual_seed(0)
        parts, logits = stepper.bare(x, x, y)
        values = {**parts, "total": stepper.bare.total(parts), "adv_acc": (logits.argmax(1) == y).double().mean()}
        for name, value in values.items():
            expected[name] = expected.get(name, 0) + value.item() * len(y) / 11
        torch.manual_seed(0)
        stepper.step(x, x, y)
    again.load_sums(stepper.sums)
    assert stepper.tally() == again.tally() == pytest.approx(expected, rel=1e-4)
    assert stepper.tally() == {} and stepper.first_bad_step == 0


def test_momentum_takes_on_its_weights_layout():
    model, (x, y) = network(TINY).to(memory_format=torch.channels_last), images(8)
    stepper, weight = stepper_of(model, TINY), model.net.conv1.weight
    stepper.step(x, x, y)
    state = stepper.optimizer.state[weight]
    expected = state["momentum_buffer"].clone()
    state["momentum_buffer"] = expected.contiguous()
    stepper.load_sums({})
    assert state["momentum_buffer"].stride() == weight.stride() and torch.equal(state["momentum_buffer"], expected)


def test_first_step_with_an_infinite_loss_is_named():
    stepper, (x, y) = stepper_of(network(TINY), TINY), images(8)
    for value in (0.5, 0.5, math.nan, 0.5, math.nan):
        stepper.step(x, torch.full_like(x, value), y)
    assert math.isnan(stepper.tally()["total"]) and stepper.first_bad_step == 3


# --- evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["at+fsr", "at+cifs", "wrn"])
def test_fast_net_has_the_models_logits_and_input_gradients(name):
    model, (x, y), gradients = network(RUNS[name]).eval(), images(8), []
    net = FastNet(model)
    for function in (model, net):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(F.cross_entropy(function(leaf), y), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(net.trace(x)[0], model(x), rtol=1e-4, atol=1e-4)
    assert len(net.trace(x)[1]) == len(model.trace(x)[1]) and net.net is not model


@pytest.mark.slow
def test_compiled_fast_net_has_the_models_logits_for_any_batch_size():
    model = network(RUNS["at+fsr"]).eval()
    net = FastNet(model, compile=True)
    for n in (8, 5, 1, 3):
        x, y = images(n)
        leaf = x.clone().requires_grad_()
        logits = net(leaf)
        torch.testing.assert_close(logits, model(x), rtol=1e-3, atol=1e-3)
        assert torch.autograd.grad(F.cross_entropy(logits, y), leaf)[0].abs().sum() > 0
    assert net._fast is not None


def test_a_single_image_goes_through_compiled_code_as_two(monkeypatch):
    """Torch would compile batches of one as a shape of their own, for AutoAttack's last survivor."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: made.append(Compiled(graph)) or made[-1])
    model, x = model_of(TINY).eval(), torch.rand(3, 3, 8, 8)
    net = FastNet(model, compile=True)
    for n in (3, 1, 3):
        torch.testing.assert_close(net(x[:n]), model(x[:n]), rtol=1e-4, atol=1e-5)
    assert made[0].sizes[-3:] == [3, 2, 3]
