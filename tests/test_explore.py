"""What notebooks show is what the network and the attack really did."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fsr import experiments, explore, runs
from fsr.files import UsageError
from fsr.tables import labels

PROFILE = "ci"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = [replace(run, epochs=1, train_size=64, holdout=16) for run in experiments.main_pair(PROFILE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(tmp_path_factory.mktemp("explore")))
        patch.setitem(experiments.SETS, PROFILE, {**experiments.SETS[PROFILE], "all": tuple(pair)})
        for run in pair:
            runs.ensure_trained(run)
        yield pair


@pytest.mark.parametrize("attack", ["clean", "fgsm", "pgd20"])
def test_an_inspection_holds_what_the_attack_did(pair, attack):
    for run in pair:
        seen = explore.inspect(run, "ema", attack=attack, image=1)
        clean, attacked = seen.images
        assert (attack != "clean") * 1e-6 <= np.abs(attacked - clean).max() <= (attack != "clean") * (run.eps + 1e-6)
        assert attacked.min() >= 0 and attacked.max() <= 1
        with torch.no_grad():
            again = runs.load_model(run, "ema")(torch.from_numpy(attacked)[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(seen.probabilities[1], again, atol=1e-6)


def test_streams_are_there_with_fsr_and_f_alone_without_at_the_same_place(pair):
    plain, with_fsr = (explore.inspect(run, attack="fgsm") for run in pair)
    assert set(plain.maps) == {"f"} and plain.mask is None and not plain.heads
    assert set(with_fsr.maps) == {"f", "robust", "nonrobust", "recalibrated", "output"}
    assert plain.maps["f"].shape == with_fsr.maps["f"].shape == (2, 2)  # layer3 on digits
    assert ((with_fsr.mask >= 0) & (with_fsr.mask <= 1)).all()
    assert set(with_fsr.heads) == {"robust", "nonrobust", "recalibrated"}
    assert set(with_fsr.heads.values()) <= set(with_fsr.class_names)


def test_frames_say_what_runs_are_and_how_they_went(pair):
    frame = explore.trained(PROFILE, modules=True)
    assert list(frame["run"]) == [labels.run(PROFILE, pair[1])] and list(frame["epochs"]) == ["1/1"]
    assert any(name.startswith("T5 tau = 0.05") for name in explore.trained("demo", modules=True)["run"])
    assert str(pair[1].module) in repr(explore.networks(PROFILE)[["run"]])  # whole, not cut off
    assert explore.curves(pair[1]).axes[0].get_lines()


def test_an_example_is_of_this_profile_when_its_weights_are_here_and_demos_else(pair, monkeypatch):
    assert explore.example(PROFILE, "at") == (pair[0], "ema")
    for wrong in (("dmeo", "at"), (PROFILE, "att")):
        with pytest.raises(UsageError, match=r"^unknown profile 'dmeo'|^unknown network 'att'"):
            explore.example(*wrong)
    monkeypatch.setattr(runs, "has_weights", lambda run, kind: False)
    assert explore.example(PROFILE, "at") == (experiments.main_pair("demo")[0], "ema")


def test_opened_by_hand_demo_gives_way_to_photographs_that_are_at_hand(root, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "has_weights", lambda run, kind: kind == "ema" and run.dataset == "cifar10")
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    monkeypatch.delenv("FSR_COMPUTE", raising=False)
    assert explore.on_photographs("demo") == "demo"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert [explore.on_photographs(name) for name in ("demo", "ci")] == ["mini", "ci"]
    monkeypatch.setenv("FSR_COMPUTE", "0")  # as `run-all` does: what it writes depends on records alone
    assert explore.on_photographs("demo") == "demo"


def test_the_app_draws_again_and_shows_errors_as_a_line(pair):
    _, beside, attack, image, message, picture = explore.app(PROFILE).children
    assert (first := bytes(picture.value)).startswith(b"\x89PNG")
    attack.value, beside.index = "clean", 2
    second = bytes(picture.value)
    assert second != first and not message.value
    image.value = 10**5  # refused, as an unknown attack is
    assert "choose one of" in message.value and picture.value == second


def test_without_weights_or_records_it_says_what_to_type(root):
    assert "python -m fsr train" in explore.app("demo").value
    assert explore.state("demo", "deactivation").endswith("type `python -m fsr run-all --profile demo`")
    assert explore.state("overfit", "blackbox") == "profile overfit plans none of these runs"
