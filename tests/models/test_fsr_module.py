import pytest
import torch
from tiny import parity
from torch.nn import functional as F

from fsr.config import FSRSpec
from fsr.files import UsageError
from fsr.models.fsr import FSR, INTERVENTIONS, Intervention, gumbel_mask, intervene
from fsr.train.objectives import fsr_terms, runner_up

NAMES = {"sep.sep_net.": "score.", "rec.rec_net.": "correct.", "aux.": "aux."}
STREAMS = {"mask": "mask", "robust": "robust", "non_robust": "nonrobust", "recalibrated": "recalibrated"}


@pytest.mark.parametrize("stable_eps, tolerance", [(0.0, 1e-6), (1e-8, 1e-12)])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_values_losses_and_gradient_match_the_authors_code(mode, stable_eps, tolerance):
    fixture = parity("fsr_block")
    pairs = [(k, theirs) for k in fixture for theirs in NAMES if k.startswith(theirs)]
    module = FSR(8, 10, FSRSpec(tau=float(fixture["tau"]), hidden=16)).double().train(mode == "train")
    module.load_state_dict({NAMES[theirs] + k.removeprefix(theirs): fixture[k] for k, theirs in pairs})
    module.stable_eps = stable_eps
    u = (fixture["u_mask"], fixture["u_complement"]) if mode == "train" else None
    f, y = fixture["feat"].clone().requires_grad_(), fixture["y"]
    streams = module.streams(f, u=u)
    logits = F.linear(streams.features.mean((2, 3)), fixture["head.weight"], fixture["head.bias"])
    terms = fsr_terms(logits, [streams], y)
    cls = F.cross_entropy(logits, y)
    total = cls + terms["sep"] + terms["rec"]
    (grad,) = torch.autograd.grad(total, f)
    result = {theirs: getattr(streams, ours) for theirs, ours in STREAMS.items()}
    result |= {"aux_" + theirs: streams.aux[ours] for theirs, ours in STREAMS.items() if ours != "mask"}
    result |= {"logits": logits, "wrong_label": runner_up(logits, y), "grad_feat": grad}
    result |= {"loss_cls": cls, "loss_sep": terms["sep"], "loss_rec": terms["rec"], "loss_total": total}
    assert result.keys() == {k.removeprefix(mode + ".") for k in fixture if k.startswith(mode + ".")}
    for name, value in result.items():
        torch.testing.assert_close(value, fixture[f"{mode}.{name}"], rtol=tolerance, atol=tolerance)


def small(**spec):
    module = FSR(6, 4, FSRSpec(**spec))
    if module.score is not None:
        torch.nn.init.normal_(module.score[-1].weight, 0, 0.5)
    return module


def test_noise_follows_the_mode_unless_it_is_set():
    module, f = small(), torch.rand(3, 6, 4, 4)
    for training, noise, noisy in ((True, None, True), (False, None, False), (False, True, True), (True, False, False)):
        module.train(training).noise = noise
        assert torch.equal(module.mask(f), module.mask(f)) != noisy
    torch.testing.assert_close(module.mask(f), torch.sigmoid(module.score(f) / 0.1))


def test_mask_noise_is_the_two_way_gumbel_softmax():
    """P(m > 1/2) = sigmoid(score) exactly, whatever tau: the Gumbel-max trick."""
    n = 200_000
    for score, tau in ((0.0, 0.1), (1.0, 0.1), (-0.7, 1.0)):
        mask = gumbel_mask(torch.full((n,), score), tau, noisy=True)
        p = torch.sigmoid(torch.tensor(score)).item()
        assert abs((mask > 0.5).float().mean().item() - p) < 4.5 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("stable_eps", [0.0, 1e-8])
@pytest.mark.parametrize("hard", [False, True])
def test_saturated_scores_and_extreme_draws_keep_gradients_finite(stable_eps, hard):
    score = torch.tensor([-1e4, -90.0, -17.0, 0.0, 17.0, 90.0, 1e4], requires_grad=True)
    edge = (torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 1.0, 0.0]))
    for noisy, u in ((False, None), (True, None), (True, edge)):
        mask = gumbel_mask(score, 0.1, noisy=noisy, u=u, hard=hard, stable_eps=stable_eps)
        (grad,) = torch.autograd.grad(mask.sum(), score)
        assert torch.isfinite(mask).all() and torch.isfinite(grad).all()
        assert mask.min() >= 0 and mask.max() <= 1
    module = small()
    module.score[-1].weight.data.mul_(1e4)
    module.aux.weight.data.mul_(1e4)
    for training in (True, False):  # and of a saturated module under confident logits
        f = torch.rand(4, 6, 4, 4, requires_grad=True)
        streams = module.train(training).streams(f)
        terms = fsr_terms(1e4 * torch.randn(4, 4), [streams], torch.tensor([0, 1, 2, 3]))
        grads = torch.autograd.grad(terms["sep"] + terms["rec"], [f, *module.parameters()])
        assert all(torch.isfinite(g).all() for g in grads)


