"""Ensure: computes once, goes on after a stop, believes no damaged file, and needs no weights to be valid."""

import sys
from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import BRISK, FSR_HERE, stop_after, tiny_run

sys.path.insert(0, str(Path(__file__).parent / "models"))

from official_net import OfficialVGG, randomised

from fsr import data, experiments, files, runs, store
from fsr.audit import BUDGETS
from fsr.config import Analysis, Evaluation, replace, run_id
from fsr.files import FSRError, Interrupted, MissingRecord, UsageError
from fsr.runs import Options, evaluating, training
from fsr.runs.evaluating import surrogate_run
from fsr.store.weights import digest_of
from fsr.train import Trainer

RUN = tiny_run(epochs=1)
CLEAN, FGSM = Evaluation(attack="clean"), Evaluation(attack="fgsm")
AUDIT = Analysis(kind="audit", images=12, budget="quick")
CPU = Options(device="cpu")


def snapshot(root) -> dict:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}


def test_a_second_call_changes_no_file_and_records_name_the_code_that_began(root, monkeypatch):
    """Trainings take hours, and who waits for one commits."""
    options = replace(CPU, report=lambda *_: monkeypatch.setenv("FSR_COMMIT", "after"))

    def ensure() -> dict:
        for compute, what in ((runs.ensure_trained, ()), (runs.ensure_evaluated, (CLEAN,))):
            monkeypatch.setenv("FSR_COMMIT", "before")
            files.provenance.cache_clear()  # as in another process
            compute(RUN, *what, options)
        files.provenance.cache_clear()
        return snapshot(root)

    with torch.inference_mode():  # whatever mode the caller is in
        assert ensure() == ensure()
    record = store.environment(RUN)
    assert {"commit", "dirty", "versions", "hardware", "started", "seconds", "checkpoints", "switches"} <= record.keys()
    assert record["hardware"]["cores"] >= 1 and record["versions"]["torch"]
    assert set(record["checkpoints"]) == {"last", "best", "ema"}
    assert record["commit"] == store.load_evaluation(RUN, CLEAN).record["commit"] == "before"


def test_a_network_whose_folder_holds_other_classes_or_images_now_is_not_asked(root, tmp_path):
    small = {"train_size": None, "test_size": None, "holdout": 2, "image_size": 8}
    run = replace(RUN, dataset=f"folder:{tmp_path}", **small)
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    runs.ensure_evaluated(run, CLEAN, CPU)
    for color in ("red", "black"):  # another image; then as it was, but "cat" behind "dog": all labels move
        Image.new("RGB", (8, 8), color).save(tmp_path / "train/cat/0.png")
        for part in ("train", "test") if color == "black" else ():
            (tmp_path / part / "cat").rename(tmp_path / part / "fox")
        runs.options._data.cache_clear()  # as in another process
        with pytest.raises(UsageError, match="other images or classes than in training"):
            runs.ensure_evaluated(run, FGSM, CPU)


def test_data_of_another_folder_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda run, device: files.data())
    for folder in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setenv("FSR_DATA", str(folder))
        assert runs.data_of(RUN) == folder


def test_records_stay_valid_without_weights_and_weights_come_back_the_same(root):
    runs.ensure_trained(RUN, CPU)
    runs.ensure_evaluated(RUN, CLEAN, CPU)
    folder = files.checkpoint_dir(run_id(RUN))
    first = {p.name: p.read_bytes() for p in folder.glob("*.safetensors") if p.name != "state.safetensors"}
    for path in folder.iterdir():
        path.unlink()
    before = snapshot(files.run_dir(run_id(RUN)))
    assert not runs.Task(run=RUN, parts=(CLEAN,)).missing()
    torch.set_default_dtype(torch.float64)  # of the caller
    runs.ensure_evaluated(RUN, FGSM, CPU)  # needs weights: trains again
    assert before.items() <= snapshot(files.run_dir(run_id(RUN))).items()
    assert {p.name: p.read_bytes() for p in folder.glob("*.safetensors") if p.name in first} == first


