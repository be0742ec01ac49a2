"""The report: one page, whole, the same every time, and honest about what was not run."""

import re
from html.parser import HTMLParser

import pytest
from synthetic_records import made_up_root, write_all

from fsr import files, plots, report, tables
from fsr.report.pages import QUESTIONS, page

PROFILE = "ci"
VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Every element is closed in order; collects ids and what the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.ids = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        assert tag != "img" or found["alt"]
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A root with made-up records of the smallest profile."""
    with made_up_root(tmp_path_factory.mktemp("report")):
        write_all(PROFILE)
        yield


@pytest.fixture(scope="module")
def text(recorded):
    """The page as it is written."""
    return report.build(PROFILE).read_text()


def test_answer_first_then_questions_and_the_verdict_near_the_end(text):
    assert text.index(report.answer(PROFILE)) < text.index('id="F7"') < text.index('id="T1"')
    assert QUESTIONS[-1][-1] == "T10"
    ids = Checker(text).ids
    assert len(ids) == len(set(ids))


def test_every_table_and_figure_has_its_question():
    shown = [name for _, _, items in QUESTIONS for name in items.split()] + ["F7", "F9"]
    assert sorted(shown) == sorted([*tables.TABLES, *plots.FIGURES])


def test_it_needs_nothing_but_itself_and_its_links_lead_to_files(text):
    ids, base = {f"#{name}" for name in Checker(text).ids}, files.report(PROFILE).parent
    for link in Checker(text).links:
        assert link in ids or link.startswith("data:image/png;base64,") or (base / link).resolve().is_file(), link
    assert "<script" not in text and "url(" not in text and "@import" not in text


def test_it_says_where_numbers_come_from_and_names_no_day(text):
    assert "0123456789" in text and not re.search(r"20\d\d-\d\d-\d\d", text)


def test_a_second_build_touches_nothing(text):
    path = files.report(PROFILE)
    before = path.stat().st_mtime_ns
    assert report.build(PROFILE) == path and path.stat().st_mtime_ns == before and page(PROFILE) == text


def test_without_any_record_it_stands_and_leaves_tables_out(root):
    text = page(PROFILE)
    Checker(text)
    assert "not run yet" in text and 'id="T1"' not in text and "Left out because most of it was not run: " in text
