"""The runner: strict about parameters, never over sources, failures by name, nothing twice."""

import json
import sys
from pathlib import Path

import nbformat
import pytest

from fsr import experiments, files, notebooks
from fsr.files import FSRError, UsageError

PARAMETERS = 'profile = "demo"\nseeds: tuple[int, ...] | None = None  # annotated'


def write(folder, name: str, code: str) -> None:
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture
def sources(root, tmp_path, monkeypatch):
    """Three small notebooks in place of the real ones."""
    folder = tmp_path / "repository" / "notebooks"
    folder.mkdir(parents=True)
    needs = {"00-setup": (), "01-broken": (), "02-fine": ()}
    monkeypatch.setattr(experiments, "NEEDS", needs)
    monkeypatch.setattr(experiments, "NOTEBOOKS", tuple(needs))
    monkeypatch.chdir(folder)
    write(folder, "00-setup", "profile")
    write(folder, "01-broken", "raise ValueError('the reason')")
    write(folder, "02-fine", "1 + 1")
    return folder


def test_a_failing_notebook_is_named_with_its_last_error_and_the_others_run(sources):
    before = {p.name: p.read_bytes() for p in sources.iterdir()}
    failed = notebooks.execute(["00-setup", "01-broken", "02-fine"], "ci", report=lambda _: None)
    assert len(failed) == 1 and failed[0].startswith("01-broken: ValueError: the reason")
    assert sorted(p.name for p in files.executed("ci").iterdir()) == ["00-setup.ipynb", "02-fine.ipynb"]
    assert {p.name: p.read_bytes() for p in sources.iterdir()} == before
    book = json.loads((files.executed("ci") / "00-setup.ipynb").read_text())
    assert "'ci'" in str(book["cells"][-1]["outputs"])
    assert str(sources) not in json.dumps(book)


def test_a_source_that_is_no_notebook_is_named_and_the_others_run(sources):
    (sources / "01-broken.ipynb").write_text("<<<<<<< ours\n{}")
    failed = notebooks.execute(["01-broken", "02-fine"], "ci", report=lambda _: None)
    assert len(failed) == 1 and failed[0].startswith("01-broken: ")
    assert [p.name for p in files.executed("ci").iterdir()] == ["02-fine.ipynb"]


def test_after_a_signal_no_other_notebook_begins(sources):
    said, signals = [], iter([False])  # none when the first notebook begins, one ever after
    more = {"interrupted": lambda: next(signals, True), "report": said.append, "force": True}
    assert notebooks.execute(["00-setup", "02-fine"], "ci", **more) == []
    assert said == ["00-setup: executed", "02-fine: left out"]
    assert [p.name for p in files.executed("ci").iterdir()] == ["00-setup.ipynb"]


def test_kernels_look_for_data_where_the_command_does(sources, monkeypatch):
    """A relative folder means another one in the sources' folder, where kernels run."""
    monkeypatch.setenv("FSR_DATA", "sets")
    write(sources, "02-fine", "from fsr import files\nprint(files.data())")
    monkeypatch.chdir(sources.parent)
    here = files.data()
    assert notebooks.execute(["02-fine"], "ci", report=lambda _: None) == []
    assert str(here) in (files.executed("ci") / "02-fine.ipynb").read_text() and here.parent == sources.parent


def test_an_unchanged_notebook_is_not_executed_again_unless_forced(sources):
    said = []
    notebooks.execute(["02-fine"], "ci", report=said.append)
    notebooks.execute(["02-fine"], "ci", report=said.append)
    write(sources, "02-fine", "1 + 2")
    notebooks.execute(["02-fine"], "ci", report=said.append)
    notebooks.execute(["02-fine"], "ci", report=said.append, force=True)
    assert said == ["02-fine: executed", "02-fine: unchanged", "02-fine: executed", "02-fine: executed"]


