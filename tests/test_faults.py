"""Nothing is lost and nothing is fooled: kills, full disks, damaged files, divergence, memory, clocks."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import FSR_HERE, tiny_run

from fsr import experiments, files, runs, store
from fsr.config import Analysis, Evaluation, run_id
from fsr.files import CorruptFile, Diverged, FSRError, Interrupted, TimeUp, UsageError, save_json, sha256
from fsr.runs import Options, Task, evaluating, perform
from fsr.store.weights import digest, load_tensors
from fsr.train import loop as train

CPU = Options(device="cpu")
RUN = tiny_run(epochs=1)
WITH_FSR = tiny_run(epochs=1, module=FSR_HERE)
CLEAN, FGSM = Evaluation(attack="clean"), Evaluation(attack="fgsm")


# --- kill -9 -------------------------------------------------------------------------------------------------

# One process imports everything and never computes; every child that it forks does the whole work and is killed at a
# random moment, or at a write, before or after the file gets its name. Prints the children killed and the rounds.
KILLER = """
import os, random, signal, sys, time
sys.path.insert(0, TESTS)
import torch, torch._dynamo  # once here, not in every child
torch.set_num_threads(1)
from tiny import FSR_HERE, tiny_run
from fsr import evaluate, files, runs, store
from fsr.config import Analysis, Evaluation
from fsr.runs import Options, Task, evaluating, perform

run = tiny_run(module=FSR_HERE, epochs=3)
attacks = ("clean", "pgd10", "autoattack-ci")
task = Task(run=run, evaluations=tuple(Evaluation(attack=a) for a in attacks), analyses=(Analysis(kind="streams"),))
evaluate.batch_size = lambda device: 10  # several chunks
evaluating.SAVE_SECONDS = 0.0
real = os.replace

def child(root, at_write=None, after=False):
    writes = 0
    def replace(*names):
        nonlocal writes
        writes += 1
        if writes == at_write and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*names)
        if writes == at_write:
            os.kill(os.getpid(), signal.SIGKILL)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["FSR_ROOT"] = root
        files.os.replace = replace
        failed = perform(task, Options(device="cpu"))
        print(*failed, file=sys.stderr)
        code = 1 if failed else 0
    finally:
        os._exit(code)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

started = time.monotonic()
assert end(child(WHOLE)) == 0
seconds, rng, killed, rounds = time.monotonic() - started, random.Random(0), 0, 0

def at_random_moments(broken):
    hits = 0
    for _ in range(4):
        pid = child(broken)
        time.sleep(rng.uniform(0, seconds / 3))
        os.kill(pid, signal.SIGKILL)
        hits += end(pid) == -signal.SIGKILL
    return hits

def at_writes(broken):
    return sum(end(child(broken, rng.randint(1, 4), after)) == -signal.SIGKILL for after in (False, True))

while killed < WANTED:  # however fast the machine has become, the writes of every second round are sure hits
    broken = f"{BROKEN}-{rounds}"
    for kills in (at_writes, at_random_moments) if rounds % 2 else (at_random_moments, at_writes):
        killed += kills(broken)
    assert end(child(broken)) == 0
    rounds += 1
