"""How long what is missing takes."""

import sys

import pytest

from fsr import files, store
from fsr.config import Evaluation, Run, replace, run_id
from fsr.experiments import cost, fleet
from fsr.files import save_json
from fsr.runs import Task
from fsr.runs.costing import cost_table, seconds_left, speed_here

RUN = Run(epochs=1)
LOOK = Evaluation(attack="pgd20")


def finish(run: Run, seconds: float, device: str, **more) -> None:
    store.save_config(run)
    path = files.run_dir(run_id(run)) / "env.json"
    record = {"run_id": run_id(run), "seconds": seconds, "hardware": {"device": device}, "checkpoints": {}}
    save_json(path, record | more)


def test_a_training_that_shared_its_device_is_no_measure_of_speed(root):
    finish(RUN, 10.0, "cuda", sittings=[{"sharing": 2}, {}])
    finish(replace(RUN, seed=1), 10.0, "cuda", sharing=2)
    assert speed_here("cuda") is None
    finish(replace(RUN, width=8), 1.0, "cuda")
    assert speed_here("cuda") == pytest.approx(cost.training_flops(replace(RUN, width=8)))


def test_speed_is_that_of_the_largest_network_finished_on_such_a_device(root):
    assert speed_here("cuda") is None
    finish(replace(RUN, width=8), 1.0, "cuda")
    finish(RUN, 10.0, "cuda")
    finish(replace(RUN, seed=1), 1000.0, "cpu")
    assert speed_here("cuda") == pytest.approx(cost.training_flops(RUN) / 10.0)
    assert cost_table("ci")[1] is True


def test_an_imported_run_has_no_speed_and_does_not_stop_the_others(root):
    imported = replace(RUN, imported="0123456789abcdef")
    store.save_config(imported)
    record = {"run_id": run_id(imported), "seconds": None, "checkpoints": {}}
    save_json(files.run_dir(run_id(imported)) / "env.json", record)
    assert speed_here("cpu") is None
    finish(RUN, 10.0, "cpu")
    assert speed_here("cpu") == pytest.approx(cost.training_flops(RUN) / 10.0)


@pytest.mark.parametrize("gone", [False, True])
def test_only_what_is_missing_counts_and_a_run_in_two_tasks_trains_once(root, monkeypatch, gone):
    """A finished run whose weights are gone is trained again for what is missing."""
    monkeypatch.setattr(sys.modules[Task.__module__], "has_weights", lambda *_: not gone)
    todo = [Task(run=RUN, evaluations=(LOOK,)), Task(run=RUN, evaluations=(replace(LOOK, attack="fgsm"),))]
    looks = [fleet.evaluation_seconds(RUN, e, 1e12) for task in todo for e in task.evaluations]
    assert seconds_left(todo, 1e12, 1) == pytest.approx(cost.estimate(RUN, 1e12) + sum(looks))
    finish(RUN, 10.0, "cuda")
    again = gone * cost.estimate(RUN, 1e12)
    assert seconds_left(todo, 1e12, 1) == pytest.approx(again + sum(looks))
    store.save_evaluation(RUN, LOOK, [0], [True])
    assert seconds_left(todo, 1e12, 64) == pytest.approx(again + looks[1])
