"""Notebook sources: thin, without outputs, in order, and every table and figure has its place in exactly one."""

import ast
import re

import nbformat
import pytest

from fsr import experiments, files, plots, tables
from fsr.report.findings import FINDERS
from fsr.report.page import QUESTIONS

BOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted(files.sources().glob("*.ipynb"))}
READ = ("05", "06", "07", "08", "09", "12", "13", "14", "15")
WITHOUT_TORCH = {"experiments", "plots", "reference", "report", "store", "tables"}
LINES = 14


def cells(book, kind: str) -> list:
    """Cells of one kind."""
    return [cell for cell in book.cells if cell.cell_type == kind]


def code(name: str) -> str:
    """All code of a notebook."""
    return "\n".join(cell.source for cell in cells(BOOKS[name], "code"))


def everywhere(pattern: str) -> list[str]:
    """All matches in the code of all notebooks."""
    return [found for name in BOOKS for found in re.findall(pattern, code(name))]


def test_they_are_the_planned_ones():
    assert tuple(BOOKS) == experiments.NOTEBOOKS


@pytest.mark.parametrize("name", BOOKS)
def test_first_code_cell_holds_the_profile(name):
    first = cells(BOOKS[name], "code")[0]
    assert first.metadata["tags"] == ["parameters"]
    assert 'profile = os.environ.get("FSR_PROFILE", "demo")' in first.source
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in BOOKS[name].cells) == 1


@pytest.mark.parametrize("name", BOOKS)
def test_sources_are_valid_and_have_no_outputs(name):
    book = BOOKS[name]
    nbformat.validate(book)
    assert book.metadata["kernelspec"]["name"] == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in cells(book, "code"))
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    assert set(book.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", BOOKS)
def test_cells_are_calls_without_logic(name):
    logic = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Lambda, ast.comprehension, ast.Try)
    for cell in cells(BOOKS[name], "code"):
        assert len(cell.source.splitlines()) <= LINES
        assert not any(isinstance(node, logic) for node in ast.walk(ast.parse(cell.source))), cell.source


@pytest.mark.parametrize("name", BOOKS)
def test_prose_asks_a_question_and_comes_first(name):
    book = BOOKS[name]
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith(f"# {name[:2]} ")
    assert "**Question:**" in book.cells[0].source or "**What this notebook answers:**" in book.cells[0].source
    assert len(cells(book, "markdown")) >= 2


@pytest.mark.parametrize("name", [name for name in BOOKS if name[:2] in READ])
def test_read_notebooks_import_no_torch(name):
    for node in ast.walk(ast.parse(code(name))):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {"os"}
        elif isinstance(node, ast.ImportFrom):
            assert node.module == "fsr" and {alias.name for alias in node.names} <= WITHOUT_TORCH


@pytest.mark.parametrize("name", [name for name in BOOKS if name[:2] not in (*READ, "00", "01")])
def test_build_notebooks_first_complete_what_they_read(name):
    assert f'explore.complete(profile, "{name}")' in cells(BOOKS[name], "code")[1].source


@pytest.mark.parametrize("name", BOOKS)
def test_links_between_notebooks_lead_somewhere(name):
    text = "\n".join(cell.source for cell in cells(BOOKS[name], "markdown"))
    for target in re.findall(r"\]\(([\w-]+)\.ipynb\)", text):
        assert target in BOOKS


@pytest.mark.parametrize("name", BOOKS)
def test_prose_states_no_result(name):
    """A number with a percent sign or points would be a result typed by hand; 95 % intervals are none."""
    text = "\n".join(cell.source for cell in cells(BOOKS[name], "markdown")).replace("95 %", "")
    assert not re.search(r"\d\s*(%|points\b|percent\b)", text)


def test_every_table_is_saved_under_its_name_by_its_own_notebook():
    saved, made = everywhere(r'tables\.save\(profile, "(T\d+)"\)'), everywhere(r'tables\.table\(profile, "(T\d+)"\)')
    assert sorted(saved) == sorted(made) == sorted(set(tables.TABLES) - {"T11"})


def test_every_table_is_checked_when_notebooks_are_executed_again():
    for book in BOOKS.values():
        for cell in cells(book, "code"):
            assert ("tables.save(" in cell.source) == cell.source.startswith("# NBVAL_CHECK_OUTPUT\n")


def test_every_figure_is_shown_once():
    assert sorted(everywhere(r'plots\.show\(profile, "(F\d+)"\)')) == sorted(set(plots.FIGURES) - {"F10"})


def test_every_sentence_exists_and_is_used():
    assert set(everywhere(r'report\.findings\(profile, "(\w+)"\)')) == set(FINDERS) - {"T11"}


def test_the_report_links_to_these_notebooks():
    assert {notebook for _, notebook, _ in QUESTIONS} <= set(BOOKS)


def test_what_notebooks_call_exists():
    from fsr import explore

    for name in set(everywhere(r"explore\.(\w+)\(")):
        assert hasattr(explore, name), name


@pytest.mark.parametrize("name", BOOKS)
def test_sources_name_no_place_of_one_machine(name):
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\", nbformat.writes(BOOKS[name]))