print(killed, rounds)
"""


def kept(root: Path) -> dict:
    """Everything that must not depend on kills: weights, outcomes, histories and analyses without their seconds."""
    out: dict = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and ".locks" not in p.parts):
        name = str(path.relative_to(root))
        if path.suffix == ".npz" or path.name in ("last.safetensors", "best.safetensors", "ema.safetensors"):
            out[name] = path.read_bytes()
        elif path.suffix == ".json":
            record = files.load_json(path)
            for field in ("sha256", "started", "finished", "seconds", "history_sha256", "commit", "dirty", "sittings"):
                record.pop(field, None)
            out[name] = record
        elif path.suffix == ".csv":
            lines = [line.split(",") for line in path.read_text().splitlines()]
            out[name] = [[cell for i, cell in enumerate(line) if i != lines[0].index("seconds")] for line in lines]
        elif path.suffix != ".tmp" and path.name != "state.safetensors":
            out[name] = "unexpected"
    return out


def python(code: str, **values) -> tuple[list[str], str]:
    """(words of stdout, stderr) of a process that runs this code with these names defined."""
    head = "".join(f"{name} = {value!r}\n" for name, value in {"TESTS": str(Path(__file__).parent), **values}.items())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", head + code]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("wanted", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_work_goes_on_to_the_records_of_work_that_was_not(tmp_path, wanted):
    """Six kills a round, each round in a root of its own."""
    whole = tmp_path / "whole"
    said, _ = python(KILLER, WHOLE=str(whole), BROKEN=str(tmp_path / "broken"), WANTED=wanted)
    killed, rounds = map(int, said[-2:])
    whole_kept = kept(whole)
    assert len(whole_kept) == 3 + 3 + 2 * 3 + 1  # weights, run, evaluations, analysis
    for i in range(rounds):
        assert kept(tmp_path / f"broken-{i}") == whole_kept
    assert killed >= wanted


def test_what_killed_writes_leave_is_swept_by_the_next_training(root):
    path = runs.weights_path(RUN, "last")
    path.parent.mkdir(parents=True)
    left, other = path.with_name(".last.safetensors" + "abc.tmp"), path.with_name(".partial-x.json" + "abc.tmp")
    left.write_bytes(b"half")
    other.write_bytes(b"another process is writing this")
    runs.ensure_trained(RUN, CPU)
    assert not left.exists() and other.exists()


@pytest.mark.slow
def test_a_notebook_whose_runner_is_killed_leaves_the_good_execution_alone(root, tmp_path):
    from test_notebooks import write

    folder, mark = tmp_path / "repository" / "notebooks", tmp_path / "kernel"
    folder.mkdir(parents=True)
    code = f"import os\nopen({str(mark)!r}, 'w').write(str(os.getpid()))"
    call = "import os\nfrom fsr import notebooks\nprint(notebooks.execute(['00-setup'], 'ci', report=lambda _: None))"

    def runner() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", call], cwd=folder, stdout=subprocess.PIPE, text=True)

    write(folder, "00-setup", code)
    assert runner().communicate(timeout=3600)[0].strip() == "[]"
    target = root / "results" / "notebooks" / "ci" / "00-setup.ipynb"
    good = target.read_bytes()
    write(folder, "00-setup", code + "\nimport time\ntime.sleep(600)")
    for pause in (0.0, 1.0, 3.0):
        mark.unlink()
        process = runner()
        while not (mark.exists() and mark.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(pause)
        process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):  # in most places it has noticed and ended itself
            os.kill(int(mark.read_text()), signal.SIGKILL)
        assert target.read_bytes() == good
    write(folder, "00-setup", code + "\n'whole again'")
    assert runner().communicate(timeout=3600)[0].strip() == "[]"
    assert b"whole again" in target.read_bytes()


# --- two processes -------------------------------------------------------------------------------------------

BOTH = """
import logging, os, sys
sys.path.insert(0, TESTS)
import torch
torch.set_num_threads(1)
from tiny import tiny_run
from fsr import evaluate, runs
from fsr.config import Evaluation
logging.basicConfig(level=logging.INFO, format="%(message)s")
run, cpu = tiny_run(epochs=3), runs.Options(device="cpu")
evaluate.batch_size = lambda device: 1  # many chunks
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            runs.ensure_trained(run, cpu) if TRAIN else runs.ensure_evaluated(run, Evaluation(attack="pgd20"), cpu)
            code = 0
        finally:
            logging.shutdown()
            os._exit(code)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_of_two_processes_one_computes_and_the_other_waits_and_says_so(root, what):
    if what == "evaluate":
        runs.ensure_trained(tiny_run(epochs=3), CPU)
    codes, errors = python(BOTH, TRAIN=what == "train")
    assert codes == ["[0,", "0]"], errors
    name = run_id(tiny_run(epochs=3))
    part = name if what == "train" else f"{name}.last-pgd20"
    assert errors.count(f"{part} is being computed by another process: waiting") == 1
    assert len(store.history(name)) == 3


# --- full and read-only disks --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A disk of 8 MB of its own as root; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    made = shutil.which("mount") and subprocess.run(command, capture_output=True)
    if not made or made.returncode:
        pytest.skip("mounting a small disk needs root")
    monkeypatch.setenv("FSR_ROOT", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_or_read_only_disk_is_said_and_earlier_results_are_whole(small_disk):
    runs.ensure_trained(RUN, CPU)
    runs.ensure_evaluated(RUN, CLEAN, CPU)
    before = kept(small_disk)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    for task in (Task(run=RUN, evaluations=(FGSM,)), Task(run=tiny_run(epochs=1, seed=1))):
        (line,) = perform(task, CPU)
        assert "No space left" in line
    assert not list(small_disk.rglob("*.tmp"))
    filler.unlink()
    assert {name: value for name, value in kept(small_disk).items() if name in before} == before
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsageError, match=r"cannot write .*Read-only.*--root"):
        runs.ensure_evaluated(RUN, FGSM, CPU)
    assert store.load_evaluation(RUN, CLEAN).record["n"] == 40
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert perform(Task(run=RUN, evaluations=(FGSM,)), CPU) == []


