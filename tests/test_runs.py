"""Ensure: computes once, goes on after a stop, believes no damaged file, and needs no weights to be valid."""

import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tiny import BRISK, FSR_HERE, tiny_run

from fsr import experiments, files, runs, store
from fsr.audit import BUDGETS
from fsr.config import Analysis, Evaluation, replace, run_id
from fsr.files import Busy, FSRError, Interrupted, MissingRecord, TimeUp, UsageError
from fsr.runs import Options, Task, evaluating, perform, training
from fsr.runs.evaluating import surrogate_run
from fsr.store.weights import digest_of
from fsr.train import Trainer

RUN = tiny_run(epochs=1)
CLEAN = Evaluation(attack="clean")
CPU = Options(device="cpu")


def snapshot(root) -> dict:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}


def test_a_second_call_changes_no_file_and_the_record_says_where_it_came_from(root):
    def ensure() -> dict:
        runs.ensure_trained(RUN, CPU)
        runs.ensure_evaluated(RUN, CLEAN, CPU)
        return snapshot(root)

    assert ensure() == ensure()
    assert store.is_trained(RUN) and store.has_evaluation(RUN, CLEAN)
    record = store.environment(RUN)
    assert {"commit", "dirty", "versions", "hardware", "started", "seconds", "checkpoints", "switches"} <= record.keys()
    assert record["hardware"]["cores"] >= 1 and record["versions"]["torch"]
    assert set(record["checkpoints"]) == {"last", "best", "ema"}


def test_records_name_the_commit_that_began_and_not_the_one_that_lies_there_at_the_end(root, monkeypatch):
    """Trainings take hours, and who waits for one commits."""
    monkeypatch.setenv("FSR_COMMIT", "before")
    files.provenance.cache_clear()
    options = replace(CPU, report=lambda *_: monkeypatch.setenv("FSR_COMMIT", "after"))
    try:
        runs.ensure_trained(RUN, options)
        assert store.environment(RUN)["commit"] == "before"
        files.provenance.cache_clear()  # as in another process
        monkeypatch.setenv("FSR_COMMIT", "before")
        runs.ensure_evaluated(RUN, CLEAN, options)
        assert store.load_evaluation(RUN, CLEAN).record["commit"] == "before"
    finally:
        files.provenance.cache_clear()


def test_records_stay_valid_without_weights_and_weights_come_back_the_same(root):
    runs.ensure_trained(RUN, CPU)
    runs.ensure_evaluated(RUN, CLEAN, CPU)
    folder = files.checkpoint_dir(run_id(RUN))
    first = {p.name: p.read_bytes() for p in folder.glob("*.safetensors") if p.name != "state.safetensors"}
    for path in folder.iterdir():
        path.unlink()
    before = snapshot(files.run_dir(run_id(RUN)))
    assert not runs.Task(run=RUN, evaluations=(CLEAN,)).missing()
    runs.ensure_evaluated(RUN, Evaluation(attack="fgsm"), CPU)  # needs weights: trains again
    after = snapshot(files.run_dir(run_id(RUN)))
    assert {p: after[p] for p in before} == before
    assert {p.name: p.read_bytes() for p in folder.glob("*.safetensors") if p.name in first} == first


def test_a_retraining_that_ends_elsewhere_has_a_record_of_its_own(root, monkeypatch):
    def elsewhere(*given, **more):
        trainer = Trainer(*given, **more)
        with torch.no_grad():
            next(trainer.model.parameters()).mul_(1.01)
        return trainer

    def retrained(kept: str = "") -> list:
        for path in files.checkpoint_dir(run_id(RUN)).iterdir():
            if path.stem != kept:
                path.unlink()
        runs.load_model(RUN, "last", CPU)
        return [files.load_json(path) for path in files.run_dir(run_id(RUN)).glob("retrained-*.json")]

    runs.ensure_trained(RUN, CPU)
    before = snapshot(files.run_dir(run_id(RUN)))
    assert retrained() == []  # the same weights: nothing new to say
    with monkeypatch.context() as patch:
        patch.setattr(training, "Trainer", elsewhere)
        (partly,) = retrained(kept="ema")
        assert "ema" not in partly["checkpoints"]  # that file is still the first training's
        store.retrained_path(RUN, partly["checkpoints"]["last"]).unlink()
        (found,) = retrained()
        runs.ensure_evaluated(RUN, CLEAN, CPU)
        assert len(retrained()) == 1  # there and back again: one network, one record
    judged = store.load_evaluation(RUN, CLEAN).record["weights"]
    first = store.environment(RUN)
    assert judged == found["checkpoints"]["last"] != first["checkpoints"]["last"]
    assert {"commit", "hardware", "switches", "seconds", "steps"} <= found.keys()
    assert [row["epoch"] for row in found["history"]] == list(range(1, RUN.epochs + 1))
    after = snapshot(files.run_dir(run_id(RUN)))
    assert {path: after[path] for path in before} == before


