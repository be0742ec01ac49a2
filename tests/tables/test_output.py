"""Tables on disk: the same content is never written twice, and every format reads back."""

import csv
import time

import pytest

from fsr import experiments, tables
from fsr.store import id_of
from fsr.tables.output import latex_text
from fsr.tables.text import number, quantity


@pytest.fixture
def filled(records):
    for run, right in zip(experiments.main_pair("demo"), (400, 420)):
        records("demo").columns(run, right)
    return tables.whitebox("demo")


def test_numbers_are_rounded_once_with_a_true_minus_and_no_negative_zero():
    assert number(-0.04) == "0.0" and number(-0.04, sign=True) == "+0.0" and number(-0.06) == "\N{MINUS SIGN}0.1"
    assert number(8.565, digits=1, sign=True) == "+8.6"
    assert quantity(1259018, digits=0) == "1,259,018" and quantity(float("nan")) == "not run"


def test_three_files_are_written_once(filled, root):
    paths = tables.save(filled, "demo", "T1", "whitebox")
    folder = root / "results" / "tables" / "demo"
    assert paths == [folder / f"T1-whitebox.{suffix}" for suffix in ("csv", "md", "tex")]
    before = [path.stat().st_mtime_ns for path in paths]
    time.sleep(0.02)
    tables.save(tables.whitebox("demo"), "demo", "T1", "whitebox")
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_notebook_shows_where_it_was_saved_without_the_machines_folders(filled, root):
    text = repr(tables.save(filled, "demo", "T1", "whitebox"))
    assert text.startswith("results/tables/demo/T1-whitebox.csv, ") and str(root) not in text


def test_new_records_change_the_files(filled, root, records):
    paths = tables.save(filled, "demo", "T1", "whitebox")
    before = [path.read_text() for path in paths]
    records("demo").evaluation(experiments.main_pair("demo")[0], "autoattack", 50)
    tables.save(tables.whitebox("demo"), "demo", "T1", "whitebox")
    assert all(path.read_text() != text for path, text in zip(paths, before))


def test_csv_holds_fractions_and_leaves_empty_what_was_not_run(filled):
    path = tables.save(filled, "demo", "T1", "whitebox")[0]
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(filled.numbers)
    cell = next(r for r in rows if (r["row"], r["metric"], r["checkpoint"]) == ("AT", "fgsm", "last"))
    assert cell["value"] == "0.8" and cell["n"] == "500"
    assert next(r for r in rows if r["metric"] == "autoattack")["value"] == ""


def test_markdown_has_bold_footer_and_equal_columns(filled):
    text = tables.save(filled, "demo", "T1", "whitebox")[1].read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1 and "**84.0" in text
    assert id_of(experiments.main_pair("demo")[0]) in text and "Records made by commit" in text
    assert text.startswith("# T1. White-box robustness (demo)")


def test_latex_is_booktabs_and_escaped(filled):
    text = tables.save(filled, "demo", "T1", "whitebox")[2].read_text()
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{84.0", r"C\&W"):
        assert part in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in body}) == 1
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert code.isascii()


def test_every_character_that_latex_acts_on_is_escaped():
    assert latex_text("±") == r"$\pm$"
    assert latex_text("a_b 5 % & {x} f̃⁻ − ~") == r"a\_b 5 \% \& \{x\} $\tilde f$$^{-}$ $-$ \textasciitilde{}"


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_all_ten_tables_of_every_profile_are_written_even_without_records(root, profile):
    paths = tables.save_all(profile)
    assert len(paths) == 30 and all(path.stat().st_size for path in paths)
    assert all("nan" not in path.read_text() for path in paths if path.suffix == ".md")
    for path in paths:
        if path.suffix == ".tex":
            code = [line for line in path.read_text().splitlines() if not line.startswith("%")]
            assert "\n".join(code).isascii(), path.name


def test_a_table_in_a_notebook_shows_all_of_it(filled):
    text, page = repr(filled), filled._repr_html_()
    assert "..." not in text and page.count("<tr>") == len(filled) + 1 and "<small>" in page
    assert type(filled[filled["weights"] == "last"]).__name__ == "DataFrame"
