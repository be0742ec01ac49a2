"""Notebook sources: thin, without outputs, in order, and every table and figure has its place."""

import ast
import re

import nbformat
import pytest

from fsr import experiments, files, notebooks, plots, tables

BOOKS = {
    path.stem: nbformat.read(path, as_version=4) for path in sorted((files.repository() / "notebooks").glob("*.ipynb"))
}
LINES = 14


def cells(name: str, kind: str) -> list:
    """Cells of one kind."""
    return [cell for cell in BOOKS[name].cells if cell.cell_type == kind]


def everywhere(pattern: str) -> list[str]:
    """All matches in the code of all notebooks."""
    return [found for name in BOOKS for cell in cells(name, "code") for found in re.findall(pattern, cell.source)]


def test_they_are_the_planned_ones():
    assert tuple(BOOKS) == experiments.NOTEBOOKS and len(BOOKS) == 17


@pytest.mark.parametrize("name", BOOKS)
def test_parameters_are_literals_and_come_first(name):
    first, *rest = cells(name, "code")
    assert first.metadata["tags"] == ["parameters"] and not any(cell.metadata.get("tags") for cell in rest)
    assert notebooks.parameters_of(BOOKS[name])[0] == "profile"
    for node in ast.parse(first.source).body:
        ast.literal_eval(node.value)


@pytest.mark.parametrize("name", BOOKS)
def test_sources_are_valid_and_have_no_outputs(name):
    book = BOOKS[name]
    nbformat.validate(book)
    assert book.metadata["kernelspec"]["name"] == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in cells(name, "code"))
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\", nbformat.writes(book))


@pytest.mark.parametrize("name", BOOKS)
def test_cells_are_short_and_define_nothing(name):
    for cell in cells(name, "code"):
        assert len(cell.source.splitlines()) <= LINES
        defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(cell.source))), cell.source


@pytest.mark.parametrize("name", BOOKS)
def test_a_question_comes_first_and_links_lead_somewhere(name):
    first, *_ = BOOKS[name].cells
    assert first.source.startswith(f"# {name[:2]} ") and "**Question:**" in first.source
    text = "\n".join(cell.source for cell in cells(name, "markdown"))
    assert set(re.findall(r"\]\(([\w-]+)\.ipynb\)", text)) <= set(BOOKS)
    # a number with a percent sign or points would be a result typed by hand; 95 % intervals are none
    assert not re.search(r"\d\s*(%|points\b|percent\b)", text.replace("95 %", ""))


def test_every_table_is_made_saved_and_shown_by_one_notebook():
    ten = {f"T{i}" for i in range(1, 11)}
    assert sorted(everywhere(r'tables\.save\(profile, "(T\d+)"\)')) == sorted(ten)
    assert set(everywhere(r'tables\.table\(profile, "(T\d+)"\)')) == ten
    assert set(everywhere(r'tables\.table\("overfit", "(T\d+)"\)')) | ten == set(tables.TABLES)


def test_every_figure_is_shown_once():
    assert sorted(everywhere(r'plots\.show\(profile, "(F\d+)"\)')) == sorted(plots.FIGURES)


def test_every_notebook_that_reads_a_table_compares_its_numbers():
    for name in BOOKS:
        sources = [cell.source for cell in cells(name, "code")]
        if any("tables.save(" in source for source in sources):
            assert any(source.startswith("# NBVAL_CHECK_OUTPUT") for source in sources), name
