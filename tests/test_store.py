"""Records: whole or absent, hashed, never overwritten, joined per sample, with where their code came from."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from fsr import files, store
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.files import CorruptFile, MissingRecord, UsageError, load_json, load_npz, save_json
from fsr.store.weights import digest, digest_of, load_tensors, save_tensors
from fsr.tables.outcomes import metrics

RUN, CLEAN, COST = Run(epochs=2), Evaluation(attack="clean"), Analysis(kind="cost")
PLACES = np.random.default_rng(1).permutation(10_000)[:2000]
OTHERS: list = [{"n": 36}, {"n": 45}, {"n": None}, {"correct": 20}, {"correct": 99}, {"evaluation": None}]
OTHERS += [{"evaluation": {"attack": "fgsm"}}, {"evaluation": {"attack": "clean", "surprise": 1}}]


def record(attack: str, correct, index=None, run=RUN, **extra):
    named = {name: extra.pop(name) for name in ("eps", "images") if name in extra}
    store.save_config(run)
    places = np.arange(len(correct)) if index is None else index
    return store.save_evaluation(run, Evaluation(attack=attack, **named), places, np.array(correct, bool), **extra)


def test_outcomes_come_back_per_sample_and_are_kept_as_they_are(root):
    correct = np.random.default_rng(0).random(37) < 0.5
    path = record("clean", correct)
    record("clean", ~correct)
    got = store.load_evaluation(RUN, CLEAN)
    assert (got.correct == correct).all() and (got.index == np.arange(37)).all() and got.index.dtype == np.int32
    assert set(load_npz(path.with_suffix(".npz"), got.record["outcomes_sha256"])) == {"correct"}  # 0, 1, ... is known


def test_positions_are_stored_once_for_all_records_on_these_images(root):
    right = np.random.default_rng(2).random(2000) < 0.5
    path = record("fgsm", right, PLACES, images=2000)
    record("clean", ~right, PLACES, images=2000)
    record("clean", right[:500], PLACES[:500], images=500)
    for attack, expected, n in (("fgsm", right, 2000), ("clean", ~right, 2000), ("clean", right[:500], 500)):
        got = store.load_evaluation(RUN, Evaluation(attack=attack, images=n))
        assert (got.index == PLACES[:n]).all() and got.index.dtype == np.int32 and (got.correct == expected).all()
    sizes = [file.stat().st_size for file in (path.with_suffix(".npz"), *path.parent.glob("index-*.npy"))]
    assert sizes[0] < 1000 and sorted(sizes[1:]) == [500 * 2 + 128, 2000 * 2 + 128]  # two bytes each, and numpy's head


@pytest.mark.parametrize("pattern", ["last-fgsm-n2000.json", "last-fgsm-n2000.npz", "index-*.npy"])
def test_a_flipped_bit_half_a_file_and_a_missing_one_are_found_and_named(root, pattern):
    path = next(record("fgsm", np.ones(2000), PLACES, images=2000).parent.glob(pattern))
    whole, requested = path.read_bytes(), Evaluation(attack="fgsm", images=2000)
    middle = len(whole) // 2
    for data in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:40]):
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match=path.name):
            store.load_evaluation(RUN, requested)
    path.unlink()
    with pytest.raises(MissingRecord if path.suffix == ".json" else CorruptFile, match=path.stem):
        store.load_evaluation(RUN, requested)  # without its outcomes a record is not one that was not made


def test_outcomes_of_an_eps_that_shares_their_name_are_refused(root):
    """Names have five digits: 8/255 is 0.03137 there."""
    path = record("pgd20", [True, False], eps=8 / 255)
    assert store.load_evaluation(RUN, Evaluation(attack="pgd20", eps=8 / 255)).correct.tolist() == [True, False]
    with pytest.raises(UsageError) as caught:
        store.load_evaluation(RUN, Evaluation(attack="pgd20", eps=0.03137))
    assert all(part in str(caught.value) for part in (str(path), "eps=0.03137,", f"eps={8 / 255},"))


def test_a_record_that_was_copied_from_another_run_is_named_and_not_used(root):
    other = replace(RUN, seed=1)
    record("clean", [True], run=other)
    store.save_analysis(other, COST, {"params": 1})
    save_json(files.run_dir(run_id(other)) / "env.json", {"run_id": run_id(other)})
    shutil.copytree(files.run_dir(run_id(other)), files.run_dir(run_id(RUN)))
    reads = [(store.load_evaluation, RUN, CLEAN), (store.load_analysis, RUN, COST), (store.config_of, run_id(RUN))]
    for read, *what in (*reads, (store.environment, RUN), (store.evaluations, RUN), (store.save_config, RUN)):
        with pytest.raises(CorruptFile, match=f"is a record of {run_id(other)}"):
            read(*what)


@pytest.mark.parametrize("schema", [files.SCHEMA + 1, "1", None])
def test_a_record_of_a_newer_schema_is_refused_and_says_so(root, schema):
    path, newer = root / "x.json", {"schema": schema}
    path.write_text(json.dumps(newer | {"sha256": files.sha256(json.dumps(newer).encode())}))
    with pytest.raises(CorruptFile, match="newer"):
        load_json(path)


@pytest.mark.parametrize("changed", OTHERS)
def test_an_evaluation_that_is_whole_but_not_what_its_name_says_is_refused(root, changed):
    path = record("clean", np.arange(37) % 2 == 0)  # 19 of 37, in 5 bytes
    save_json(path, load_json(path) | changed)
    with pytest.raises(CorruptFile, match=r"last-clean\.json is not what its name says [^\n]*$"):
        store.load_evaluation(RUN, CLEAN)


def test_arrays_a_history_and_a_config_that_are_something_else_are_refused(root):
    path, own = record("clean", [True]), files.run_dir(run_id(RUN))
    for data in (b"", b"\xff\xfe\x00", files.npz_bytes(other=np.zeros(5))):
        (own / "history.csv").write_bytes(data)
        path.with_suffix(".npz").write_bytes(data)
        save_json(path, load_json(path) | {"outcomes_sha256": files.sha256(data)})
        for read, what in ((store.load_evaluation, (RUN, CLEAN)), (store.history, (RUN,))):
            with pytest.raises(CorruptFile, match=r"(clean\.json|history\.csv) is not what its name says"):
                read(*what)
    whole = load_json(own / "config.json")
    for run in (whole["run"] | {"epochs": 3}, whole["run"] | {"surprise": 1}, []):
        save_json(own / "config.json", whole | {"run": run})
        with pytest.raises(CorruptFile, match=r"config\.json is not what its name says"):
            store.runs()


def test_a_history_has_its_columns_in_one_order_and_matches_its_hash(root):
    """A resumed training reads its rows back from JSON, whose keys are sorted."""
    row = {"epoch": 1, "seconds": 0.5, "lr": 0.1, "train_cls": 2.0, "held_clean_acc": 0.5, "ema_held_clean_acc": np.nan}
    data = store.save_history(RUN, [row])
    assert data == store.save_history(RUN, [dict(sorted(row.items()))])
    assert data.decode().splitlines() == [",".join(row), "1,0.5,0.1,2,0.5,nan"]
    save_json(files.run_dir(run_id(RUN)) / "env.json", {"run_id": run_id(RUN), "history_sha256": files.sha256(data)})
    assert store.history(RUN)["train_cls"].tolist() == [2.0]
    path = files.run_dir(run_id(RUN)) / "history.csv"
    for change in (lambda: path.write_text(path.read_text().replace("2", "3")), path.unlink):
        change()
        with pytest.raises(CorruptFile, match=r"history\.csv is damaged or gone; move its json away and type"):
            store.history(RUN)


def test_every_committed_record_still_loads(monkeypatch):
    monkeypatch.setenv("FSR_ROOT", str(files.repository()))
    for run in store.runs():
        assert not store.is_trained(run) or run.imported or len(store.history(run)) == run.epochs
        assert all(len(store.load_evaluation(run, e).correct) for e in store.evaluations(run))
        for path in sorted((files.run_dir(run_id(run)) / "analyses").glob("*.json")):
            store.load_analysis(run, Analysis(**load_json(path)["analysis"]))
    assert len(metrics(store.runs())) > 500


def test_tied_weights_are_stored_under_each_name(tmp_path):
    whole, path = torch.arange(6.0), tmp_path / "x.safetensors"
    tensors = {"a.weight": whole, "b.weight": whole, "row": whole[2:4]}
    mark = save_tensors(path, tensors, {"epoch": 1})
    loaded, meta = load_tensors(path)
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items()) and meta == {"epoch": 1}
    assert mark == digest_of(path) == digest(tensors, '{"epoch": 1}')


def origin(monkeypatch, **said) -> tuple:
    """(commit, dirty) when the environment says this and nothing more."""
    for name in ("FSR_COMMIT", "FSR_DIRTY"):
        monkeypatch.setenv(name, said.get(name, ""))
    record = files.provenance.__wrapped__()
    return record["commit"], record["dirty"]


@pytest.mark.parametrize(("said", "dirty"), [({}, None), ({"FSR_DIRTY": "0"}, False), ({"FSR_DIRTY": "1"}, True)])
def test_the_environment_says_both_or_nothing_is_known(monkeypatch, said, dirty):
    assert origin(monkeypatch, FSR_COMMIT="c0ffee", **said) == ("c0ffee", dirty)


def test_only_a_repository_that_tracks_this_code_is_believed(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        call = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    copy = tmp_path / "copies" / "fsr" / "files.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(files.__file__, copy)
    monkeypatch.setattr(files, "__file__", str(copy))
    assert origin(monkeypatch) == (None, None)  # no repository at all
    git("init")
    git("commit", "--allow-empty", "-m", "of something else")
    assert origin(monkeypatch) == (None, None)
    git("add", "copies")
    git("commit", "-m", "of this code")
    assert origin(monkeypatch) == (git("rev-parse", "HEAD"), False)
    copy.write_text("changed")
    assert origin(monkeypatch) == (git("rev-parse", "HEAD"), True)
