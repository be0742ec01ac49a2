"""Looking around by hand: what is shown is what the network and the attack really did."""

import base64
import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from synthetic_records import write_all

from fsr import experiments, explore, runs, store
from fsr.config import DATASETS, run_id
from fsr.explore import controls as app_room
from fsr.explore import live
from fsr.explore.display import Picture
from fsr.explore.looking import Choice, Choices
from fsr.files import UsageError

PROFILE = "ci"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """AT and AT + FSR, one epoch on 64 digits, with their weights in a root of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(tmp_path_factory.mktemp("explore")))
        pair = [replace(run, epochs=1, train_size=64, holdout=16) for run in experiments.main_pair(PROFILE)]
        for run in pair:
            runs.ensure_trained(run)
        yield [Choice(run, "ema") for run in pair]


def test_the_mask_passes_almost_no_gradient_once_it_has_decided():
    frame = explore.mask_slope(tau=0.1)
    assert float(frame.loc[0.0, "gradient dm/dr"]) == 1 / (4 * 0.1)
    assert float(frame.loc[2.0, "gradient dm/dr"]) < 1e-7
    assert float(frame.loc[0.0, "mask m"]) == 0.5


def test_the_module_adds_up():
    before = torch.get_rng_state()
    frame = explore.module_summary(PROFILE, images=8)
    assert torch.equal(torch.get_rng_state(), before)  # it draws from a random state of its own, the same each time
    torch.manual_seed(99)
    assert frame.equals(explore.module_summary(PROFILE, images=8))
    assert abs(frame.loc["output - (robust + recalibrated)", "mean"]) < 1e-6
    assert 0 <= frame.loc["mask m", "mean"] <= 1
    assert frame.loc["logits", "shape"] == (8, DATASETS["digits"].classes)


def test_the_data_summary_counts_every_part():
    run, _ = experiments.main_pair(PROFILE)
    frame = explore.data_summary(run)
    assert frame.loc["train", "images"] == run.train_size and frame.loc["held out", "images"] == run.holdout
    assert (frame["smallest class"] <= frame["largest class"]).all()


def test_samples_and_noise_are_pictures():
    run, _ = experiments.main_pair(PROFILE)
    for noise in (False, True):
        data, _ = explore.sample_grid(run, noise=noise, images=4)._repr_mimebundle_()
        assert data["image/png"].startswith(b"\x89PNG")


def test_the_plan_and_versions_are_told():
    assert explore.versions().loc["torch", "version"] == version("torch")
    assert explore.plan(PROFILE).loc["trainings", PROFILE] == str(len(experiments.SETS[PROFILE]["all"]))


@pytest.mark.parametrize("attack", ["fgsm", "pgd20"])
def test_a_look_shows_what_the_attack_did(networks, attack):
    for choice in networks:
        seen = explore.look(choice, attack=attack, image=1)
        assert 0 < np.abs(seen.perturbation).max() <= seen.eps + 1e-6
        assert seen.attacked.min() >= 0 and seen.attacked.max() <= 1
        assert seen.prob_clean.sum() == pytest.approx(1, abs=1e-5)
        model = runs.load_model(choice.run, "ema")
        with torch.no_grad():
            again = model(torch.from_numpy(seen.attacked)[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(seen.prob_attacked, again, atol=1e-6)


def test_no_attack_changes_nothing(networks):
    seen = explore.look(networks[0], attack="clean")
    assert not seen.perturbation.any()
    np.testing.assert_array_equal(seen.prob_clean, seen.prob_attacked)


def test_streams_are_there_with_fsr_and_f_alone_without(networks):
    plain, both = (explore.look(choice, attack="fgsm") for choice in networks)
    assert set(plain.maps) == {"f"} and plain.mask is None
    assert set(both.maps) == {"f", "robust", "nonrobust", "recalibrated", "output"}
    assert ((both.mask >= 0) & (both.mask <= 1)).all()
    assert set(both.heads) == {"robust", "nonrobust", "recalibrated"} and not plain.heads
    assert set(both.heads.values()) <= set(both.class_names)


def test_a_plain_network_is_looked_at_where_its_twin_has_fsr(networks):
    """On digits ResNet's own place, layer4, has one position; the profile has FSR after layer3."""
    known = explore.choices(PROFILE)  # nothing of the plan is trained in this root
    assert known.networks == () and experiments.profile_of(PROFILE).place == ("layer3",)
    plain, both = (explore.look(replace(c, place="layer3"), attack="fgsm") for c in networks)
    assert plain.place == both.place == "layer3" and plain.maps["f"].shape == both.maps["f"].shape == (2, 2)
    assert explore.look(networks[0], attack="fgsm").maps["f"].shape == (1, 1)