def test_a_disk_that_fills_while_training_leaves_the_last_checkpoint(root, monkeypatch):
    run, saved, real = tiny_run(epochs=2), [], os.fsync

    def fsync(handle) -> None:
        if len(saved) >= 6:  # the second epoch's
            raise OSError(28, "No space left on device")
        saved.append(handle)
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        with pytest.raises(FSRError, match="No space left"):
            runs.ensure_trained(run, CPU)
    assert not store.is_trained(run) and runs.state_path(run).exists()
    runs.ensure_trained(run, CPU)
    assert len(store.history(run)) == 2


# --- damaged and foreign files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root with one finished run: weights, history, an evaluation, an analysis."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(root))
        runs.ensure_trained(WITH_FSR, CPU)
        runs.ensure_evaluated(WITH_FSR, CLEAN, CPU)
        runs.ensure_analysed(WITH_FSR, Analysis(kind="masks"), CPU)
    return root


def read_everything() -> None:
    """Every reader of every file of the run."""
    assert store.runs()
    store.environment(WITH_FSR)
    store.history(WITH_FSR)
    store.load_evaluation(WITH_FSR, CLEAN)
    store.load_analysis(WITH_FSR, Analysis(kind="masks"))
    store.metrics()
    for checkpoint in ("last", "best", "ema"):
        runs.load_model(WITH_FSR, checkpoint, CPU)


