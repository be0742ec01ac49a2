"""Nothing is lost and nothing is fooled: kills, full disks, damaged files, divergence, memory, clocks."""

import contextlib
import errno
import itertools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_records import write_training
from tiny import FSR_HERE, results, stop_after, tiny_run

from fsr import evaluate, experiments, files, runs, store
from fsr.config import Analysis, Evaluation, run_id
from fsr.files import CorruptFile, FSRError, TimeUp, load_json, save_json
from fsr.runs import Options, Task, evaluating, perform
from fsr.tables import outcomes
from fsr.train import loop as train

CPU = Options(device="cpu")
RUN = tiny_run(epochs=1)
LONG = tiny_run(epochs=3)
WITH_FSR = replace(RUN, module=FSR_HERE)
CLEAN, FGSM, MASKS = Evaluation(attack="clean"), Evaluation(attack="fgsm"), Analysis(kind="masks")
MEMORY = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError()]
MEMORY += [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")]


def forked(work, *given) -> int:
    """The id of a child that does this and ends with code 1 if it raises."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work(*given)
        code = 0
    finally:
        logging.shutdown()
        os._exit(code)


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def whole_task(root: str, at_write: int | None = None, after: bool = False) -> None:
    """Train, evaluate in chunks and analyse; killed at a write, before or after the file gets its name."""
    writes, real = itertools.count(1), os.replace

    def renamed(*names):
        if next(writes) == at_write:
            if after:
                real(*names)
            os.kill(os.getpid(), signal.SIGKILL)
        real(*names)

    os.environ["FSR_ROOT"], os.replace = root, renamed
    evaluate.batch_size = lambda device: 10
    attacks = tuple(Evaluation(attack=name) for name in ("clean", "pgd10", "autoattack-ci"))
    run = replace(LONG, module=FSR_HERE)
    assert not perform(Task(run=run, parts=(*attacks, Analysis(kind="streams"))), CPU)


def killer(root: str, target: int) -> None:
    """Rounds of six forked children, killed at random moments and at writes; prints how many kills and rounds."""
    torch.set_num_threads(1)
    began = time.monotonic()
    assert end(forked(whole_task, f"{root}/whole")) == 0
    seconds, rng, killed, rounds = time.monotonic() - began, random.Random(0), 0, 0
    while killed < target:  # however fast the machine has become, the writes of every second round are sure hits
        broken, at_writes = f"{root}/broken-{rounds}", [rng.randint(1, 4), rng.randint(1, 4), *[None] * 4]
        for number, at_write in enumerate(at_writes[:: 1 if rounds % 2 else -1]):
            pid = forked(whole_task, broken, at_write, number % 2 == 0)
            if at_write is None:
                time.sleep(rng.uniform(0, seconds / 3))
                os.kill(pid, signal.SIGKILL)
            killed += end(pid) == -signal.SIGKILL
        assert end(forked(whole_task, broken)) == 0
        rounds += 1
    print(killed, rounds)


def both(what: str) -> None:
    """Two children train, or evaluate, the same; prints their exit codes."""
    torch.set_num_threads(1)
    evaluate.batch_size = lambda device: 1  # many chunks
    say = replace(CPU, report=lambda *event: print(event[1], file=sys.stderr))
    call = {"train": (runs.ensure_trained, LONG, say), "evaluate": (runs.ensure_evaluated, LONG, FGSM, say)}[what]
    children = [forked(*call) for _ in range(2)]
    print([end(pid) for pid in children])


def python(call: str) -> tuple[str, str]:
    """(last line of stdout, stderr) of a process that calls something of this file."""
    path = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {path!r}); import torch._dynamo, test_faults as t; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


def records_of(root: Path) -> dict:
    """Everything that must not depend on kills: weights, outcomes, histories and records without their seconds."""
    leave = {"sha256", "started", "finished", "seconds", "history_sha256", "commit", "dirty", "sittings"}
    out = results(root)
    for path in (p for p in root.rglob("*") if p.is_file() and ".locks" not in p.parts):
        if path.suffix == ".json":
            record = load_json(path)
            out[path.relative_to(root)] = {key: record[key] for key in record.keys() - leave}
        elif path.suffix != ".tmp" and path.name != "state.safetensors":
            out.setdefault(path.relative_to(root), "unexpected")
    return out


@pytest.mark.parametrize("target", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_work_goes_on_to_the_records_of_work_that_was_not(tmp_path, target):
    killed, rounds = map(int, python(f"t.killer({str(tmp_path)!r}, {target})")[0].split())
    whole = records_of(tmp_path / "whole")
    assert len(whole) == 3 + 3 + 2 * 3 + 1  # weights, run, evaluations, analysis
    assert killed >= target and all(records_of(tmp_path / f"broken-{i}") == whole for i in range(rounds))


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_of_two_processes_one_computes_and_the_other_waits_and_says_so(root, what):
    if what == "evaluate":
        runs.ensure_trained(LONG, CPU)
    codes, errors = python(f"t.both({what!r})")
    assert codes == "[0, 0]" and "waits for another process" in errors, errors
    assert len(store.history(LONG)) == 3


@pytest.mark.slow
def test_a_notebook_whose_runner_is_killed_leaves_the_good_execution_alone(root, tmp_path):
    from test_notebooks import write

    folder, mark = tmp_path / "repository" / "notebooks", tmp_path / "kernel"
    folder.mkdir(parents=True)
    code = f"import os\nopen({str(mark)!r}, 'w').write(str(os.getpid()))"
    call = "import os\nfrom fsr import notebooks\nprint(notebooks.execute(['00-setup'], 'ci', report=lambda _: None))"

    def runner(more: str) -> subprocess.Popen:
        write(folder, "00-setup", code + more)
        return subprocess.Popen([sys.executable, "-c", call], cwd=folder, stdout=subprocess.PIPE, text=True)

    assert runner("").communicate(timeout=3600)[0].strip() == "[]"
    target = root / "results" / "notebooks" / "ci" / "00-setup.ipynb"
    good = target.read_bytes()
    for pause in (0.0, 1.0, 3.0):
        mark.unlink()
        process = runner("\nimport time\ntime.sleep(600)")
        while not (mark.exists() and mark.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(pause)
        process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):  # in most places it has noticed and ended itself
            os.kill(int(mark.read_text()), signal.SIGKILL)
        assert target.read_bytes() == good
    assert runner("\n'whole again'").communicate(timeout=3600)[0].strip() == "[]"
    assert b"whole again" in target.read_bytes()


@pytest.mark.parametrize("number, says", [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only")])
def test_a_full_or_read_only_disk_is_said_and_earlier_results_are_whole(root, monkeypatch, number, says):
    """From the moment on when a training has saved its first epoch."""
    assert perform(Task(run=RUN, parts=(CLEAN,)), CPU) == []
    before, tasks = records_of(root), (Task(run=LONG), Task(run=RUN, parts=(FGSM,)))

    def fsync(handle) -> None:
        if runs.state_path(LONG).exists():
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        for task in tasks:
            (line,) = perform(task, CPU)
            assert "cannot write" in line and says in line and "--root" in line
    assert not list(root.rglob("*.tmp")) and before.items() <= records_of(root).items() and not store.is_trained(LONG)
    assert [perform(task, CPU) for task in tasks] == [[], []] and len(store.history(LONG)) == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root with one finished run and one that was stopped in its second epoch, its history damaged."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(root))
        assert perform(Task(run=WITH_FSR, parts=(CLEAN, MASKS)), CPU) == []
        stop_after(4, runs.ensure_trained, LONG)
        (files.run_dir(run_id(LONG)) / "history.csv").write_text("epoch,seconds\n1,nonsense\n")
        save_json(evaluating.partial_path(WITH_FSR, FGSM), {"progress": {"done": 20, "correct": [False] * 20}})
    return root


def read_everything() -> None:
    assert store.runs()
    store.environment(WITH_FSR)
    store.history(WITH_FSR)
    store.load_evaluation(WITH_FSR, CLEAN)
    store.load_analysis(WITH_FSR, MASKS)
    outcomes.metrics(store.runs())
    for checkpoint in ("last", "best", "ema"):
        runs.load_model(WITH_FSR, checkpoint, CPU)


def spoilt(data: bytes, how: str) -> bytes:
    if how != "bit":
        return data[: len(data) // 2] if how == "half" else b""
    place = int(np.random.default_rng(len(data)).integers(len(data)))
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


@pytest.mark.parametrize("how", ["empty", "half", "bit"])
def test_every_damaged_file_is_named_and_left_as_it_is(finished, root, how):
    shutil.copytree(finished, root, dirs_exist_ok=True)
    read_everything()
    own = [files.run_dir(run_id(WITH_FSR)), files.checkpoint_dir(run_id(WITH_FSR))]
    own_files = [p for folder in own for p in folder.rglob("*") if p.is_file() and p.name != "state.safetensors"]
    assert len(own_files) == 3 + 2 + 2 + 3 + 1
    for path in (*own_files, runs.state_path(LONG)):
        good = path.read_bytes()
        path.write_bytes(spoilt(good, how))
        with pytest.raises(CorruptFile, match=path.stem):
            read_everything()
            runs.ensure_evaluated(WITH_FSR, FGSM, CPU)
            runs.ensure_trained(LONG, CPU)
        failed = perform(Task(run=WITH_FSR, parts=(CLEAN, MASKS)), CPU)
        assert not failed or all("move it away" in line or "cannot be read" in line for line in failed)
        assert path.read_bytes() == spoilt(good, how)
        path.write_bytes(good)
    read_everything()
    runs.ensure_trained(LONG, CPU)
    assert store.history(LONG)["epoch"].tolist() == [1, 2, 3]
    runs.ensure_evaluated(WITH_FSR, FGSM, CPU)  # what was begun names no weights, so it is not used
    assert store.load_evaluation(WITH_FSR, FGSM).correct.any()


@pytest.mark.parametrize("name", ["config.json", "env.json", "history.csv"])
def test_status_counts_what_is_recorded_and_names_a_damaged_record(name, root):
    good, bad = experiments.SETS["ci"]["whitebox"][:2]
    for run in (good, bad):
        store.save_config(run)
        write_training(run, [{"epoch": 1, "seconds": 1.0}], seconds=10.0, hardware={"device": "cpu"})
    frame = runs.status("ci").set_index("id")
    assert frame.loc[run_id(good), ["run", "state"]].tolist() == ["AT, seed 0", "partial"]
    assert frame.loc[run_id(good), "recorded"].startswith("1/")
    assert frame["state"].value_counts().to_dict() == {"missing": len(frame) - 2, "partial": 2}
    assert (good, 1.0) in runs.seconds_per_epoch("cpu") and runs.seconds_per_epoch("cuda") == []
    path = files.run_dir(run_id(bad)) / name
    path.write_bytes(spoilt(path.read_bytes(), "half"))
    with pytest.raises(CorruptFile, match=name):
        runs.status("ci")


def test_weights_of_another_run_or_kind_are_refused(root):
    other = tiny_run(epochs=1, seed=1)
    for run in (RUN, other):
        runs.ensure_trained(run, CPU)
    path, state = runs.weights_path(RUN, "last"), runs.state_path(RUN)
    for foreign in (runs.weights_path(other, "last"), runs.weights_path(RUN, "ema")):
        shutil.copy(foreign, path)
        with pytest.raises(CorruptFile, match="holds the weights of"):
            runs.ensure_evaluated(RUN, CLEAN, CPU)
    shutil.copy(runs.state_path(other), state)
    path.unlink()
    with pytest.raises(CorruptFile, match=f"belongs to {run_id(other)}"):
        runs.ensure_evaluated(RUN, CLEAN, CPU)
    assert not store.has_record(RUN, CLEAN)


@pytest.mark.parametrize("again", [False, True])
def test_half_trained_weights_are_never_evaluated(root, again):
    if again:
        runs.ensure_trained(LONG, CPU)
        shutil.rmtree(files.checkpoint_dir(run_id(LONG)))
    stop_after(4, *((runs.ensure_evaluated, LONG, CLEAN) if again else (runs.ensure_trained, LONG)))
    assert runs.state_path(LONG).exists() and not runs.has_weights(LONG, "last")
    runs.ensure_evaluated(LONG, CLEAN, CPU)
    assert store.load_evaluation(LONG, CLEAN).record["weights"] == store.environment(LONG)["checkpoints"]["last"]


@pytest.mark.parametrize("when", ["the epoch's end", "it is stopped", "the epoch's last step"])
def test_divergence_names_its_epoch_and_keeps_the_last_good_checkpoint(root, monkeypatch, tmp_path, when):
    seen, real, ruined = [], train.Trainer.step, 5 if when == "the epoch's last step" else 4  # of six in two epochs

    def poisoned(self, index):
        step = self.progress.step
        if step == ruined == 4:
            torch.nn.init.constant_(next(self.model.parameters()), float("nan"))
        real(self, index)
        if step == ruined == 5:
            torch.nn.init.constant_(next(self.model.parameters()), float("inf"))

    stopped = lambda: when == "it is stopped" and len(seen) >= 5  # noqa: E731
    options = Options(device="cpu", report=lambda *a: seen.append(a), interrupted=stopped)
    with monkeypatch.context() as patch, pytest.raises(FSRError, match=r"not finite.*epoch 2"):
        patch.setattr(train.Trainer, "step", poisoned)
        patch.setattr(train.Trainer, "_held_out", lambda self: {"held_clean_acc": 0.5, "held_robust_acc": 0.5})
        runs.ensure_trained(LONG, options)
    assert not store.is_trained(LONG) and store.history(LONG)["epoch"].tolist() == [1]
    runs.ensure_trained(LONG, CPU)
    resumed = store.environment(LONG)["checkpoints"]
    monkeypatch.setenv("FSR_ROOT", str(tmp_path / "other"))
    runs.ensure_trained(LONG, CPU)
    whole = store.environment(LONG)["checkpoints"]
    assert all(whole[name] == resumed[name] for name in ("last", "ema"))


@pytest.mark.parametrize("error", MEMORY, ids=lambda e: type(e).__name__)
def test_running_out_of_memory_says_what_to_change_and_takes_nothing_along(root, monkeypatch, error):
    def short(*_, **__):
        raise error

    task = Task(run=WITH_FSR, parts=(CLEAN, FGSM, MASKS))
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "step", short)
        (line,) = perform(task, CPU)
        assert "out of memory" in line and "smaller batch" in line
    runs.ensure_trained(WITH_FSR, CPU)
    monkeypatch.setattr(evaluating, "evaluate_attack", short)
    failed = perform(task, CPU)
    assert len(failed) == 2 and all("out of memory" in line for line in failed)
    assert task.missing() == ["last clean", "last fgsm"]


@pytest.mark.parametrize("jump", [-1e7, 1e7])
def test_a_clock_that_jumps_changes_neither_limits_nor_seconds(root, monkeypatch, jump):
    clock = itertools.count(1e9, jump)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    runs.ensure_evaluated(RUN, CLEAN, Options(device="cpu", deadline=time.monotonic() + 1e5))
    records = (store.environment(RUN), store.history(RUN).iloc[0], store.load_evaluation(RUN, CLEAN).record)
    assert all(0 <= record["seconds"] < 1e6 for record in records)
    with pytest.raises(TimeUp):
        runs.ensure_evaluated(RUN, FGSM, Options(device="cpu", deadline=time.monotonic() - 1))