def test_every_backbone_is_looked_at_where_its_own_twin_has_fsr(monkeypatch):
    monkeypatch.setattr("fsr.runs.has_weights", lambda run, checkpoint: checkpoint == "last")
    found = {c.run.backbone: c.place for c in explore.choices("demo").networks if c.run.module is None}
    assert found == {"resnet18": "layer3", "vgg16": "block3", "wideresnet34": "block3"}


def test_networks_of_two_data_sets_are_not_put_side_by_side(networks):
    seen = explore.look(networks[0], attack="clean")
    other = replace(seen, choice=replace(seen.choice, run=replace(seen.choice.run, dataset="svhn")))
    with pytest.raises(UsageError, match="different data sets"):
        explore.compare(seen, other)


def test_choices_list_each_network_once_with_its_weights(networks):
    more = [Choice(choice.run, "last") for choice in networks]
    frame = Choices(PROFILE, tuple([*networks, *more])).frame
    assert frame["method"].tolist() == ["AT", "AT + FSR"] and set(frame["weights"]) == {"ema, last"}


def test_two_ablations_can_be_told_apart_and_chosen():
    tau = {run.fsr.tau: run for run in experiments.SETS["demo"]["settings"] if run.fsr}
    known = Choices("demo", tuple(Choice(tau[value], kind) for value in (0.05, 1.0) for kind in ("last", "ema")))
    assert known.frame["variant"].tolist() == ["at layer3, tau 0.05", "at layer3, tau 1.0"]
    assert "tau 0.05" in known.networks[0].name and len({choice.name for choice in known.networks}) == 4
    assert known.by_id(run_id(tau[1.0])[-10:]) == Choice(tau[1.0], "ema") and known.by_id(run_id(tau[0.5])) is None
    for wrong in (lambda: known.by_id("nothing"), lambda: known.by_id(""), lambda: known.default("at+fsr-tau0.5")):
        with pytest.raises(UsageError):
            wrong()


def test_one_and_two_looks_become_pictures(networks):
    plain, both = (explore.look(choice, attack="fgsm") for choice in networks)
    assert isinstance(explore.picture(both), Picture) and isinstance(explore.compare(both, plain), Picture)


def test_absent_weights_are_said_and_nothing_is_trained(root):
    known = explore.choices(PROFILE)
    assert known.networks == () and known.default("at+fsr") is None and known.frame.empty
    assert "not here" in explore.picture(explore.look(None)) and "not here" in explore.compare(None, None)
    assert not (root / "results" / "checkpoints").exists()
    explore.app(PROFILE)


@pytest.mark.parametrize(("attack", "image"), [("no-such-attack", 0), ("fgsm", -1), ("fgsm", 10_000)])
def test_bad_choices_are_refused_in_one_line(networks, attack, image):
    with pytest.raises(UsageError):
        explore.look(networks[0], attack=attack, image=image)