def spoilt(data: bytes, how: str) -> bytes:
    if how != "bit":
        return data[: len(data) // 2] if how == "half" else b""
    place = int(np.random.default_rng(len(data)).integers(len(data)))
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


@pytest.mark.parametrize("how", ["empty", "half", "bit"])
def test_every_damaged_file_of_a_finished_run_is_named_and_left_as_it_is(finished, root, how):
    shutil.copytree(finished, root, dirs_exist_ok=True)
    read_everything()
    mine = [p for p in sorted((root / "results").rglob("*")) if p.is_file() and p.suffix != ".lock"]
    mine = [p for p in mine if p.name not in (".gitignore", "state.safetensors")]
    assert len(mine) == 3 + 2 + 2 + 3
    for path in mine:
        good = path.read_bytes()
        path.write_bytes(spoilt(good, how))
        with pytest.raises(CorruptFile, match=path.stem):
            read_everything()
        failed = perform(Task(run=WITH_FSR, evaluations=(CLEAN,), analyses=(Analysis(kind="masks"),)), CPU)
        assert not failed or all("move it away" in line or "cannot be read" in line for line in failed)
        assert path.read_bytes() == spoilt(good, how)
        path.write_bytes(good)
    read_everything()


@pytest.mark.parametrize("name", ["config.json", "env.json", "history.csv"])
def test_status_names_a_damaged_record_and_counts_the_others(name, root, caplog):
    good, bad = experiments.SETS["ci"]["whitebox"][:2]
    for run in (good, bad):
        store.save_config(run)
        digest = sha256(store.save_history(run, [{"epoch": 1, "seconds": 1.0}]))
        record = {"run_id": run_id(run), "seconds": 10.0, "hardware": {"device": "cpu"}, "history_sha256": digest}
        save_json(files.run_dir(run_id(run)) / "env.json", record)
    path = files.run_dir(run_id(bad)) / name
    path.write_bytes(spoilt(path.read_bytes(), "half"))
    frame = runs.status("ci").set_index("id")
    assert frame.loc[run_id(bad), "state"] == "damaged" and str(path) in frame.loc[run_id(bad), "next"]
    assert frame.loc[run_id(good), "state"] == "partial" and (frame["state"] == "damaged").sum() == 1
    assert [run for run, _ in store.finished()] == [good]
    assert runs.seconds_per_epoch("cpu") == [(good, 1.0)] and runs.seconds_per_epoch("cuda") == []


def test_a_damaged_state_of_a_stopped_training_is_named_and_its_history_is_written_anew(root):
    run = tiny_run(epochs=2)
    stop_after(run, 4)
    path = runs.state_path(run)
    good = path.read_bytes()
    for how in ("half", "bit"):
        path.write_bytes(spoilt(good, how))
        with pytest.raises(CorruptFile, match="state"):
            runs.ensure_trained(run, CPU)
        assert path.read_bytes() == spoilt(good, how) and not store.is_trained(run)
    path.write_bytes(good)
    (files.run_dir(run_id(run)) / "history.csv").write_text("epoch,seconds\n1,nonsense\n")
    runs.ensure_trained(run, CPU)
    assert store.history(run)["epoch"].tolist() == [1, 2]


def test_damaged_outcomes_so_far_are_named_kept_aside_and_not_used(root, caplog, monkeypatch):
    runs.ensure_trained(RUN, CPU)
    runs.ensure_evaluated(RUN, FGSM, CPU)
    right = store.load_evaluation(RUN, FGSM).correct.tolist()
    for path in store.record_path(RUN, FGSM).parent.glob("last-fgsm.*"):
        path.unlink()
    path = evaluating.partial_path(RUN, FGSM)
    progress = {"done": 20, "correct": [False] * 20}
    files.save_json(path, {"weights": store.environment(RUN)["checkpoints"]["last"], "progress": progress})
    data = path.read_bytes().replace(b'"done": 20', b'"done": 10')
    path.write_bytes(data)
    runs.ensure_evaluated(RUN, FGSM, CPU)
    assert store.load_evaluation(RUN, FGSM).correct.tolist() == right
    assert path.name in caplog.text and path.with_name(path.name + ".damaged").read_bytes() == data


def test_weights_of_another_run_or_kind_are_refused(root):
    other = tiny_run(epochs=1, seed=1)
    for run in (RUN, other):
        runs.ensure_trained(run, CPU)
    path = runs.weights_path(RUN, "last")
    for foreign in (runs.weights_path(other, "last"), runs.weights_path(RUN, "ema")):
        shutil.copy(foreign, path)
        with pytest.raises(CorruptFile, match="holds the weights of"):
            runs.ensure_evaluated(RUN, CLEAN, CPU)
    assert not store.has_evaluation(RUN, CLEAN)
    state = runs.state_path(RUN)
    shutil.copy(runs.state_path(other), state)
    path.unlink()
    with pytest.raises(CorruptFile, match=f"belongs to {run_id(other)}"):
        runs.ensure_evaluated(RUN, CLEAN, CPU)


def test_a_renamed_folder_is_not_taken_for_another_run(root):
    store.save_config(RUN)
    other = tiny_run(epochs=1, seed=7)
    files.run_dir(run_id(RUN)).rename(files.run_dir(run_id(other)))
    with pytest.raises(CorruptFile, match="is a record of"):
        store.config_of(run_id(other))


@pytest.mark.parametrize("name", ["last", "state"])
def test_a_checkpoint_of_an_older_layout_is_told_from_a_damaged_one(root, name):
    run = tiny_run(epochs=2)
    stop_after(run, 4) if name == "state" else runs.ensure_trained(run, CPU)
    path = runs.weights_path(run, "last") if name == "last" else runs.state_path(run)
    tensors, meta = load_tensors(path)
    good = path.read_bytes()
    for old in ({"digest": digest(tensors), "meta": json.dumps(meta)}, None):
        path.write_bytes(safetensors.torch.save(tensors, metadata=old))
        before = path.read_bytes()
        with pytest.raises(CorruptFile, match=rf"{name}.*not written by this version.*version that wrote it"):
            runs.load_model(run, "last", CPU)
        assert path.read_bytes() == before
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptFile, match="damaged"):
        runs.load_model(run, "last", CPU)
    path.write_bytes(good)
    runs.load_model(run, "last", CPU)


# --- half-trained weights ------------------------------------------------------------------------------------


def stop_after(run, batches: int, *part) -> None:
    """Train, or retrain to evaluate this part, so many batches and stop, as a signal or a time limit would."""
    done: list[int] = []
    options = Options(device="cpu", interrupted=lambda: len(done) >= batches, report=lambda *_: done.append(1))
    with pytest.raises(Interrupted):
        (runs.ensure_evaluated if part else runs.ensure_trained)(run, *part, options)


@pytest.mark.parametrize("again", [False, True])
def test_half_trained_weights_are_never_evaluated(root, again):
    run, part = tiny_run(epochs=2), (CLEAN,) if again else ()
    if again:
        runs.ensure_trained(run, CPU)
        shutil.rmtree(files.checkpoint_dir(run_id(run)))
    stop_after(run, 4, *part)
    assert runs.weights_path(run, "last").exists() and not runs.has_weights(run, "last")
    runs.ensure_evaluated(run, CLEAN, CPU)
    assert store.load_evaluation(run, CLEAN).record["weights"] == store.environment(run)["checkpoints"]["last"]


