"""The runner: strict about parameters, never over sources, failures by name, nothing twice."""

import json
import os
import sys
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest

from fsr import experiments, files, notebooks
from fsr.files import FSRError, TimeUp, UsageError

PARAMETERS = 'profile = "demo"\nseeds: tuple[int, ...] | None = None  # annotated'


def write(folder, name: str, code: str) -> None:
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture
def sources(root, tmp_path, monkeypatch):
    folder = tmp_path / "repository" / "notebooks"
    folder.mkdir(parents=True)
    needs = {"00-setup": (), "01-broken": (), "02-fine": ()}
    monkeypatch.setattr(experiments, "NEEDS", needs)
    monkeypatch.chdir(folder)
    write(folder, "00-setup", "profile")
    write(folder, "01-broken", "raise ValueError('the reason')")
    write(folder, "02-fine", "1 + 1")
    return folder


def execute(*names: str, **options) -> tuple[list[str], list[str]]:
    """(Lines of failures, lines that were said)."""
    said: list[str] = []
    return notebooks.execute(list(names), "ci", report=said.append, **options), said


def executed(name: str) -> bytes:
    return (files.executed("ci") / f"{name}.ipynb").read_bytes()


def test_a_failing_notebook_is_named_with_its_last_error_and_the_others_run(sources):
    before = {p.name: p.read_bytes() for p in sources.iterdir()}
    failed, _ = execute("00-setup", "01-broken", "02-fine")
    assert len(failed) == 1 and failed[0].startswith("01-broken: ValueError: the reason")
    assert sorted(p.name for p in files.executed("ci").iterdir()) == ["00-setup.ipynb", "02-fine.ipynb"]
    assert {p.name: p.read_bytes() for p in sources.iterdir()} == before
    book, good = json.loads(executed("00-setup")), executed("02-fine")
    assert "'ci'" in str(book["cells"][-1]["outputs"]) and str(sources) not in json.dumps(book)
    for code, says in (("1 / 0", "^ZeroDivisionError"), ("import sys\nsys.exit(0)", "called sys.exit")):
        write(sources, "02-fine", code)
        with pytest.raises(FSRError, match=says):
            notebooks.run_notebook("02-fine", "ci")
        assert executed("02-fine") == good  # a failure never replaces a good execution
    write(sources, "02-fine", "from fsr.config import Run\nRun(eps=8)")
    with pytest.raises(FSRError, match="UsageError: "):
        notebooks.run_notebook("02-fine", "ci")
    cells = json.loads((files.results() / f".failed/ci/02-fine-{os.getpid()}.ipynb").read_bytes())["cells"]
    (line,) = cells[-1]["outputs"][0]["traceback"]  # one line, without the frames above it
    assert line.startswith("UsageError: ") and line.count("\n") == 0
    (sources / "00-setup.ipynb").write_text("<<<<<<< ours\n{}")
    write(sources, "02-fine", "1 + 1")
    failed, said = execute("00-setup", "02-fine")
    assert len(failed) == 1 and failed[0].startswith("00-setup: ") and said[1] == "02-fine: executed"


def test_an_unchanged_notebook_is_not_executed_again(sources, root, monkeypatch):
    said = execute("02-fine")[1] + execute("02-fine")[1]
    write(sources, "02-fine", "1 + 2")
    said += execute("02-fine")[1]
    assert said == [f"02-fine: {state}" for state in ("executed", "unchanged", "executed")]
    keys = [notebooks.key("02-fine", "ci")]
    (root / "results" / "paper_values.csv").write_text("table,dataset,backbone,row,metric,value,unit,note\n")
    keys.append(notebooks.key("02-fine", "ci"))
    monkeypatch.setattr(notebooks.metadata, "version", lambda name: "99.0")
    assert len({*keys, notebooks.key("02-fine", "ci")}) == 3  # the paper's cells and libraries count as well