def test_the_time_limit_stops_cleanly_and_the_next_call_ends_as_an_uninterrupted_one(root, monkeypatch, tmp_path):
    run = tiny_run(module=FSR_HERE, epochs=2)
    done = []
    with monkeypatch.context() as patch:
        patch.setattr("fsr.train.Callbacks.stop", lambda self: len(done) >= 2)
        with pytest.raises(TimeUp):
            runs.ensure_trained(run, Options(device="cpu", report=lambda *event: done.append(event)))
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


def test_who_waits_for_a_run_does_not_wait_for_ever(root):
    with runs.locked(RUN, CPU), pytest.raises(Busy, match=run_id(RUN)):
        runs.ensure_trained(RUN, Options(device="cpu", lock_seconds=0.2))


def test_one_part_that_fails_does_not_lose_the_others(root):
    task = Task(run=RUN, evaluations=(Evaluation(attack="nothing"), CLEAN), analyses=(Analysis(kind="cost"),))
    (line,) = perform(task, CPU)
    assert "nothing" in line and run_id(RUN) in line
    assert store.has_evaluation(RUN, CLEAN) and store.has_analysis(RUN, Analysis(kind="cost"))
    with pytest.raises(MissingRecord, match="holdout"):
        runs.ensure_evaluated(replace(RUN, holdout=0), Evaluation(attack="clean", checkpoint="best"), CPU)


def test_outcomes_belong_to_the_test_images_that_they_name(root):
    runs.ensure_evaluated(RUN, Evaluation(attack="clean", images=15), CPU)
    part = store.load_evaluation(RUN, Evaluation(attack="clean", images=15))
    runs.ensure_evaluated(RUN, CLEAN, CPU)
    whole = store.load_evaluation(RUN, CLEAN)
    assert len(part.index) == 15 and (whole.correct[part.index] == part.correct).all()


def test_transfers_come_behind_all_trainings_and_every_run_is_trained_once():
    tasks, count = runs.tasks("demo"), len(experiments.SETS["demo"]["all"])
    first, second = tasks[:count], tasks[count:]
    assert second and all(e.surrogate for t in second for e in t.evaluations)
    assert not any(e.surrogate for t in first for e in t.evaluations)
    assert {a.kind for t in second for a in t.analyses} == {"audit"}
    assert "audit" not in {a.kind for t in first for a in t.analyses}
    assert len({t.name for t in first}) == count


def test_status_counts_done_partial_and_missing(root):
    run = experiments.SETS["ci"]["whitebox"][0]
    store.save_config(run)
    frame = runs.status("ci", ("whitebox",))
    assert set(frame["state"]) == {"missing"} and len(frame) == len(experiments.SETS["ci"]["whitebox"])
    runs.ensure_trained(run, CPU)
    frame = runs.status("ci", ("whitebox",)).set_index("id")
    assert frame.loc[run_id(run), "run"] == "AT, seed 0"
    assert frame.loc[run_id(run), "state"] == "partial" and frame.loc[run_id(run), "recorded"].startswith("1/")


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(UsageError, match="05-whitebox"):
        runs.ensure("ci", "05-blackbox")
    with pytest.raises(FSRError, match="demo"):
        runs.status("demonstration")


def test_the_twin_is_plain_at_of_the_same_seed_and_of_plain_at_the_next_seed():
    fsr = replace(RUN, module=FSR_HERE)
    assert surrogate_run(fsr) == surrogate_run(replace(fsr, method="trades")) == RUN
    assert surrogate_run(RUN) == replace(RUN, seed=1) and surrogate_run(replace(RUN, seed=4)) == replace(RUN, seed=5)
    for run in (RUN, fsr):
        assert surrogate_run(replace(run, imported="0123456789")) == RUN


