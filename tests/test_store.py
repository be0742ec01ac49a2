"""Records: whole or absent, hashed, never overwritten, and joined per sample."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fsr import files, store
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.files import CorruptFile, FSRError, MissingRecord, UsageError, load_json, load_npz, npz_bytes, save_json
from fsr.store.weights import digest, digest_of, load_tensors, save_tensors

RUN = Run(epochs=2)


def _outcomes(attack: str, correct, run=RUN, eps=None, **extra):
    store.save_config(run)
    index, evaluation = np.arange(len(correct)), Evaluation(attack=attack, eps=eps)
    store.save_evaluation(run, evaluation, index, np.array(correct, bool), seconds=1.0, **extra)


def test_outcomes_come_back_per_sample(root):
    correct = np.random.default_rng(0).random(37) < 0.5
    _outcomes("pgd20", correct)
    got = store.load_evaluation(RUN, Evaluation(attack="pgd20"))
    assert (got.correct == correct).all() and (got.index == np.arange(37)).all()
    assert got.index.dtype == np.int32
    path = store.eval_path(RUN, Evaluation(attack="pgd20")).with_suffix(".npz")
    assert set(load_npz(path, got.record["outcomes_sha256"])) == {"correct"}  # 0, 1, 2, ... is known
    assert got.accuracy == correct.mean()
    _outcomes("pgd20", ~correct)  # an existing record is kept as it is
    assert (store.load_evaluation(RUN, Evaluation(attack="pgd20")).correct == correct).all()


def test_files_that_hold_every_index_are_still_read(root):
    """As all were before."""
    _outcomes("pgd20", [True, False, True])
    path = store.eval_path(RUN, Evaluation(attack="pgd20"))
    record, data = load_json(path), npz_bytes(index=np.arange(3, dtype=np.int32), correct=np.packbits([1, 0, 1]))
    path.with_suffix(".npz").write_bytes(data)
    save_json(path, {k: v for k, v in record.items() if k != "sha256"} | {"outcomes_sha256": files.sha256(data)})
    got = store.load_evaluation(RUN, Evaluation(attack="pgd20"))
    assert got.index.tolist() == [0, 1, 2] and got.correct.tolist() == [True, False, True]


PLACES = np.random.default_rng(1).permutation(10_000)[:2000]


def _on_places(attack: str, right, places=PLACES):
    store.save_config(RUN)
    return store.save_evaluation(RUN, Evaluation(attack=attack, images=len(places)), places, right)


def test_positions_are_stored_once_for_all_records_on_these_images(root):
    right = np.random.default_rng(2).random(2000) < 0.5
    path = _on_places("fgsm", right)
    _on_places("clean", ~right)
    _on_places("clean", right[:500], PLACES[:500])
    assert len(list(path.parent.glob("index-*.npy"))) == 2  # of 2,000 and of 500 images
    for attack, expected, n in (("fgsm", right, 2000), ("clean", ~right, 2000), ("clean", right[:500], 500)):
        got = store.load_evaluation(RUN, Evaluation(attack=attack, images=n))
        assert (got.index == PLACES[:n]).all() and got.index.dtype == np.int32 and (got.correct == expected).all()
    sizes = [file.stat().st_size for file in (path.with_suffix(".npz"), *path.parent.glob("index-*.npy"))]
    assert sizes[0] < 1000 and sorted(sizes[1:]) == [500 * 2 + 128, 2000 * 2 + 128]  # two bytes each, and numpy's head


def test_damaged_and_missing_positions_are_found_and_named(root):
    path = _on_places("fgsm", np.ones(2000, dtype=bool))
    index = next(path.parent.glob("index-*.npy"))
    data = index.read_bytes()
    index.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptFile, match=index.name):
        store.load_evaluation(RUN, Evaluation(attack="fgsm", images=2000))
    index.unlink()
    with pytest.raises(MissingRecord, match=index.name):
        store.load_evaluation(RUN, Evaluation(attack="fgsm", images=2000))


def test_outcomes_of_an_eps_that_shares_their_name_are_refused(root):
    """Names have five digits: 8/255 is 0.03137 there."""
    _outcomes("pgd20", [True, False], eps=8 / 255)
    assert store.load_evaluation(RUN, Evaluation(attack="pgd20", eps=8 / 255)).accuracy == 0.5
    asked = Evaluation(attack="pgd20", eps=0.03137)
    with pytest.raises(UsageError) as caught:
        store.load_evaluation(RUN, asked)
    parts = (str(store.eval_path(RUN, asked)), "eps=0.03137,", f"eps={8 / 255},")
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def test_the_ensemble_is_the_and_over_clean_and_four_attacks_per_sample(root):
    table = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [0, 1, 1, 1, 1]], bool)
    for attack, correct in zip(store.ENSEMBLE, table):
        _outcomes(attack, correct)
    frame = store.metrics([RUN])
    row = frame[frame["attack"] == "ensemble"].iloc[0]
    assert row["n"] == 5 and row["correct"] == table.all(axis=0).sum() == 1
    assert len(frame) == 6


def test_the_ensemble_uses_only_images_that_every_attack_saw(root):
    store.save_config(RUN)
    for i, attack in enumerate(store.ENSEMBLE):
        index = np.arange(i, i + 6)
        store.save_evaluation(RUN, Evaluation(attack=attack), index, index != 5)
    both = store.ensemble(RUN, "last")
    assert both.index.tolist() == [4, 5] and both.correct.tolist() == [True, False]


@pytest.mark.parametrize(("key", "what"), [("weights", "weights"), ("images_sha256", "test images")])
def test_no_ensemble_of_two_networks_or_two_test_sets(root, key, what):
    for attack in store.ENSEMBLE:
        _outcomes(attack, [True, False], **{key: "another" if attack == "cw" else "one"})
        _outcomes(attack, [True, False], replace(RUN, seed=1), images_sha256="one" if attack == "cw" else None)
    assert "ensemble" not in set(store.metrics([RUN])["attack"])
    with pytest.raises(MissingRecord, match=f"different {what}; .* `python -m fsr run-all`"):
        store.ensemble(RUN, "last")
    assert store.ensemble(replace(RUN, seed=1), "last").correct.tolist() == [True, False]  # some name no images


def test_a_record_that_was_copied_from_another_run_is_named_and_not_used(root):
    other, clean = replace(RUN, seed=1), Evaluation(attack="clean")
    cost = Analysis(kind="cost")
    _outcomes("clean", [True], run=other)
    store.save_analysis(other, cost, {"params": 1})
    files.save_json(files.run_dir(run_id(other)) / "env.json", {"run_id": run_id(other)})
    store.save_config(RUN)
    without = shutil.ignore_patterns("config.json")
    shutil.copytree(files.run_dir(run_id(other)), files.run_dir(run_id(RUN)), dirs_exist_ok=True, ignore=without)
    reads = ((store.load_evaluation, clean), (store.load_analysis, cost), (store.environment,), (store.evaluations,))
    for read, *what in reads:
        with pytest.raises(CorruptFile, match=f"is a record of {run_id(other)}"):
            read(RUN, *what)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_flipped_bit_and_half_a_file_are_found_and_named(root, suffix):
    _outcomes("clean", [True, False, True])
    assert set(store.metrics([RUN])["attack"]) == {"clean"}  # no ensemble without all five
    path = store.eval_path(RUN, Evaluation(attack="clean")).with_suffix(suffix)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for data in (flipped, whole[:40]):
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match="clean"):
            store.load_evaluation(RUN, Evaluation(attack="clean"))


def test_a_record_of_a_newer_schema_is_refused_and_says_so(root):
    path = root / "x.json"
    record = {"schema": files.SCHEMA + 1}
    path.write_text(json.dumps(record | {"sha256": files.sha256(json.dumps(record).encode())}))
    with pytest.raises(CorruptFile, match="newer"):
        files.load_json(path)


def test_a_failed_write_leaves_the_old_file(root, monkeypatch):
    path = root / "a.json"
    files.save_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FSRError, match="No space left"):
        files.save_json(path, {"a": 2})
    assert files.load_json(path)["a"] == 1
    assert [p.name for p in root.iterdir()] == ["a.json"]


def test_missing_records_name_the_command(root):
    with pytest.raises(MissingRecord, match="run-all"):
        store.load_evaluation(RUN, Evaluation(attack="clean"))
    with pytest.raises(UsageError, match="status"):
        store.config_of("nothing")


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", "", "a\\b", "a\0b"])
def test_a_name_from_outside_never_leaves_the_results_folder(root, name):
    with pytest.raises(UsageError):
        files.run_dir(name)


def test_analyses_come_back_with_arrays_and_without(root):
    store.save_config(RUN)
    store.save_analysis(RUN, Analysis(kind="masks"), {"tau": 0.1}, edges=np.linspace(0, 1, 5))
    store.save_analysis(RUN, Analysis(kind="cost"), {"params": 7})
    assert npz_bytes(a=np.arange(5), b=np.ones(3)) == npz_bytes(a=np.arange(5), b=np.ones(3))  # the same bytes
    record, arrays = store.load_analysis(RUN, Analysis(kind="masks"))
    assert record["tau"] == 0.1 and arrays["edges"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert store.load_analysis(RUN, Analysis(kind="cost"))[1] == {}


def test_history_of_a_finished_run_must_match_its_hash(root):
    store.save_config(RUN)
    data = store.save_history(RUN, [{"epoch": 1, "train_cls": 2.0}])
    record = {"run_id": run_id(RUN), "history_sha256": files.sha256(data)}
    files.save_json(files.run_dir(run_id(RUN)) / "env.json", record)
    assert store.history(RUN)["train_cls"].tolist() == [2.0]
    path = files.run_dir(run_id(RUN)) / "history.csv"
    path.write_text(path.read_text().replace("2", "3"))
    with pytest.raises(CorruptFile, match=r"history\.csv"):
        store.history(RUN)


def test_a_history_has_its_columns_in_one_order_whatever_the_rows_say(root):
    """A resumed training reads its rows back from JSON, whose keys are sorted."""
    row = {"epoch": 1, "seconds": 0.5, "lr": 0.1, "train_cls": 2.0, "held_clean_acc": 0.5, "ema_held_clean_acc": 0.25}
    assert store.save_history(RUN, [row]) == store.save_history(RUN, [dict(sorted(row.items()))])
    assert list(store.history(RUN).columns) == list(row)


def test_every_committed_record_still_loads(monkeypatch):
    """Evaluations and analyses with their arrays and hashes, env.json and history.csv."""
    monkeypatch.setenv("FSR_ROOT", str(files.repository()))
    for run in store.runs():
        assert not store.damage(run)
        recorded = store.evaluations(run)
        assert all(len(store.load_evaluation(run, e).correct) for e in recorded)
        for path in sorted((files.run_dir(run_id(run)) / "analyses").glob("*.json")):
            store.load_analysis(run, Analysis(**load_json(path)["analysis"]))
    assert len(store.metrics()) > 500


def test_tied_weights_are_stored_under_each_name(tmp_path):
    whole = torch.arange(6.0)
    tensors = {"a.weight": whole, "b.weight": whole, "row": whole[2:4]}
    mark = save_tensors(tmp_path / "x.safetensors", tensors, {"epoch": 1})
    loaded, meta = load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items()) and meta == {"epoch": 1}
    assert mark == digest_of(tmp_path / "x.safetensors") == digest(tensors, '{"epoch": 1}')
