"""Tables on disk and on screen: the same content is never written twice, and every format reads back."""

import pandas as pd
import pytest

from fsr import experiments, tables
from fsr.tables.labels import number


@pytest.fixture
def filled(records):
    for run, right in zip(experiments.main_pair("demo"), (400, 420)):
        records("demo").columns(run, right)


def test_numbers_are_rounded_once_with_a_true_minus_and_no_negative_zero():
    assert number(-0.04) == "0.0" and number(-0.04, sign=True) == "+0.0" and number(-0.06) == "\N{MINUS SIGN}0.1"
    assert number(8.565, digits=1, sign=True) == "+8.6" and number(5.45) == "5.5"


def test_three_files_are_written_once_and_again_when_records_change(filled, root, records):
    paths = tables.save("demo", "T1")
    folder = root / "results" / "tables" / "demo"
    assert paths == [folder / f"T1-whitebox.{suffix}" for suffix in ("csv", "md", "tex")]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]
    texts = [path.read_text() for path in paths]
    tables.save("demo", "T1")
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths] == before
    records("demo").evaluation(experiments.main_pair("demo")[0], "autoattack", 50)
    tables.save("demo", "T1")
    assert all(path.read_text() != text for path, text in zip(paths, texts))


def test_csv_holds_fractions_counts_and_nothing_where_nothing_was_run(filled):
    rows = pd.read_csv(tables.save("demo", "T1")[0], dtype=str, keep_default_na=False)
    assert len(rows) == len(tables.table("demo", "T1"))
    cell = rows.query("row == 'AT' and metric == 'fgsm' and checkpoint == 'last'").iloc[0]
    assert cell["value"] == "0.8" and cell["n"] == "500" and set(rows.query("metric == 'autoattack'")["value"]) == {""}
    text = tables.display.csv_text(pd.DataFrame({"value": [1 / 3, 1, None], "n": [12432981.0, 1, 2]}))
    assert text == "value,n\n0.333333,12432981\n1,1\n,2\n"
    assert set(tables.table("demo", "T5").query("axis == 'tau'")["setting"]) == {"0.05", "0.1", "0.5", "1"}


def test_markdown_has_a_title_headings_bold_and_equal_columns_and_latex_is_booktabs_and_escaped(filled):
    text, latex = (path.read_text() for path in tables.save("demo", "T1")[1:])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("# T1. White-box robustness (demo)") and tables.display.LEGEND in text
    assert len({line.count("|") for line in rows}) == 1 and "| 84.0 [" in text
    assert "**digits, ResNet-10 (width 8), last weights**" in text
    assert all(part in latex for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{digits, ", r"C\&W"))


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_all_tables_of_every_profile_are_written_even_without_records(root, profile):
    paths = tables.save_all(profile)
    assert len(paths) == 3 * (11 if profile == "overfit" else 10) + 1 and all(path.stat().st_size for path in paths)
    sized = [path for path in paths if path.suffix == ".md" and "trained on" in path.read_text().splitlines()[-1]]
    assert len(sized) == {"ci": 6, "overfit": 7}.get(profile, 0)  # tables of attacks on what few images trained
    for path in paths:
        lines = path.read_text().splitlines()
        assert path.suffix != ".md" or "nan" not in path.read_text(), path.name
        assert path.suffix != ".tex" or all(line.isascii() for line in lines if line[:1] != "%"), path.name


def test_on_screen_groups_are_headings_and_rows_that_were_not_run_are_counted_unless_all_are(filled):
    page = tables.show(tables.table("demo", "T1")).to_html()
    assert page == tables.show(tables.table("demo", "T1")).to_html()  # no random ids
    assert page.count("digits, ResNet-10 (width 8), last weights") == 1 and "EMA weights" not in page
    assert 'text-align: left; min-width: 12em"><b>digits, ResNet-10' in page  # also without the style sheet
    assert "C&amp;W" in page and "84.0<br>[" in page and "rows have not been run" in page and "TRADES" not in page
    empty = tables.show(tables.table("mini", "T4")).to_html()
    assert "separation only" in empty and "not run" in empty and "rows have not been run" not in empty
