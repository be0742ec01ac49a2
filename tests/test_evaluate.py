"""Outcomes per sample: closed form on a linear model, chunked, resumed, judged in float32."""

import pytest
import torch
from tiny import Wrapped, tiny_run
from torch import nn

from fsr import evaluate
from fsr.config import Evaluation
from fsr.evaluate import Progress, evaluate_attack
from fsr.files import UsageError


class Sum(nn.Module):
    """Four classes, logits (d, -d, -d - 1, -d - 1), d the mean pixel less a threshold: an attack moves d by eps."""

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.dtype = torch.float32
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x):
        lead = x.mean((1, 2, 3)) - self.threshold
        return torch.stack([lead, -lead, -lead - 1, -lead - 1], dim=1)


RUN = tiny_run(eps=0.1)
EYE = torch.eye(4)  # in bfloat16, logits near 64 are equal
GREY = torch.tensor([255, 180, 160, 155, 140, 120, 20, 180, 128], dtype=torch.uint8)
X = GREY[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
Y = torch.zeros(9, dtype=torch.int64)
# right while value / 255 - eps > 0.5, that is value > 153 at eps 0.1
CLEAN, ATTACKED = ([bool(v) for v in row] for row in ([1, 1, 1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 1, 0]))


def outcome(attack="pgd20", model=None, index=None, eps=None, **more) -> Progress:
    evaluation, index = Evaluation(attack=attack, eps=eps), torch.arange(9) if index is None else index
    return evaluate_attack(model or Sum(), X, Y, index, run=RUN, evaluation=evaluation, **more)


@pytest.mark.parametrize("attack", ["clean", "pgd20", "fgsm", "cw", "autoattack-ci"])
def test_outcomes_equal_the_closed_form_and_the_network_is_left_alone(attack):
    model = Sum().train()
    progress = outcome(attack, model)
    assert progress.correct == (CLEAN if attack == "clean" else ATTACKED)
    assert progress.done == 9 and progress.flips == 0 and model.training and model.threshold.grad is None
    assert {len(each) for each in progress.after.values()} == ({9} if attack == "autoattack-ci" else set())
    assert outcome(attack, eps=0.01).correct[:5] == [True] * 5  # a smaller ball is an argument of the evaluation


@pytest.mark.parametrize("attack", ["clean", "pgd100-restarts", "square", "apgd-ce", "nattack"])
def test_only_the_float32_model_decides_and_flips_are_counted(monkeypatch, attack):
    """The fast network errs on 8 of the 9 images at once: an attack that stopped there would leave them all."""
    monkeypatch.setattr(evaluate, "FastNet", lambda *_, **__: Sum(threshold=0.9))
    progress = outcome(attack)
    assert progress.correct == (CLEAN if attack == "clean" else ATTACKED) and progress.crafting == {"dtype": "float32"}
    assert progress.flips == 6 if attack == "clean" else progress.flips >= 4  # of those that the model has right


def test_an_attack_is_told_the_images_places_in_the_test_set(monkeypatch):
    seen, index = [], torch.arange(9).flip(0) + 100

    def noting(net, x, y, *, indices, **_):
        seen.extend(indices.tolist())
        return x

    noting.survivors_ok = False
    monkeypatch.setattr(evaluate, "choose", lambda *_: noting)
    monkeypatch.setattr(evaluate, "batch_size", lambda *_: 4)
    outcome(index=index)
    assert seen == index.tolist()


def test_a_call_can_be_stopped_inside_a_chunk_and_goes_on_from_the_chunks_before(monkeypatch):
    monkeypatch.setattr(evaluate, "batch_size", lambda *_: 4)
    progress, passes = Progress(), []

    def check() -> None:
        passes.append(1)
        if len(passes) == 30:  # in the second chunk: the first took 20 passes and one to judge
            raise InterruptedError

    with pytest.raises(InterruptedError):
        outcome(check=check, progress=progress)
    assert progress.done == 4 and outcome(progress=progress).correct == ATTACKED


def test_autoattack_counts_its_own_attacks_and_ends_with_all_images(monkeypatch):
    """Two attacks in `rand`: the first gets the 7 images that are right, in 4 batches, the second the 5 left, in 3."""
    monkeypatch.setattr(evaluate, "batch_size", lambda *_: 2)
    monkeypatch.setitem(evaluate.VARIANTS, "autoattack-rand", {"version": "rand", "steps": 2})
    done = []
    outcome("autoattack-rand", on_chunk=lambda progress: done.append(progress.done))
    assert done == [0, 1, 2, 3, 4, 5, 6, 7, 9]  # half of the images that both attacks got, then all


@pytest.mark.parametrize("attack", ["autoattack", "autoattack-rand", "autoattack-ci"])
@pytest.mark.parametrize("option", [{"steps": 7}, {"surrogate": "another"}])
def test_steps_and_a_surrogate_for_autoattack_are_refused(attack, option):
    with pytest.raises(UsageError, match=f"{attack} has steps of its own .* leave out steps and surrogate"):
        evaluate_attack(Sum(), X, Y, torch.arange(9), run=RUN, evaluation=Evaluation(attack=attack, **option))


@pytest.mark.parametrize("attack", ["clean", "pgd20", "pgd100-restarts", "square", "autoattack-ci", "transfer"])
def test_networks_that_write_into_their_input_have_the_outcomes_of_others(attack):
    result = []
    for how in (lambda x: x.clamp_(0.1, 1).sub_(0.1), lambda x: x.clamp(0.1, 1) - 0.1):
        x, y, call = X.clone(), Y.clone(), {"evaluation": Evaluation(attack=attack)}
        if attack == "transfer":
            net = nn.Sequential(nn.BatchNorm2d(3), Wrapped(Sum(), how)).train()  # it is asked in eval mode
            call = {"evaluation": Evaluation(attack=attack, surrogate="it"), "surrogate": net}
        result.append(evaluate_attack(Wrapped(Sum(), how), x, y, torch.arange(9), run=RUN, **call).correct)
        assert torch.equal(x, X) and torch.equal(y, Y)
        assert attack != "transfer" or (net.training and not net[0].num_batches_tracked)
    assert result[0] == result[1] and 0 < sum(result[0]) < 9


def test_evaluation_is_in_float32_whatever_the_default_and_the_callers_mode_are():
    torch.set_default_dtype(torch.float64)
    for attack in ("pgd100-restarts", "autoattack-ci"):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert outcome(attack, Wrapped(Sum().float(), after=lambda z: (z + 64) @ EYE)).correct == ATTACKED


def test_networks_of_any_kind_are_evaluated_or_refused_and_left_alone():
    hidden, same = Sum(), type("Same", (Sum,), {"__deepcopy__": lambda self, _: self})().train()
    for net in (Wrapped(Sum(), lambda x: x.view(9, 3, 4, 4)), Wrapped(nn.Identity(), lambda x: hidden(x))):
        assert outcome(model=net).correct == ATTACKED  # one batch size, no weights of its own
    with pytest.raises(UsageError, match="shares layers"):
        outcome(model=same)
    assert same.training and same.threshold.requires_grad and float(same.threshold.detach()) == 0.5


def test_the_digest_of_a_test_set_holds_images_labels_and_order():
    digests = [evaluate.images_sha256(x, y) for x, y in ((X, Y), (X.flip(0), Y), (X, Y + 1), (X.view(9, 3, 2, 8), Y))]
    assert len({*digests}) == 4 and digests[0] == evaluate.images_sha256(X.clone(), Y.clone())