def test_after_a_signal_or_the_time_limit_no_other_notebook_begins(sources):
    check = Mock(side_effect=[None, TimeUp("now")])  # before the second notebook
    with pytest.raises(TimeUp):
        execute("00-setup", "02-fine", check=check)
    assert [path.stem for path in files.executed("ci").iterdir()] == ["00-setup"]


def test_two_commands_share_no_file_and_kernels_have_time_to_start(sources, monkeypatch):
    book = nbformat.v4.new_notebook(metadata={"papermill": {}})
    monkeypatch.setattr(notebooks.papermill, "execute_notebook", run := Mock(return_value=book))
    notebooks.run_notebook("02-fine", "ci")
    (_, scratch, _), how = run.call_args
    assert str(os.getpid()) in Path(scratch).stem and how["start_timeout"] >= 600


def test_two_at_once_run_side_by_side_each_in_the_sources_folder(sources, tmp_path, monkeypatch):
    """Each waits for the other, so that one after the other would fail; the caller's folder is as before."""
    code = "import os, pathlib, time\nfrom itertools import count\npathlib.Path({!r}).touch()\nfor i in count():\n"
    code += "    if pathlib.Path({!r}).exists():\n        break\n    assert i < 6000\n    time.sleep(0.05)\nos.getcwd()"
    a, b = (str(tmp_path / name) for name in "ab")
    write(sources, "00-setup", code.format(a, b))
    write(sources, "02-fine", code.format(b, a))
    (sources.parent / "below").mkdir()
    monkeypatch.chdir(sources.parent / "below")
    failed, said = execute("00-setup", "02-fine", workers=2)
    assert failed == [] and said == ["00-setup: executed", "02-fine: executed"]
    assert Path.cwd() == sources.parent / "below"
    assert all(repr(str(sources)) in executed(name).decode() for name in ("00-setup", "02-fine"))


@pytest.mark.parametrize("name", ["{x}", "out-{profile}"])
def test_kernels_are_this_interpreter_and_find_what_the_command_finds(sources, tmp_path, monkeypatch, name):
    """Whatever kernels the site has, with PYTHONPATH kept, a relative FSR_DATA, and braces that are no placeholders."""
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "site", "language": "python"}
    (tmp_path / "site/kernels/python3").mkdir(parents=True)
    (tmp_path / "site/kernels/python3/kernel.json").write_text(json.dumps(spec))
    (tmp_path / "library").mkdir()
    (tmp_path / "library/only_here.py").write_text("")
    changes = {"JUPYTER_PATH": tmp_path / "site", "PYTHONPATH": tmp_path / "library", "FSR_ROOT": tmp_path / name}
    for variable, value in {**changes, "FSR_DATA": "sets"}.items():
        monkeypatch.setenv(variable, str(value))
    write(sources, "02-fine", "import only_here, sys\nfrom fsr import files\nprint(sys.executable, files.data())")
    monkeypatch.chdir(sources.parent)
    assert execute("02-fine")[0] == []
    assert f"{sys.executable} {sources.parent / 'sets'}" in executed("02-fine").decode()
    assert (tmp_path / name / "results/notebooks/ci/02-fine.ipynb").exists()


def test_parameters_are_passed_on_annotated_ones_too_and_unknown_ones_refused(sources):
    write(sources, "02-fine", "seeds")
    book = nbformat.read(notebooks.run_notebook("02-fine", "ci", seeds=[3, 4]), as_version=4)
    assert book.cells[-1].outputs[0]["data"]["text/plain"] == "[3, 4]"
    assert execute("02-fine")[1] == ["02-fine: executed"]  # the usual one
    with pytest.raises(UsageError, match="no parameter seed; it has profile, seeds"):
        notebooks.run_notebook("02-fine", "ci", seed=3)


def test_an_unknown_notebook_is_refused_with_the_choices(sources):
    for wrong in ("99", "", " , ", "02-fin"):
        with pytest.raises(UsageError, match=r"choose from .*02-fine"):
            notebooks.numbered(wrong)
    assert notebooks.numbered("2,00-setup") == ["00-setup", "02-fine"]
