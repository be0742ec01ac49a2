"""One seed's pair by many processes at once: right calls, failures started again, everything comes home."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import chance, crew, session
from fsr import experiments, runs, store
from fsr.config import Evaluation

REPOSITORY = Path(chance.__file__).parents[1]
SMALL = ["--profile=ci", "--seed=1", "--checkpoint=last", "--attack=autoattack-ci"]
SMALL += ["--images=32", "--members=2", "--device=cpu"]


def given(tmp_path, *more: str):
    return chance.parsed(["--minutes", "5", "--out", str(tmp_path), *SMALL, *more])


def test_every_process_is_a_right_call_and_together_they_do_the_pair(root, tmp_path):
    found = chance.lanes(given(tmp_path, "--no-retrain"))
    assert [lane.behind for lane in found] == [False] * 2 + [True] * 4
    pair = session.pair_of("ci", 1)
    assert [run.seed for run in pair] == [1, 1]
    sessions = [session.parsed([*lane.arguments, "--minutes", "1"]) for lane in found[:2]]
    asked = [task for each in sessions for _, tasks in session.chosen(each) for task in tasks]
    assert {task.run for task in asked} == set(pair)
    evaluations = {e for task in asked for e in task.evaluations}
    assert evaluations and not any(e.attack.startswith("autoattack") for e in evaluations)
    assert all(each.no_retrain and each.sharing == 6 and each.device == "cpu" for each in sessions)
    crews = [crew.parsed([*lane.arguments, "--minutes", "1"]) for lane in found[2:]]
    assert {(each.run, each.part) for each in crews} == {(store.id_of(run), (k, 2)) for run in pair for k in (1, 2)}
    assert all(each.wait and each.images == 32 and each.attack == "autoattack-ci" for each in crews)


class Shell(chance.Lane):
    """A process that runs shell commands, the next one at each start."""

    def start(self, deadline: float) -> None:
        commands = self.arguments
        with self.log.open("a") as log:
            self.process = subprocess.Popen(["sh", "-c", commands[min(self.starts, len(commands) - 1)]], stdout=log)
        self.starts += 1


def test_what_fails_is_started_again_three_times_at_most_and_a_wrong_call_never(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chance, "GRACE", 0.5)
    monkeypatch.setattr(chance, "LEAST", 0.0)
    commands = {"good": ["true"], "once": ["echo broken; exit 1", "true"], "never": ["exit 1"], "wrong": ["exit 2"]}
    some = {name: Shell(name, "", lines, log=tmp_path / name) for name, lines in commands.items()}
    some["stuck"] = Shell("stuck", "", ["trap '' TERM; sleep 600"], log=tmp_path / "stuck")
    deadline = time.monotonic() + 6
    for lane in some.values():
        lane.start(deadline)
    told = chance.watch(list(some.values()), deadline)
    assert {name: lane.starts for name, lane in some.items()} == {
        "good": 1, "once": 2, "never": 3, "wrong": 1, "stuck": 1,
    }  # fmt: skip
    assert [line.split(":")[0] for line in told] == ["never", "wrong", "stuck"]
    assert some["stuck"].code() == -signal.SIGKILL
    assert "once: started again after: broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, told", [("--seed=7", "type --seed with one of 0, 1"), ("--profile=x", "choose one of")]
)
def test_a_wrong_seed_or_profile_is_one_line_and_2_before_anything_starts(
    root, tmp_path, monkeypatch, capsys, wrong, told
):
    monkeypatch.setattr("sys.argv", ["chance", "--minutes", "1", "--out", str(tmp_path / "out"), *SMALL, wrong])
    assert chance.main() == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and told in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_whole_and_started_again_it_brings_everything_home(root, tmp_path):
    line = [sys.executable, "-m", "benchmarks.chance", "--minutes", "8", "--out", str(tmp_path), *SMALL]
    line += ["--root", str(root), "--weights", "last"]
    whole = subprocess.Popen(line, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL)
    pair = session.pair_of("ci", 1)
    until = time.monotonic() + 300
    while not any(store.is_trained(run) for run in pair) and time.monotonic() < until:
        time.sleep(0.2)
    os.killpg(whole.pid, signal.SIGKILL)
    whole.wait()
    assert not all(store.has_eval(run, Evaluation(attack="cw", checkpoint="last")) for run in pair)
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for run in pair:
        strong = Evaluation(attack="autoattack-ci", checkpoint="last", images=32)
        asked = [e for e in experiments.evaluations("ci", "all", run) if session._no_autoattack(e)]
        assert asked and all(store.has_eval(run, e) for e in (strong, *asked))
        assert store.load_eval(run, strong).record["weights"] == store.environment(run)["checkpoints"]["last"]
        assert not list(runs.weights_path(run, "last").parent.glob("partial-*"))
    with tarfile.open(tmp_path / "records.tar.gz") as tar:
        names = tar.getnames()
    for run in pair:
        assert f"results/runs/{store.id_of(run)}/evals/last-autoattack-ci-n32.json" in names
    assert [path.name for path in sorted(tmp_path.glob("weights*"))] == ["weights-last.00"]