def test_two_at_once_run_side_by_side_each_in_the_sources_folder(sources, tmp_path, monkeypatch):
    """Each waits for the other, so that one after the other would fail; the caller's folder is as before."""
    code = """
import os, pathlib, time
mine, other = pathlib.Path({here!r}, {mine!r}), pathlib.Path({here!r}, {other!r})
mine.touch()
until = time.monotonic() + 300
while not other.exists():
    assert time.monotonic() < until
    time.sleep(0.05)
os.getcwd()"""
    write(sources, "00-setup", code.format(here=str(tmp_path), mine="a", other="b"))
    write(sources, "02-fine", code.format(here=str(tmp_path), mine="b", other="a"))
    below = sources.parent / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    said = []
    assert notebooks.execute(["00-setup", "02-fine"], "ci", workers=2, report=said.append) == []
    assert said == ["00-setup: executed", "02-fine: executed"] and Path.cwd() == below
    for name in ("00-setup", "02-fine"):
        assert repr(str(sources)) in (files.executed("ci") / f"{name}.ipynb").read_text()


def test_an_executed_notebook_depends_on_the_papers_cells(root):
    before = notebooks.key("05-whitebox", "demo")
    path = root / "results" / "paper_values.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("table,dataset,backbone,row,metric,value,unit,note\n")
    assert notebooks.key("05-whitebox", "demo") != before


def test_an_annotated_parameter_is_passed_on(sources):
    write(sources, "02-fine", "seeds")
    book = nbformat.read(notebooks.run_notebook("02-fine", "ci", seeds=[3, 4]), as_version=4)
    assert book.cells[-1].outputs[0]["data"]["text/plain"] == "[3, 4]"


def test_leaving_by_sys_exit_is_a_failure(sources):
    write(sources, "02-fine", "import sys\nsys.exit(0)")
    with pytest.raises(FSRError, match="called sys"):
        notebooks.run_notebook("02-fine", "ci")


def test_kernels_keep_pythonpath_and_run_this_interpreter_whatever_kernels_the_site_has(sources, tmp_path, monkeypatch):
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "site", "language": "python"}
    (tmp_path / "site/kernels/python3").mkdir(parents=True)
    (tmp_path / "site/kernels/python3/kernel.json").write_text(json.dumps(spec))
    (tmp_path / "library").mkdir()
    (tmp_path / "library/only_here.py").write_text("")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"))
    write(sources, "02-fine", "import only_here, sys\nprint(sys.executable)")
    assert notebooks.execute(["02-fine"], "ci", report=lambda _: None) == []
    assert sys.executable in (files.executed("ci") / "02-fine.ipynb").read_text()


@pytest.mark.parametrize("name", ["{x}", "out-{profile}"])
def test_braces_in_a_root_are_no_placeholders(sources, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FSR_ROOT", str(tmp_path / name))
    assert notebooks.execute(["02-fine"], "ci", report=lambda _: None) == []
    assert (tmp_path / name / "results/notebooks/ci/02-fine.ipynb").exists()


def test_other_library_versions_execute_again(sources, monkeypatch):
    before = notebooks.key("02-fine", "ci")
    monkeypatch.setattr(notebooks.metadata, "version", lambda name: "99.0")
    assert notebooks.key("02-fine", "ci") != before


def test_an_unknown_notebook_is_refused_with_the_choices(sources):
    with pytest.raises(UsageError, match="02-fine"):
        notebooks.numbered("99")
    with pytest.raises(UsageError, match="no notebook"):
        notebooks.source("07-missing")
    assert notebooks.numbered("2,00-setup") == ["00-setup", "02-fine"]


def test_a_failure_never_replaces_a_good_execution(sources):
    notebooks.execute(["02-fine"], "ci", report=lambda _: None)
    good = (files.executed("ci") / "02-fine.ipynb").read_bytes()
    write(sources, "02-fine", "1 / 0")
    with pytest.raises(FSRError, match="ZeroDivisionError"):
        notebooks.run_notebook("02-fine", "ci")
    assert (files.executed("ci") / "02-fine.ipynb").read_bytes() == good
