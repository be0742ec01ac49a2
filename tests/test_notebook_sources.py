"""Notebook sources: thin, without outputs, in order, and every table and figure has its place."""

import ast
import re

import nbformat
import pytest

from fsr import experiments, files, notebooks, plots, tables

SOURCES = files.repository() / "notebooks"
BOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted(SOURCES.glob("*.ipynb"))}
CODE = {name: [cell for cell in book.cells if cell.cell_type == "code"] for name, book in BOOKS.items()}


def everywhere(pattern: str) -> list[str]:
    return [match for cells in CODE.values() for cell in cells for match in re.findall(pattern, cell.source)]


@pytest.mark.parametrize("name", BOOKS)
def test_parameters_are_literals_and_come_first(name):
    first, *rest = CODE[name]
    assert first.metadata["tags"] == ["parameters"] and not any(cell.metadata.get("tags") for cell in rest)
    assert notebooks.parameters_of(BOOKS[name])[0] == "profile"
    for node in ast.parse(first.source).body:
        ast.literal_eval(node.value)


@pytest.mark.parametrize("name", BOOKS)
def test_sources_are_valid_short_and_without_outputs_or_definitions(name):
    book = BOOKS[name]
    nbformat.validate(book)
    assert book.metadata["kernelspec"]["name"] == "python3" and len({cell.id for cell in book.cells}) == len(book.cells)
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\", nbformat.writes(book))
    for cell in CODE[name]:
        assert not cell.outputs and cell.execution_count is None and len(cell.source.splitlines()) <= 14
        defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(cell.source))), cell.source


@pytest.mark.parametrize("name", BOOKS)
def test_a_question_comes_first_and_links_lead_somewhere(name):
    texts = [cell.source for cell in BOOKS[name].cells if cell.cell_type == "markdown"]
    assert BOOKS[name].cells[0].source == texts[0] and texts[0].startswith(f"# {name[:2]} ")
    assert "**Question:**" in texts[0]
    assert all((SOURCES / link).is_file() for text in texts for link in re.findall(r"\]\(([^)]+)\)", text))
    assert not re.search(r"(?<!\[)notebooks? \d\d", "\n".join(texts), re.IGNORECASE)  # other notebooks are links
    # a number with a percent sign or points would be a result typed by hand; 95 % intervals are none
    assert not re.search(r"\d\s*(%|points\b|percent\b)", "\n".join(texts).replace("95 %", ""))


def test_attacks_shown_by_hand_keep_network_and_images_on_one_device():
    loaded = everywhere(r"load_model\(.*")
    assert loaded and all(".cpu()" in call for call in loaded)  # a network is loaded onto a GPU, images are not


def test_every_notebook_table_and_figure_has_its_place():
    assert tuple(BOOKS) == tuple(experiments.NEEDS) and len(BOOKS) == 17
    ten = {f"T{i}" for i in range(1, 11)}
    assert sorted(everywhere(r'tables\.save\(profile, "(T\d+)"\)')) == sorted(ten)
    assert set(everywhere(r'tables\.table\((?:profile|"overfit"), "(T\d+)"\)')) == set(tables.TABLES)
    assert sorted(everywhere(r'plots\.show\(profile, "(F\d+)"\)')) == sorted(plots.FIGURES)
    for name, cells in CODE.items():  # where a table is saved its numbers are compared
        if any("tables.save(" in cell.source for cell in cells):
            assert any(cell.source.startswith("# NBVAL_CHECK_OUTPUT") for cell in cells), name
