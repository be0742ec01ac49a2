"""What holds for every attack of ATTACKS: what it may be given, what it leaves alone, what it gives."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import Net, Wrapped
from torch.nn import functional as F

from fsr.attacks import ATTACKS, Attack, autoattack
from fsr.attacks.gradient import is_wrong, pgd, resize_and_pad
from fsr.attacks.inputs import Network, check_images
from fsr.audit import audit
from fsr.evaluate import is_correct
from fsr.files import UsageError

EPS = 0.1
CUT = {name: {"steps": 5} for name in ("apgd-ce", "apgd-dlr")}
CUT |= {"autoattack": {"steps": 3, "queries": 20}, "autoattack-rand": {"steps": 2, "queries": 20}}
OF_BATCH = {*CUT, "autoattack-ci", "square"}  # their outcomes depend on the order and the size of batches
every = pytest.mark.parametrize("name", ATTACKS)


class Traced(Wrapped):
    def trace(self, x):
        logits, streams = self.net.trace(self.before(x))
        return self.after(logits), streams


@pytest.fixture(scope="module")
def batch():
    """8 images and their predicted labels, the first of them wrong."""
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = Net()(x).argmax(1)
    y[0] = (y[0] + 1) % 6
    return x, y


def attack(name, model, x, y, **options):
    """The attack by name, cut short, with a surrogate where it needs one; di-, ti- and mi-fgsm on the model."""
    info, given = ATTACKS[name], {"eps": EPS, **options}
    given |= {key: n for key, n in {"steps": 3, "queries": 40}.items() if key in info.takes and key not in options}
    given |= {"surrogate": model} if "surrogate" in info.needs else {}
    info = replace(info, function=partial(info.function, **CUT[name])) if name in CUT else info
    return info(model, x, y, **given)


def outcome(model, x_adv, y):
    with torch.no_grad():
        return is_wrong(model(x_adv.clone()), y)


@every
def test_the_image_stays_in_the_ball_and_nothing_else_changes(name, batch):
    (x, y), seen = batch, []

    def note(images):
        seen.append((float(images.detach().min()), float(images.detach().max())))
        return images

    model = Traced(Net(), note)
    model.net.layers[3].train().p = 0.0  # a mode that differs from the others, without its noise
    random.seed(4), np.random.seed(4), torch.manual_seed(4)

    def state():
        tensors = [x, y, *model.state_dict().values(), torch.get_rng_state(), torch.tensor(np.random.get_state()[1])]
        saved = [[len(m._forward_hooks), len(m._forward_pre_hooks), m.training] for m in model.modules()]
        grads = [p.grad for p in model.parameters()] + [p.requires_grad for p in model.parameters()]
        return [t.clone() for t in tensors], saved, grads, random.getstate(), torch.get_default_dtype()

    before = state()
    x_adv = attack(name, model, x, y)
    after = state()
    assert all(map(torch.equal, before[0], after[0])) and before[1:] == after[1:]
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert x_adv.data_ptr() != x.data_ptr()
    assert min(low for low, _ in seen) >= 0 and max(high for _, high in seen) <= 1  # also while it searches
    assert name in ("clean", "random-noise") or outcome(model, x_adv, y).sum() > 1  # not the wrong image alone


@every
@pytest.mark.parametrize("write", [lambda x: x.clamp_(0, 1), lambda x: x.mul_(2).sub_(1).add_(1).div_(2)])
def test_a_network_that_writes_into_its_input_is_attacked_like_another(name, write, batch):
    (x, y), copies = batch, (batch[0].clone(), batch[1].clone())
    expected = attack(name, Traced(Net(), lambda x: write(x.clone())), x, y)
    assert torch.equal(attack(name, Traced(Net(), write), x, y), expected)
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])


FLAT = {"both": lambda x: x.clamp(0, 1), "black": lambda x: x.sqrt() ** 2, "logit": lambda x: x.logit(1e-6).sigmoid()}
FLAT["one channel"] = lambda x: torch.cat([x[:, :2], x[:, 2:].clamp(0, 1)], 1)
FLAT["in half precision"] = lambda x: x.half().clamp(0, 1).float()  # which knows no number between 1 and 1 - 2^-11


@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("name", ["fgsm", "pgd20", "pgd20-joint", "cw", "pgd100-restarts", "apgd-ce"])
def test_a_network_without_gradient_at_black_or_white_pixels_hides_nothing(name, flat, batch):
    """torch's clamp has gradient 1 at its bounds up to 2.11, and 0 in 2.14."""
    x, y = batch[0].round(), batch[1]
    result = [attack(name, Traced(Net(), how), x, y) for how in (lambda x: x, FLAT[flat])]
    assert ((result[0] - result[1]).abs() > 1e-4).float().mean() < 0.03 and (result[0] != x).float().mean() > 0.1


