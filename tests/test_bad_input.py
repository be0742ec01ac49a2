"""Wrong input of every kind is one clear error, and never a number that means something else."""

import csv
import io
import json
import os
import sys

import nbformat
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import FSR_HERE, tiny_run

from fsr import __main__ as cli
from fsr import evaluate, files, notebooks, reference, runs, store
from fsr.config import Analysis, Evaluation, Run, run_from_dict, run_id, to_dict
from fsr.files import FSRError, UsageError
from fsr.models import model_of
from fsr.runs import import_official

unchecked = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
few = settings(max_examples=60, deadline=None, suppress_health_check=unchecked)
NAMES = ["..", "../../x", "a/b", "a\\b", "a\0b", "", "demo", "-p", "--root", "NaN"]
text = st.text(max_size=30) | st.sampled_from(NAMES)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | text
JSON = st.recursive(PLAIN, lambda x: st.lists(x, max_size=3) | st.dictionaries(text, x, max_size=3), max_leaves=6)
FIELDS = tuple(to_dict(Run()))


# --- configs -------------------------------------------------------------------------------------------------


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
def test_no_name_of_an_evaluation_leaves_the_results_folder(tmp_path, attack, surrogate, intervention):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(tmp_path))
        try:
            evaluation = Evaluation(attack=attack, surrogate=surrogate, intervention=intervention)
            path = store.record_path(tiny_run(), evaluation)
        except UsageError:
            return
        assert path.resolve().parent == files.run_dir(run_id(tiny_run())).resolve() / "evals"


@few
@given(text)
def test_no_id_from_outside_leaves_the_results_folder(tmp_path, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(tmp_path))
        for where in (files.run_dir, files.checkpoint_dir, files.tables, files.figures, files.executed, files.report):
            try:
                path = where(name)
            except UsageError:
                continue
            assert tmp_path.resolve() in path.resolve().parents
        with pytest.raises(FSRError):
            store.config_of(name)


def test_an_evaluation_that_is_no_file_name_is_refused_before_anything_is_made(root):
    for evaluation in (Evaluation(attack="../../../x"), Evaluation(attack="clean", intervention="a/../../b")):
        with pytest.raises(UsageError, match="cannot name a record"):
            runs.ensure_evaluated(tiny_run(), evaluation, runs.Options(device="cpu"))
    assert not list(root.iterdir())


# --- the command line ----------------------------------------------------------------------------------------

WORDS = "run-all train evaluate audit status report data compare whitebox -q -v --only".split()  # noqa: SIM905


@settings(few, max_examples=40)
@given(st.lists(st.sampled_from(WORDS) | text.filter(lambda t: "\0" not in t), max_size=4))
def test_any_arguments_end_in_an_exit_code_and_never_in_a_traceback(tmp_path, capsys, arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(tmp_path / "root"))
        patch.setattr(sys, "argv", ["fsr", *arguments, "--dry-run"])  # nothing that computes gets this far without it
        with pytest.raises(SystemExit) as done:
            cli.main()
    code, said = done.value.code or 0, capsys.readouterr().err
    assert code in (0, 1, 2) and "Traceback" not in said and bool(said.strip()) >= bool(code)
    assert not (tmp_path / "root").exists()


# --- the paper's cells ---------------------------------------------------------------------------------------

CELL = text | st.sampled_from(["T1", "T9", "cifar10", "percent", "points", "clean", "1e400", "-1", "nan", "50.5", "at"])


@few
@given(st.lists(st.lists(CELL, min_size=7, max_size=9), max_size=3), st.booleans())
def test_any_table_of_cells_is_read_whole_or_refused_by_line(tmp_path, rows, header):
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(reference.COLUMNS if header else ["nothing"])
    writer.writerows(rows)
    path = tmp_path / "paper_values.csv"
    path.write_text(file.getvalue(), encoding="utf-8")
    try:
        frame = reference.paper_values(path)
    except UsageError as error:
        assert "paper_values.csv" in str(error)
        return
    assert header and frame["value"].between(-100, 1e12).all() and frame["unit"].ne("").all()


# --- imported checkpoints ------------------------------------------------------------------------------------


class Bomb:
    """Makes a folder `ran` when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@settings(few, max_examples=25)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_no_checkpoint(tmp_path, blob, zipped):
    file = tmp_path / "authors.pth"
    file.write_bytes((b"PK\x03\x04" if zipped else b"\x80\x02") + blob)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(tmp_path / "root"))
        with pytest.raises(UsageError):
            import_official(file, "resnet18", "cifar10")
        assert not store.runs()


STATES = [{}, [1, 2, 3], {"state_dict": {"linear.weight": Bomb()}}]
STATES += [{"linear.weight": weight} for weight in (torch.zeros(10), torch.zeros(10, 7), "text")]
STATES += [{"linear.weight": torch.zeros(10, 512), "conv1.weight": torch.zeros(64, 3, 5, 5)}]
STATES += [{"linear.weight": torch.zeros(10, 512), "unknown.weight": torch.zeros(3)}]


@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_code_and_weights_of_wrong_shapes_make_no_run_and_run_nothing(root, tmp_path, monkeypatch, state):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "authors.pth"
    torch.save(state, file)
    with pytest.raises(UsageError, match=r"authors\.pth") as found:
        import_official(file, "resnet18", "cifar10")
    assert len(str(found.value).splitlines()) == 1 and not store.runs() and not (tmp_path / "ran").exists()


# --- notebooks -----------------------------------------------------------------------------------------------


@few
@given(name=text, profile=text)
def test_no_notebook_or_profile_from_outside_is_executed_or_written(tmp_path, name, profile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(tmp_path))
        with pytest.raises(UsageError):
            notebooks.run_notebook(name, "ci")
        if profile != "demo":
            with pytest.raises(UsageError):
                notebooks.key("00-setup", profile)
        assert not list(tmp_path.iterdir())


@few
@given(st.dictionaries(st.text(min_size=1, max_size=9).filter(lambda k: k != "profile"), JSON, min_size=1, max_size=2))
def test_unknown_parameters_of_a_notebook_are_refused(tmp_path, parameters):
    folder = tmp_path / "repository" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    cell = nbformat.v4.new_code_cell('profile = "demo"', metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[cell])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "00-setup.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(UsageError, match="no parameter"):
            notebooks.check_parameters("00-setup", parameters)


# --- images and labels ---------------------------------------------------------------------------------------

X = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
Y = torch.arange(4)


STORED = [(X.float() / 255, Y, "uint8"), (X.int(), Y, "uint8"), (X[0], Y, "N, C, H, W"), (X[:0], Y[:0], "empty")]
STORED += [(X, Y[:3], "do not fit"), (X, Y.float(), "labels"), (X, Y + 7, "in 0..9"), (X, Y - 1, "labels")]


@pytest.mark.parametrize("attack", ["clean", "autoattack-ci"])
@pytest.mark.parametrize("x, y, says", STORED)
def test_an_evaluation_refuses_what_would_give_a_wrong_number(attack, x, y, says):
    run, before = tiny_run(module=FSR_HERE), x.clone()
    with pytest.raises(UsageError, match=says):
        net, evaluation = model_of(run, num_classes=10).eval(), Evaluation(attack=attack)
        evaluate.evaluate_attack(net, x, y, torch.arange(len(x)), run=run, evaluation=evaluation)
    assert torch.equal(x, before)


def test_unknown_kinds_of_analyses_and_checkpoints_are_refused():
    for wrong in ({"kind": "../x"}, {"kind": "masks", "checkpoint": "../last"}, {"kind": "masks", "images": "all"}):
        with pytest.raises(UsageError):
            Analysis(**wrong)