# --- divergence, memory, clocks ------------------------------------------------------------------------------


def poison(monkeypatch, step: int) -> None:
    """A weight becomes NaN before this step of the training."""
    real = train.Trainer.step

    def poisoned(self, index):
        if self.progress.step == step:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        real(self, index)

    monkeypatch.setattr(train.Trainer, "step", poisoned)


@pytest.mark.parametrize("stopped", [False, True], ids=["at the epoch's end", "when it is stopped"])
def test_divergence_names_epoch_and_step_and_keeps_the_last_good_checkpoint(root, monkeypatch, tmp_path, stopped):
    run, seen = tiny_run(epochs=3), []
    options = Options(device="cpu", report=lambda *a: seen.append(a), interrupted=lambda: stopped and len(seen) >= 5)
    with monkeypatch.context() as patch:
        poison(patch, 4)  # the second of three batches in epoch 2
        with pytest.raises(Diverged, match=r"epoch 2.* step (2|5)"):
            runs.ensure_trained(run, options)
    assert not store.is_trained(run) and store.history(run)["epoch"].tolist() == [1]
    runs.ensure_trained(run, CPU)
    resumed = store.environment(run)["checkpoints"]
    monkeypatch.setenv("FSR_ROOT", str(tmp_path / "other"))
    runs.ensure_trained(run, CPU)
    assert store.environment(run)["checkpoints"] == resumed


def test_weights_that_an_epochs_last_step_ruins_are_not_kept(root, monkeypatch):
    run = tiny_run(epochs=2)
    real = train.Stepper.step

    def ruin(self, *args, **options):
        real(self, *args, **options)
        if self.sums["steps"] == 3 and runs.state_path(run).exists():
            with torch.no_grad():
                next(self.bare.parameters()).fill_(float("inf"))

    monkeypatch.setattr(train.Stepper, "step", ruin)
    monkeypatch.setattr(train.Trainer, "_held_out", lambda self: {"held_clean_acc": 0.5, "held_robust_acc": 0.5})
    with pytest.raises(Diverged, match="epoch 2, at step 6"):
        runs.ensure_trained(run, CPU)
    assert all(torch.isfinite(v).all() for v in load_tensors(runs.weights_path(run, "last"))[0].values())


MEMORY = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError()]
MEMORY += [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")]


@pytest.mark.parametrize("error", MEMORY, ids=lambda e: type(e).__name__)
def test_running_out_of_memory_says_what_to_change_and_takes_nothing_along(root, monkeypatch, error):
    def short(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "step", short)
        failed = perform(Task(run=RUN, evaluations=(CLEAN,)), CPU)
        assert len(failed) == 1 and "out of memory at batch 32, float32" in failed[0] and "smaller batch" in failed[0]
    runs.ensure_trained(RUN, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "evaluate_attack", short)
        failed = perform(Task(run=RUN, evaluations=(CLEAN, FGSM), analyses=(Analysis(kind="masks"),)), CPU)
    assert len(failed) == 2 and all("out of memory" in line for line in failed)
    assert store.has_analysis(RUN, Analysis(kind="masks"))


@pytest.mark.parametrize("jump", [-1e7, 1e7])
def test_a_clock_that_jumps_changes_neither_limits_nor_seconds(root, monkeypatch, jump):
    clock = itertools.count(1e9, jump)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    options = Options(device="cpu", deadline=time.monotonic() + 1e5)
    runs.ensure_trained(RUN, options)
    runs.ensure_evaluated(RUN, CLEAN, options)
    assert 0 < store.environment(RUN)["seconds"] < 1e6 and 0 < store.history(RUN)["seconds"][0] < 1e6
    assert 0 <= store.load_evaluation(RUN, CLEAN).record["seconds"] < 1e6
    with pytest.raises(TimeUp):
        runs.ensure_evaluated(RUN, FGSM, Options(device="cpu", deadline=time.monotonic() - 1))


def test_a_training_killed_before_its_record_was_written_records_the_switches_that_it_used(root):
    runs.ensure_trained(RUN, CPU)
    path = files.run_dir(run_id(RUN)) / "env.json"
    used = store.environment(RUN)
    path.unlink()
    runs.ensure_trained(RUN, CPU)
    assert store.environment(RUN)["switches"] == used["switches"]
    assert store.environment(RUN)["checkpoints"] == used["checkpoints"]
