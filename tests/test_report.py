"""The report: one page, whole, the same every time, and honest about what was not run."""

import re
from html.parser import HTMLParser

import pytest
from synthetic_records import made_up_root, write_all

from fsr import files, plots, report, tables
from fsr.report.pages import QUESTIONS, page

PROFILE = "ci"


class Checker(HTMLParser):
    """Every element is closed in order; collects ids and what the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.ids = [], [], []
        self.feed(text)
        assert not self.open and len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        assert tag != "img" or found["alt"]
        self.open += [] if tag in ("meta", "img", "br") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page of made-up records of the smallest profile, as it is written."""
    with made_up_root(tmp_path_factory.mktemp("report")):
        write_all(PROFILE)
        yield report.build(PROFILE).read_text()


def test_answer_first_then_each_question_with_its_figures_and_tables_and_the_verdict_last(text):
    assert text.index(report.answer(PROFILE)) < text.index('id="F7"') < text.index('id="T1"')
    asked = [name for _, _, items in QUESTIONS for name in items.split()]
    assert asked[-1] == "T10" and sorted(asked) == sorted([*tables.TABLES, *plots.FIGURES])


def test_it_needs_nothing_but_itself_and_its_links_lead_to_files(text):
    checked, base = Checker(text), files.report(PROFILE).parent
    for link in checked.links:
        inside = link.startswith("data:image/png;base64,") or (link[0] == "#" and link[1:] in checked.ids)
        assert inside or (base / link).resolve().is_file(), link
    assert "<script" not in text and "url(" not in text and "@import" not in text


def test_it_says_where_numbers_come_from_and_names_no_day(text):
    assert "0123456789" in text and not re.search(r"20\d\d-\d\d-\d\d", text)


def test_a_second_build_touches_nothing(text):
    path = files.report(PROFILE)
    before = path.stat().st_mtime_ns
    assert report.build(PROFILE) == path and path.stat().st_mtime_ns == before and path.read_text() == text


def test_without_any_record_it_stands_and_leaves_tables_out(root):
    text = page(PROFILE)
    Checker(text)
    assert "not run yet" in text and 'id="T1"' not in text and "Left out because most of it was not run: " in text