def test_an_audit_is_an_analysis_with_outcomes_per_sample(root, caplog, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", BRISK)
    analysis = Analysis(kind="audit", images=12, budget="quick")
    runs.ensure_analysed(RUN, analysis, CPU)
    record, arrays = store.load_analysis(RUN, analysis)
    assert record["surrogate"] is None and record["twin_weights"] is None
    told = [r for r in caplog.records if run_id(surrogate_run(RUN)) in r.message and "'surrogate': null" in r.message]
    assert len(told) == 1
    assert record["worst_case"] <= record["authors_protocol"] <= record["n"] == 12
    assert arrays["worst_case"].sum() == record["worst_case"]
    assert np.all(arrays["worst_case"] <= arrays["authors_protocol"])


def test_what_a_call_left_that_was_killed_right_after_its_record_is_cleared_away(root):
    runs.ensure_evaluated(RUN, CLEAN, CPU)
    left, other = (evaluating.partial_path(RUN, e) for e in (CLEAN, Evaluation(attack="pgd20")))
    for path in (left, other):
        files.save_json(path, {"progress": {}})
    runs.ensure_evaluated(RUN, CLEAN, CPU)
    assert not left.exists() and other.exists()


def test_an_audits_groups_are_kept_until_its_record_is_there(root, monkeypatch):
    """What a kill between the two would leave is what a failed write leaves."""
    asked = Analysis(kind="audit", images=12, budget="quick")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_analysis", Mock(side_effect=files.FSRError("disk full")))
        with pytest.raises(files.FSRError, match="disk full"):
            runs.ensure_analysed(RUN, asked, CPU)
    path = evaluating.partial_path(RUN, asked)
    assert files.load_json(path)["done"]
    runs.ensure_analysed(RUN, asked, CPU)
    assert store.has_analysis(RUN, asked) and not path.exists()


def test_an_audit_stops_inside_a_group(root, tmp_path):
    """A group takes minutes on a real network: its passes look at the clock too."""
    runs.ensure_trained(RUN, CPU)
    looks = []
    stopping = Options(device="cpu", interrupted=lambda: looks.append(None) or len(looks) > 40)
    with pytest.raises(Interrupted):
        runs.ensure_analysed(RUN, Analysis(kind="audit", images=12, budget="quick"), stopping)
    assert len(looks) == 41 and not list(files.checkpoint_dir(run_id(RUN)).glob("partial-*"))  # no group was done


def test_finished_groups_of_an_audit_belong_to_the_weights_of_its_twin(root, monkeypatch):
    run, given = replace(RUN, module=FSR_HERE), []
    for each in (RUN, run):
        runs.ensure_trained(each, CPU)

    def audit(*_, surrogate, on_group, done, **__):
        given.append((surrogate is not None, sorted(done)))
        on_group("protocol", {"seconds": 1.0})
        raise Interrupted("stopped")

    def stopped() -> dict:
        with pytest.raises(Interrupted):
            runs.ensure_analysed(run, Analysis(kind="audit", images=12), CPU)
        return files.load_json(path)

    monkeypatch.setattr("fsr.audit.audit", audit)
    path = files.checkpoint_dir(run_id(run)) / "partial-last-audit-quick.json"
    first = stopped()
    assert (first["twin"], first["twin_weights"]) == (run_id(RUN), digest_of(runs.weights_path(RUN, "last")))
    assert stopped() == first
    files.save_json(path, first | {"twin_weights": "another network's"})
    assert stopped() == first
    assert given == [(True, []), (True, ["protocol"]), (True, [])]


def test_a_planned_surrogate_is_trained_first_and_a_planned_twin_as_well(root, monkeypatch):
    """On a fresh root a transfer's source has no record yet: the plan knows it; and what is audited is not luck."""
    source = replace(RUN, seed=1)
    monkeypatch.setattr(experiments, "SETS", {"a profile": {"all": (RUN, source)}})
    runs.ensure_evaluated(RUN, Evaluation(attack="transfer", surrogate=run_id(source)), CPU)
    assert store.is_trained(source)
    other = replace(RUN, seed=2)
    monkeypatch.setattr(experiments, "SETS", {"a profile": {"all": (source, other)}})
    assert evaluating.load_surrogate(source, "last", CPU)[0] == run_id(other) and store.is_trained(other)
    assert evaluating.load_surrogate(other, "last", CPU) == (None, None, None)  # seed 3 is in no plan


def test_weights_count_as_final_only_when_they_are(root, monkeypatch):
    """A retraining that is killed between two writes leaves nothing half-trained that would be believed."""
    run = replace(RUN, epochs=2)
    runs.ensure_trained(run, CPU)
    last, save = runs.weights_path(run, "last"), training.save_tensors
    final = digest_of(last)
    for name in ("last", "best", "ema", "state"):
        runs.weights_path(run, name).unlink()

    def saved(path, tensors, meta=None):
        mark = save(path, tensors, meta)
        assert not runs.has_weights(run, "last") or digest_of(last) == final
        return mark

    monkeypatch.setattr(training, "save_tensors", saved)
    runs.load_model(run, "last", CPU)


def test_outcomes_so_far_belong_to_the_weights_of_run_and_surrogate(root, monkeypatch):
    source = replace(RUN, seed=1)
    for run in (RUN, source):
        runs.ensure_trained(run, CPU)
    own, other = (digest_of(runs.weights_path(run, "last")) for run in (RUN, source))
    data = runs.data_of(RUN)
    images = {"images_sha256": evaluating.images_sha256(data.test_x, data.test_y)}
    transfer, fgsm, seen = Evaluation(attack="transfer", surrogate=run_id(source)), Evaluation(attack="fgsm"), []

    def evaluate_attack(*_, progress, **__):
        seen.append(progress.done)
        raise Interrupted("stopped")

    begun = {"batch": 250, "weights": own, **images, "progress": {"done": 20, "correct": [True] * 20}}
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "evaluate_attack", evaluate_attack)
        for evaluation, made_of in (
            (fgsm, {}),
            (fgsm, {"weights": other}),
            (transfer, {"surrogate_weights": other}),
            (transfer, {"surrogate_weights": own}),
            (transfer, {}),  # of a version that did not say
            (fgsm, {"batch": 1000}),  # begun on a GPU, whose batches AutoAttack's state is made of
        ):
            files.save_json(evaluating.partial_path(RUN, evaluation), begun | made_of)
            with pytest.raises(Interrupted):
                runs.ensure_evaluated(RUN, evaluation, CPU)
    assert seen == [20, 0, 20, 0, 0, 0]
    for evaluation in (fgsm, transfer):
        runs.ensure_evaluated(RUN, evaluation, CPU)
    assert "surrogate_weights" not in store.load_evaluation(RUN, fgsm).record
    assert store.load_evaluation(RUN, transfer).record["surrogate_weights"] == other


