"""Wrong input of every kind is one clear error, and never a number that means something else."""

import contextlib
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import FSR_HERE, tiny_run

from fsr import __main__ as cli
from fsr import evaluate, files, runs, store
from fsr.config import Evaluation, Run, run_from_dict, run_id, to_dict
from fsr.files import FSRError, UsageError
from fsr.models import model_of
from fsr.runs import import_official

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
text = st.text(max_size=30) | st.sampled_from(["..", "../../x", "a/b", "a\\b", "a\0b", "", "demo", "--root", "NaN"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | text
JSON = st.recursive(PLAIN, lambda x: st.lists(x, max_size=3) | st.dictionaries(text, x, max_size=3), max_leaves=6)
FIELDS = tuple(to_dict(Run()))
WORDS = "run-all train evaluate audit status report data compare whitebox -q -v --only".split()  # noqa: SIM905
X = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
Y = torch.arange(4)
STORED = [(X.float() / 255, Y, "uint8"), (X.int(), Y, "uint8"), (X[0], Y, "do not fit"), (X[:0], Y[:0], "empty")]
STORED += [(X, Y[:3], "do not fit"), (X, Y.float(), "labels"), (X, Y + 7, "in 0..9"), (X, Y - 1, "labels")]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """The root of all examples, which nothing here may make."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("bad") / "root"
        patch.setenv("FSR_ROOT", str(root))
        yield root
    assert not root.exists()


@few
@given(JSON | st.dictionaries(st.sampled_from([*FIELDS, "tau", ""]), JSON, max_size=4))
def test_any_json_is_a_run_with_a_safe_id_or_refused(value):
    try:
        run = run_from_dict(value)
    except UsageError:
        return
    name = run_id(run)
    assert not set(name) & set("/\\\0") and run_from_dict(json.loads(json.dumps(to_dict(run)))) == run


@few
@given(text, text, text)
def test_no_name_leaves_the_results_folder(place, name, surrogate, intervention):
    with pytest.raises(UsageError, match="cannot name a record"):
        runs.ensure_evaluated(tiny_run(), Evaluation(attack="../" + name), runs.Options(device="cpu"))
    with contextlib.suppress(UsageError):
        evaluation = Evaluation(attack=name, surrogate=surrogate, intervention=intervention)
        path = store.record_path(tiny_run(), evaluation)
        assert path.resolve().parent == files.run_dir(run_id(tiny_run())).resolve() / "evals"
    for where in (files.run_dir, files.checkpoint_dir, files.tables, files.figures, files.executed, files.report):
        with contextlib.suppress(UsageError):
            assert place in where(name).resolve().parents
    with pytest.raises(FSRError):
        store.config_of(name)


@settings(few, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(WORDS) | text.filter(lambda t: "\0" not in t), max_size=4))
def test_any_arguments_end_in_an_exit_code_and_never_in_a_traceback(capsys, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fsr", *arguments, "--dry-run"])  # nothing that computes gets this far without it
        with pytest.raises(SystemExit) as done:
            cli.main()
    code, said = done.value.code or 0, capsys.readouterr().err
    assert code in (0, 1, 2) and "Traceback" not in said and bool(said.strip()) >= bool(code)


class Bomb:
    """Makes a folder `ran` when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


STATES = [{}, [1, 2, 3], {"state_dict": {"linear.weight": Bomb()}}, {"linear.weight": "text"}]
STATES += [{"linear.weight": torch.zeros(10, 7)}, {"linear.weight": torch.zeros(10, 512), "unknown": torch.zeros(3)}]


@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_code_and_weights_of_wrong_shapes_make_no_run_and_run_nothing(tmp_path, monkeypatch, state):
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda state, name: Path(name).write_bytes(pickle.dumps(state))):
        save(state, "authors.pth")
        with pytest.raises(UsageError, match=r"^[^\n]*authors\.pth[^\n]*$"):
            import_official(tmp_path / "authors.pth", "resnet18", "cifar10")
    assert not store.runs() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("attack", ["clean", "autoattack-ci"])
@pytest.mark.parametrize("x, y, says", STORED)
def test_an_evaluation_refuses_what_would_give_a_wrong_number(attack, x, y, says):
    run, before = tiny_run(module=FSR_HERE), x.clone()
    with pytest.raises(UsageError, match=says):
        net, evaluation = model_of(run, num_classes=10).eval(), Evaluation(attack=attack)
        evaluate.evaluate_attack(net, x, y, torch.arange(len(x)), run=run, evaluation=evaluation)
    assert torch.equal(x, before)