def test_a_hard_mask_and_backward_tau_change_either_the_value_or_the_gradient():
    score = torch.linspace(-3, 3, 14, requires_grad=True)
    soft = gumbel_mask(score, 0.1, noisy=False)
    hard = gumbel_mask(score, 0.1, noisy=False, hard=True)
    bpda = gumbel_mask(score, 0.1, noisy=False, backward_tau=1.0)
    assert torch.equal(soft, bpda) and torch.equal(hard, (score > 0).float())
    grads = [torch.autograd.grad(mask.sum(), score)[0] for mask in (soft, hard, bpda)]
    m = torch.sigmoid(score.detach())
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(grads[2], m * (1 - m))


def test_kinds_pass_on_what_they_say():
    f = torch.rand(3, 6, 4, 4)
    separation = small(kind="separation").eval()
    s = separation.streams(f)
    assert separation.correct is None and torch.equal(s.features, f * s.mask) and set(s.aux) == {"robust", "nonrobust"}
    residual = small(kind="residual").eval()
    g = f + residual.score(f)
    assert torch.equal(residual(f), g + residual.correct(g)) and residual.streams(f).aux == {}
    aux = small(kind="aux").eval()
    s = aux.streams(f)
    assert torch.equal(s.features, f) and sum(p.numel() for p in aux.parameters()) == 6 * 4 + 4
    torch.testing.assert_close(s.aux["robust"], aux.aux(f.mean((2, 3))))
    assert torch.equal(s.aux["robust"], s.aux["recalibrated"]) and "nonrobust" not in s.aux
    sizes = [sum(p.numel() for p in part.parameters()) for part in (small(), residual, aux)]
    assert sizes[1] == sizes[0] - sizes[2]  # the residual control has FSR's capacity but for the head


@pytest.mark.parametrize("granularity, axes", [("channel", (2, 3)), ("spatial", (1,))])
def test_granularity_shares_one_value(granularity, axes):
    module, f = small(granularity=granularity), torch.rand(3, 6, 4, 4)
    for training in (True, False):
        mask = module.train(training).mask(f)
        torch.testing.assert_close(mask, mask.mean(axes, keepdim=True).expand(f.shape), atol=1e-7, rtol=0)
    torch.testing.assert_close(mask, torch.sigmoid(module.score(f).mean(axes, keepdim=True) / 0.1).expand(f.shape))


def test_soft_mask_has_no_noise_and_hard_mask_is_binary_in_both_modes():
    f = torch.rand(3, 6, 4, 4)
    soft, hard = small(mask="soft"), small(mask="hard")
    assert torch.equal(soft.mask(f), soft.mask(f)) and torch.unique(soft.mask(f)).numel() > 2
    for training in (False, True):
        assert set(torch.unique(hard.train(training).mask(f)).tolist()) <= {0.0, 1.0}
    assert not torch.equal(hard.mask(f), hard.mask(f))


def test_hidden_channels_follow_the_rule():
    cases = {(8, 512): 8, (72, 512): 9, (512, 512): 64, (1024, 512): 64, (640, 640): 64, (64, 640): 8, (320, 640): 32}
    assert {case: FSR(case[0], 10, reference=case[1]).score[0].out_channels for case in cases} == cases
    assert FSR(128, 10, FSRSpec(hidden=5)).score[0].out_channels == 5


def test_interventions_change_the_mask_as_their_names_say():
    module, f = small().eval(), torch.rand(3, 6, 4, 4)
    own, plain = module.mask(f), module(f)
    result = {}
    for name in INTERVENTIONS:
        with intervene(module, name, seed=3):
            result[name] = module.streams(f)
    assert torch.equal(module(f), plain) and module.intervention is None
    torch.testing.assert_close(result["mask_one"].features, f)
    torch.testing.assert_close(result["no_recalibration"].features, f)  # f+ and f- are added again
    torch.testing.assert_close(result["no_recalibration"].mask, own)
    constant = result["mask_constant"].mask
    torch.testing.assert_close(constant, own.mean((1, 2, 3), keepdim=True).expand(f.shape))
    shuffled = result["mask_shuffled"].mask
    torch.testing.assert_close(shuffled.flatten(1).sort().values, own.flatten(1).sort().values)
    assert not torch.allclose(shuffled, own)
    random = result["mask_random"].mask
    assert torch.equal(random[0], random[2]) and random.min() >= 0 and random.max() < 1
    with intervene(module, "mask_random", seed=4):
        assert not torch.equal(module.mask(f), random)


def test_interventions_are_taken_off_after_an_error_and_refused_where_they_mean_nothing():
    module = small()
    module.intervention = saved = Intervention(recalibrate=False)
    with pytest.raises(RuntimeError, match="stop"), intervene(module, "mask_one"):
        raise RuntimeError("stop")
    assert module.intervention is saved
    wrong = ((small(), "mask_two"), (small(kind="residual"), "mask_one"), (torch.nn.Linear(2, 2), "mask_one"))
    for model, name in wrong:
        with pytest.raises(UsageError), intervene(model, name):
            pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_copies_give_their_own_type_and_nearly_the_same_features(dtype):
    module, f = small().eval(), torch.rand(3, 6, 4, 4)
    expected = module(f)
    streams = module.to(dtype).streams(f.to(dtype))
    assert streams.features.dtype == dtype and streams.mask.dtype == torch.float32
    torch.testing.assert_close(streams.features.float(), expected, atol=0.1, rtol=0.1)