def test_loading_a_network_reads_no_data_whose_classes_are_known(root, monkeypatch):
    runs.ensure_trained(RUN, CPU)
    monkeypatch.setattr(training, "data_of", lambda *_: pytest.fail("the data were read"))
    assert runs.load_model(RUN, "last", CPU)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_weights_on_record_outlive_a_retraining_that_is_stopped(root, monkeypatch):
    """The EMA of a finished run is there, `last` is gone: training again must not replace what is whole."""
    runs.ensure_trained(RUN, CPU)
    before = runs.weights_path(RUN, "ema").read_bytes()
    for path in (runs.weights_path(RUN, "last"), runs.state_path(RUN)):
        path.unlink()
    done = []
    monkeypatch.setattr("fsr.train.Callbacks.stop", lambda self: len(done) >= 2)
    with pytest.raises(TimeUp):
        runs.load_model(RUN, "last", Options(device="cpu", report=lambda *event: done.append(event)))
    assert runs.state_path(RUN).exists() and runs.weights_path(RUN, "ema").read_bytes() == before
    assert runs.has_weights(RUN, "ema") and not runs.has_weights(RUN, "last")


def test_a_slow_save_is_left_out_between_epochs_and_never_at_the_end(root, monkeypatch):
    saved, save = [], training.save_checkpoint

    def slow(trainer, recorded):
        saved.append(trainer.progress.epoch)
        time.sleep(1)  # a twentieth of the time that an epoch may take here
        return save(trainer, recorded)

    monkeypatch.setattr(training, "save_checkpoint", slow)
    runs.ensure_trained(replace(RUN, epochs=3), CPU)
    assert saved == [2, 4]