@every
def test_tensors_of_every_kind_give_the_same_image(name, batch):
    (x, y), model = batch, Net()
    expected, strided = attack(name, model, x, y), (torch.stack([x, 1 - x], 1)[:, 0], torch.stack([y, y], 1)[:, 0])
    numpy = {"eps": np.float64(EPS), "indices": np.arange(len(x)), "seed": np.int64(0)}
    numpy |= {key: np.int64(n) for key, n in {"steps": 3, "queries": 40}.items() if key in ATTACKS[name].takes}
    with torch.inference_mode():
        inferred = x.clone(), y.clone()
        assert torch.equal(attack(name, model, x, y), expected)
    for images, labels, more in ((*strided, {}), (*inferred, {}), (x, y, numpy)):
        assert torch.equal(attack(name, model, images, labels, **more), expected)
    torch.set_default_dtype(torch.float64)
    assert torch.equal(attack(name, model, x, y), expected)


@every
def test_a_network_of_one_batch_size_or_precision_is_attacked_like_another(name, batch):
    def only_eight(x):
        if len(x) != 8 or x.dtype != torch.float64:
            raise ValueError(f"eight float64 images, not {len(x)} {x.dtype}")
        return x

    (x, y), net = (batch[0].double(), batch[1]), Net().double()
    expected, x_adv = (attack(name, Traced(net, before), x, y) for before in (lambda x: x, only_eight))
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)
    assert x_adv.dtype == torch.float64
    with pytest.raises(UsageError, match=r"is of torch.float64 and does not take images of torch.float32"):
        attack("pgd20", net, *batch)
    with pytest.raises(ValueError, match="eight float64"):  # an error of the network itself is told
        attack("pgd20", Traced(Net(), only_eight), *(part[:1] for part in batch))


@every
@pytest.mark.parametrize("off", [-torch.inf, -1e9])
def test_classes_that_are_switched_off_change_nothing(name, off, batch):
    (x, y), plain = batch, Net()
    masked = Traced(Net(), after=lambda z: F.pad(z, (0, 2), value=off))
    assert torch.equal(outcome(masked, x, y), outcome(plain, x, y))
    first, second = (outcome(plain, attack(name, net, x, y), y) for net in (plain, masked))
    assert (first != second).sum() <= (2 if name in ("nattack", "square", "autoattack-ci") else 1)
    of_each = torch.full((2, 2), off).fill_diagonal_(1.0)  # another class of each image
    assert torch.equal(Network(lambda x: of_each, x[:2], y[:2] * 0)(x[:2]).isfinite(), torch.ones(2, 2, dtype=bool))


@pytest.mark.parametrize("scale", [1, 1e10, 1e20])
def test_logits_that_leave_no_room_below_them_are_judged_by_the_largest(scale, batch):
    same, hard = batch[0][:1].repeat(3, 1, 1, 1), lambda z: scale * F.one_hot(z.argmax(1), 6).float()
    assert is_correct(Traced(Net(), after=hard), same, Net()(same).argmax(1)).all()


def test_a_network_that_seeds_torch_leaves_attacks_their_own_draws(batch):
    asked = []
    attack("square", lambda x: (torch.manual_seed(0), asked.append(float(x.double().sum())), Net()(x))[-1], *batch)
    assert len(asked) > 20 and len(set(asked)) > 0.6 * len(asked)


@pytest.mark.parametrize("moved, expected", [(0.3, EPS), (-0.3, -EPS), (torch.nan, 0), (0.05, 0.05)])
def test_an_attack_that_leaves_the_ball_is_put_back_into_it(moved, expected):
    x, y = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(Attack(lambda net, x, y, *, eps: x + moved, "")(Net(), x, y, eps=EPS), x + expected)


@pytest.mark.parametrize("name", ["square", "nattack"])
def test_black_box_attacks_read_scores_only(name, batch):
    def scores(x):
        assert not torch.is_grad_enabled() and not x.requires_grad
        return Net()(x)

    attack(name, scores, *batch)


@every
def test_zero_means_zero_and_asks_nothing(name, batch):
    def dead(x):
        raise AssertionError("the network was asked")

    x, y = batch
    zeros = [{"eps": 0}, *({option: 0} for option in ("steps", "queries") if option in ATTACKS[name].takes)]
    for options in zeros:
        assert torch.equal(attack(name, dead, x, y, **options), x)
    assert attack(name, dead, x[:0], y[:0]).shape == (0, 3, 8, 8)