def test_controls_compute_on_change_and_show_errors(networks, monkeypatch):
    monkeypatch.setattr(app_room, "choices", lambda profile: Choices(profile, tuple(networks)))
    asked = []
    monkeypatch.setattr(app_room, "shown", lambda *settings: asked.append(settings) or "picture")
    app = app_room.App(PROFILE)
    app.attack.value = "fgsm"
    app.second.value = networks[0]
    assert [settings[2] for settings in asked] == ["pgd20", "fgsm", "fgsm"] and asked[-1][1] is networks[0]

    assert app.output.outputs[0]["data"] == {"text/plain": "'picture'"}

    def fails(*settings):
        raise UsageError("image must lie in 0..63")

    monkeypatch.setattr(app_room, "shown", fails)
    app.image.value = 99
    assert "image must lie in" in app.message.value and app.output.outputs == ()


def test_pictures_and_prose_are_what_a_page_can_show(networks):
    picture = explore.picture(explore.look(networks[1], attack="fgsm"))
    (shown,) = app_room.outputs_of(picture)
    assert base64.b64decode(shown["data"]["image/png"]) == picture.png and shown["metadata"]["image/png"]["width"] > 100
    (said,) = app_room.outputs_of(explore.picture(explore.look(None)))
    assert "not here" in said["data"]["text/markdown"] and json.dumps([shown, said])


def test_the_history_of_a_run_is_shown(networks, monkeypatch):
    pair = {choice.run.label: choice.run for choice in networks}
    monkeypatch.setattr(experiments, "named", lambda profile: pair)
    assert len(explore.history_tail(PROFILE, "at+fsr")) == 1
    assert isinstance(explore.training_picture(PROFILE, "at"), Picture)
    with pytest.raises(UsageError, match="no run 'trades'"):
        explore.history_tail(PROFILE, "trades")


def test_every_planned_run_has_a_row_whether_trained_or_not(root):
    frames = [explore.trained(PROFILE, modules=modules) for modules in (False, True)]
    assert sum(map(len, frames)) == len(experiments.SETS[PROFILE]["all"])
    assert all((frame["epochs"] == "not run").all() for frame in frames)
    assert (explore.recorded(PROFILE)["state"] == "missing").all()


def test_outcomes_are_the_recorded_columns(root):
    write_all(PROFILE, ("whitebox",))
    frame = explore.outcomes(PROFILE, "at")
    assert frame.index.tolist() == [
        "no attack", "FGSM", "PGD-20", "PGD-100", "C&W", "Ensemble", "AutoAttack (capped)",
    ]  # fmt: skip
    run = experiments.main_pair(PROFILE)[0]
    clean = store.load_evaluation(run, experiments.columns(PROFILE, "whitebox")["clean"])
    assert frame.loc["no attack", "correct"] == clean.correct.sum()
    assert (frame["percent"] == (100 * frame["correct"] / frame["n"]).round(1)).all()


def test_progress_draws_curves_once_an_epoch(networks, monkeypatch):
    drawn = []
    monkeypatch.setattr(live.Live, "_curves", lambda self, run_id: drawn.append(run_id))
    report = live.Live()
    for done in range(1, 7):  # two epochs of three batches
        report("run", f"epoch {(done + 2) // 3}/2", done, 6)
    report("run", "last pgd20", 5, 10)
    assert drawn == ["run", "run"] and report.bar is not None
    report("run", "last pgd20", 10, 10)
    assert report.bar is None


def test_what_was_not_trained_is_said(root):
    assert explore.history_tail(PROFILE, "at") == explore.training_picture(PROFILE, "at") == "Not run yet."
    assert explore.outcomes(PROFILE, "at").empty


def test_complete_computes_what_is_missing_unless_told_not_to(root, monkeypatch):
    called = []
    monkeypatch.setattr(runs, "ensure", lambda profile, notebook, options: called.append((profile, notebook)))
    monkeypatch.setenv("FSR_COMPUTE", "0")
    assert ": 0 of" in explore.complete(PROFILE, "02-train-baselines") and not called
    monkeypatch.setenv("FSR_COMPUTE", "1")
    explore.complete(PROFILE, "02-train-baselines")
    assert called == [(PROFILE, "02-train-baselines")]