def test_retrained_weights_that_differ_change_no_record_and_are_named_by_what_they_made(root, monkeypatch):
    def elsewhere(*given, **more):
        trainer = Trainer(*given, **more)
        with torch.no_grad():
            next(trainer.model.parameters()).mul_(1.01)
        return trainer

    runs.ensure_trained(RUN, CPU)
    before = snapshot(files.run_dir(run_id(RUN)))
    for path in files.checkpoint_dir(run_id(RUN)).iterdir():
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(training, "Trainer", elsewhere)
        runs.ensure_evaluated(RUN, CLEAN, CPU)
    judged = store.load_evaluation(RUN, CLEAN).record["weights"]
    assert judged == digest_of(runs.weights_path(RUN, "last")) != store.environment(RUN)["checkpoints"]["last"]
    assert before.items() <= snapshot(files.run_dir(run_id(RUN))).items()
    for path in (runs.state_path(RUN), files.run_dir(run_id(RUN)) / "env.json"):
        path.unlink()  # as if these weights were another machine's: a new record keeps them under another name
    runs.ensure_trained(RUN, CPU)
    kept, made = (digest_of(runs.weights_path(RUN, name)) for name in (f"last-{judged[:10]}", "last"))
    assert (kept, made) == (judged, store.environment(RUN)["checkpoints"]["last"])


def test_a_stop_is_clean_and_the_next_call_ends_as_an_uninterrupted_one(root, monkeypatch, tmp_path):
    run = tiny_run(module=FSR_HERE, epochs=2)
    stop_after(2, runs.ensure_trained, run)
    assert not store.is_trained(run)
    runs.ensure_trained(run, CPU)
    resumed = store.environment(run)
    first, second = resumed["sittings"]  # with what each process trained, and from which step on
    assert first["first_step"] == 0 < second["first_step"] and resumed["started"] == first["started"]
    assert {"commit", "hardware", "switches", "processes", "versions"} <= first.keys() & resumed.keys()
    monkeypatch.setenv("FSR_ROOT", str(tmp_path / "other"))
    runs.ensure_trained(run, CPU)
    assert store.environment(run)["checkpoints"] == resumed["checkpoints"]
    assert "sittings" not in store.environment(run)


def test_weights_on_record_outlive_a_retraining_that_is_stopped(root, monkeypatch):
    """The EMA of a finished run is there, `last` is gone: training again must not replace what is whole."""
    runs.ensure_trained(RUN, CPU)
    before = runs.weights_path(RUN, "ema").read_bytes()
    for path in (runs.weights_path(RUN, "last"), runs.state_path(RUN)):
        path.unlink()
    stop_after(2, runs.load_model, RUN, "last")
    assert runs.state_path(RUN).exists() and runs.weights_path(RUN, "ema").read_bytes() == before
    assert runs.has_weights(RUN, "ema") and not runs.has_weights(RUN, "last")
    monkeypatch.setattr(training, "data_of", lambda *_: pytest.fail("the data were read"))
    assert runs.load_model(RUN, "ema", CPU)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_an_imported_checkpoint_is_a_run_with_the_authors_outputs(root, tmp_path):
    theirs, file, snapshots = randomised(OfficialVGG()).eval(), tmp_path / "authors.pth", []
    torch.save(theirs.state_dict(), file)
    with pytest.raises(UsageError, match="has 10 classes and tinyimagenet has 200: give another --dataset"):
        runs.import_official(file, "vgg16", "tinyimagenet")
    assert not (root / "results").exists()
    for _ in range(2):
        name = runs.import_official(file, "vgg16", "cifar10")
        snapshots.append(snapshot(root))
    assert snapshots[0] == snapshots[1]
    run, x = store.config_of(name), torch.rand(2, 3, 32, 32)
    assert store.is_trained(run) and run.imported and run.holdout == 0
    with torch.no_grad():
        expected = theirs(x)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(runs.load_model(run)(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="so it has no best weights"):
        runs.load_model(run, "best")
    for part in (files.run_dir(name) / "env.json", runs.weights_path(run, "last")):  # killed halfway; weights lost
        runs.import_official(file, "vgg16", "cifar10")
        part.unlink()
        with pytest.raises(MissingRecord, match="import-official FILE --backbone vgg16 --dataset cifar10"):
            runs.load_model(run)


def test_outcomes_so_far_belong_to_the_weights_of_run_and_surrogate(root, monkeypatch):
    source = replace(RUN, seed=1)
    for run in (RUN, source):
        runs.ensure_trained(run, CPU)
    own, other = (digest_of(runs.weights_path(run, "last")) for run in (RUN, source))
    data = runs.data_of(RUN)
    images = {"images_sha256": evaluating.images_sha256(data.test_x, data.test_y)}
    transfer, seen = Evaluation(attack="transfer", surrogate=run_id(source)), []

    def evaluate_attack(*_, progress, **__):
        seen.append(progress.done)
        raise Interrupted("stopped")

    begun = {"batch": 250, "weights": own, **images, "progress": {"done": 20, "correct": [True] * 20}}
    near, far = (Evaluation(attack="fgsm", eps=eps) for eps in (0.149996, 0.150004))  # of one file's name
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "evaluate_attack", evaluate_attack)
        cases = [(FGSM, {}), (FGSM, {"weights": other}), (transfer, {"surrogate_weights": other})]
        cases += [(transfer, {"surrogate_weights": own}), (transfer, {})]  # the second of a version that did not say
        cases += [(FGSM, {"batch": 1000})]  # begun on a GPU, whose batches AutoAttack's state is made of
        for evaluation, made_of in [*cases, (near, {}), (near, {"evaluation": asdict(far)})]:
            own_part = {"evaluation": asdict(evaluation)}
            files.save_json(evaluating.partial_path(RUN, evaluation), begun | own_part | made_of)
            with pytest.raises(Interrupted):
                runs.ensure_evaluated(RUN, evaluation, CPU)
    assert seen == [20, 0, 20, 0, 0, 0, 20, 0]
    for evaluation in (FGSM, transfer):
        runs.ensure_evaluated(RUN, evaluation, CPU)
    assert "surrogate_weights" not in store.load_evaluation(RUN, FGSM).record
    assert store.load_evaluation(RUN, transfer).record["surrogate_weights"] == other