X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
WRONG = [((X - 0.5) / 0.25, Y, "divide 0..255 by 255"), (255 * X, Y, "divide 0..255 by 255")]
WRONG += [((255 * X).byte(), Y, "floating point"), (X[0], Y, "N, C, H, W"), (X.flatten(1), Y, "N, C, H, W")]
WRONG += [(X.where(X < 0.9, torch.nan), Y, "from nan"), (X, Y - 1, "from -1"), (X, Y + 4, r"must lie in 0\.\.5")]
WRONG += [(X[:, :, :0], Y, "N, C, H, W")]
WRONG += [(X, y, "int64, one per image") for y in (Y[:, None], Y.float(), Y[:3])]
WRONG += [(x, y, "dense tensors, not") for x, y in ((X.numpy(), Y), (X.tolist(), Y), (X.to_sparse(), Y), (X, [*Y]))]


@pytest.mark.parametrize("name", [*ATTACKS, "autoattack()", "audit()"])
def test_wrong_input_is_refused_in_one_line(name):
    others = {"autoattack()": partial(autoattack, eps=EPS), "audit()": partial(audit, eps=EPS)}
    run = others.get(name) or partial(attack, name)
    for x, y, says in WRONG:
        with pytest.raises(UsageError, match=says) as error:
            run(Net(), x, y)
        assert "\n" not in str(error.value)
    for option, value in [("seed", 1.5), ("seed", 2**32)] + [
        ("eps", eps) for eps in (-0.1, 8, float("nan"), "8/255", None)
    ]:
        with pytest.raises(UsageError, match=f"{option} must "):
            run(Net(), X, Y, **{option: value})


def test_pgd_itself_refuses_what_every_attack_refuses():
    for x, y, says in WRONG[:5]:
        with pytest.raises(UsageError, match=says):
            pgd(Net(), x, y, eps=EPS)


def test_half_precision_images_of_many_pixels_are_judged_and_attacked():
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).half()
    net = Traced(torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(147, 6)).half())
    y = net(x).argmax(1)
    assert is_correct(net, x, y).all() and (attack("fgsm", net, x, y) != x).float().mean() > 0.5


def test_input_diversity_shrinks_images_of_any_shape_whole():
    for (height, width), rows in (((24, 8), 18), ((8, 24), 7), ((8, 8), 6), ((1, 9), 1)):
        small = resize_and_pad(torch.ones(1, 1, height, width), width - 2, 1, 1)
        assert small.shape[2:] == (height, width) and small.sum() == rows * (width - 2)
    assert attack("di-fgsm", Net(), X[..., :1], Y).shape == (4, 3, 8, 1)


def test_networks_without_logits_labels_without_a_class_are_refused():
    for after in (lambda z: z[0], lambda z: z[:, :1], lambda z: (z, z), lambda z: {"logits": z}, lambda z: z.long()):
        for call in (partial(ATTACKS["fgsm"], y=Y, eps=EPS), partial(is_correct, y=Y)):
            with pytest.raises(UsageError, match=r"must give float logits"):
                call(Traced(Net(), after=after), x=X)
    check_images(X, Y, 4)
    for y, says in ((Y, r"0\.\.2, these reach from 0 to 3"), (Y[:, None], "one per image")):
        with pytest.raises(UsageError, match=says):
            is_correct(Net(classes=3), X, y)


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - OF_BATCH))
def test_an_image_is_attacked_the_same_way_in_any_batch(name, batch):
    (x, y), model, index = (batch[0].double(), batch[1]), Net().double(), torch.tensor([7, 1, 40, 3, 900, 12, 5, 6])
    together = attack(name, model, x, y, seed=5, indices=index)
    for part in ([0], [4, 2], [5, 3, 1]):
        alone = attack(name, model, x[part], y[part], seed=5, indices=index[part])
        torch.testing.assert_close(alone, together[part], rtol=0, atol=1e-9)


def test_unknown_and_missing_options_are_refused(batch):
    wrong = [("transfer", {"surrogate": None}, "needs \\('surrogate"), ("fgsm", {"steps": 3}, "not {'steps'}")]
    wrong += [("pgd20", {"steps": -1}, "whole number"), ("square", {"queries": 2.5}, "2.5")]
    wrong += [("random-noise", {"indices": [5]}, "8 images need as many indices, not 1")]
    for name, options, says in wrong:
        with pytest.raises(UsageError, match=says):
            ATTACKS[name](Net(), *batch, eps=EPS, **options)
    with pytest.raises(UsageError, match="trace"):
        ATTACKS["pgd20-joint"](lambda x: Net()(x), *batch, eps=EPS)
