"""AutoAttack by several processes is AutoAttack by one: the same outcomes, whatever is killed on the way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import FSR_HERE, tiny_run

from benchmarks import crew
from fsr import evaluate, runs, store
from fsr.config import Evaluation

RUN = tiny_run(module=FSR_HERE)
AIM = Evaluation(attack="autoattack-ci", images=36)
REPOSITORY = Path(crew.__file__).parents[1]


@pytest.fixture
def trained(root):
    """A root with a trained run."""
    runs.ensure_trained(RUN)
    return root


def process(root, part: str, minutes: str = "3") -> subprocess.Popen:
    """A member, with batches of one."""
    line = "import sys; from fsr import evaluate; from fsr.runs import evaluating; from benchmarks import crew; "
    line += "evaluate.batch_size = evaluating.batch_size = lambda *_: 1; sys.exit(crew.main())"
    given = f"{store.id_of(RUN)} {part} --attack autoattack-ci --images 36 --minutes {minutes} --device cpu --root"
    call = [sys.executable, "-c", line, *given.split(), str(root)]
    return subprocess.Popen(call, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record() -> tuple[dict, dict]:
    text = store.eval_path(RUN, AIM).read_text()
    with np.load(store.eval_path(RUN, AIM).with_suffix(".npz")) as arrays:
        return json.loads(text), {name: arrays[name].tolist() for name in arrays.files}


def test_three_processes_record_what_one_does_and_clear_up(trained, monkeypatch):
    monkeypatch.setattr(evaluate, "batch_size", lambda *_: 1)
    monkeypatch.setattr("fsr.runs.evaluating.batch_size", lambda *_: 1)
    runs.ensure_evaluated(RUN, AIM)
    expected, outcomes = record()
    assert 0 < expected["correct"] < expected["n"]
    for path in (store.eval_path(RUN, AIM), store.eval_path(RUN, AIM).with_suffix(".npz")):
        path.unlink()
    members = [process(trained, f"{k}/3") for k in (1, 2, 3)]
    said = [member.communicate(timeout=300) for member in members]
    assert [member.returncode for member in members] == [0, 0, 0], said
    found, ours = record()
    assert ours == outcomes
    assert {k: found.get(k) for k in ("correct", "flips", "flags")} == {
        k: expected.get(k) for k in ("correct", "flips", "flags")
    }
    assert all("batch from" in out for out, _ in said)  # each had its part
    assert not list(runs.weights_path(RUN, "last").parent.glob("partial-*"))


@pytest.mark.slow
def test_a_member_that_is_gone_is_waited_for_until_time_is_up_and_its_part_is_done_by_the_next(trained):
    alone = process(trained, "1/2", "0.2")
    out, err = alone.communicate(timeout=120)
    assert alone.returncode == 1 and "time limit" in err and "batch from" in out
    kept = sorted(path.name for path in runs.weights_path(RUN, "last").parent.glob("partial-*-apgd-ce-*"))
    assert kept and not store.has_eval(RUN, AIM)
    both = [process(trained, f"{k}/2") for k in (1, 2)]
    said = [member.communicate(timeout=300) for member in both]
    assert [member.returncode for member in both] == [0, 0], said
    assert store.has_eval(RUN, AIM)
    first = said[0][0]
    assert not any(f"apgd-ce: the batch from {int(name[-11:-5])} on" in first for name in kept)  # not attacked twice


@pytest.mark.slow
def test_a_member_that_is_killed_is_started_again_while_the_other_waits(trained):
    waiting, killed = process(trained, "1/2"), process(trained, "2/2")
    assert killed.stdout.readline().startswith("apgd-ce: the batch from 1 on")
    killed.kill()
    killed.communicate()
    again = process(trained, "2/2")
    said = [member.communicate(timeout=300)[0] for member in (waiting, again)]
    assert (waiting.returncode, again.returncode) == (0, 0) and store.has_eval(RUN, AIM)
    assert "apgd-ce: the batch from 1 on" not in said[1]  # it was done before the kill


def test_a_crew_without_weights_is_one_line_and_2(root, monkeypatch, capsys):
    store.save_config(RUN)
    monkeypatch.setattr("sys.argv", ["crew", store.id_of(RUN), "1/2", "--minutes", "1", "--root", str(root)])
    assert crew.main() == 2
    assert capsys.readouterr().err.strip().endswith("has no last weights here; put them there, then start its crew")