def test_a_planned_source_of_a_transfer_is_trained_first(root, monkeypatch):
    """On a fresh root it has no record yet: the plan knows it."""
    source = replace(RUN, seed=1)
    monkeypatch.setattr(experiments, "SETS", {"a profile": {"all": (RUN, source)}})
    runs.ensure_evaluated(RUN, Evaluation(attack="transfer", surrogate=run_id(source)), CPU)
    assert store.is_trained(source)


def test_an_audit_is_an_analysis_with_outcomes_per_sample_and_keeps_its_groups_until_then(root, monkeypatch):
    """What a kill before the record would leave is what a failed write leaves."""
    monkeypatch.setitem(BUDGETS, "quick", BRISK)
    path = evaluating.partial_path(RUN, AUDIT)
    with monkeypatch.context() as patch, pytest.raises(FSRError, match="disk full"):
        patch.setattr(store, "save_analysis", Mock(side_effect=FSRError("disk full")))
        runs.ensure_evaluated(RUN, AUDIT, CPU)
    assert files.load_json(path)["done"]
    runs.ensure_evaluated(RUN, AUDIT, CPU)
    assert not path.exists()
    record, arrays = store.load_analysis(RUN, AUDIT)
    assert record["surrogate"] is None and record["twin_weights"] is None
    assert record["worst_case"] <= record["authors_protocol"] <= record["n"] == 12
    assert arrays["worst_case"].sum() == record["worst_case"]
    assert np.all(arrays["worst_case"] <= arrays["authors_protocol"])


def test_an_audit_stops_inside_a_group(root):
    """A group takes minutes on a real network: its passes look at the clock too."""
    runs.ensure_trained(RUN, CPU)
    looks: list = []
    with pytest.raises(Interrupted):
        runs.ensure_evaluated(RUN, AUDIT, replace(CPU, interrupted=lambda: looks.append(None) or len(looks) > 40))
    assert len(looks) == 41 and not evaluating.partial_path(RUN, AUDIT).exists()  # no group was done


def test_an_audits_planned_surrogate_is_trained_first_and_its_weights_mark_finished_groups(root, monkeypatch):
    run, given = replace(RUN, module=FSR_HERE), []
    monkeypatch.setattr(experiments, "SETS", {"a profile": {"all": (run, RUN)}})

    def audit(*_, surrogate, on_group, done, **__):
        given.append((surrogate is not None, sorted(done)))
        on_group("protocol", {"seconds": 1.0})
        raise Interrupted("stopped")

    def stopped() -> dict:
        with pytest.raises(Interrupted):
            runs.ensure_evaluated(run, Analysis(kind="audit", images=12), CPU)
        return files.load_json(path)

    monkeypatch.setattr("fsr.audit.audit", audit)
    assert surrogate_run(replace(RUN, imported="0123456789")) == RUN
    path, other = (evaluating.partial_path(run, Analysis(kind="audit", images=images)) for images in (12, 8))
    assert path != other  # an audit of other images is another one
    first = stopped()
    assert first["twin_weights"] == digest_of(runs.weights_path(RUN, "last")) and stopped() == first
    files.save_json(path, first | {"twin_weights": "another's"})
    assert stopped() == first
    assert given == [(True, []), (True, ["protocol"]), (True, [])]
