"""The report: one file, whole, the same every time, and honest about what was not run."""

import re
from html.parser import HTMLParser

import pytest
from synthetic_records import made_up_root, write_all

from fsr import experiments, plots, report, tables
from fsr.config import run_id
from fsr.files import UsageError
from fsr.report.markup import inline, markdown

PROFILE = "ci"
VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Every element is closed in order; collects what the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.ids = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            assert found["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A root with made-up records of the smallest profile."""
    with made_up_root(tmp_path_factory.mktemp("report")):
        write_all(PROFILE)
        yield


@pytest.fixture(scope="module")
def page(recorded):
    """The whole page."""
    return report.page(PROFILE)


def test_every_table_and_figure_is_there_once(page):
    ids = Checker(page).ids
    for name in (*tables.of_profile(PROFILE), *set(plots.FIGURES) - {"F10"}):  # ci has no trainings of several lengths
        assert ids.count(name) == 1
    assert len(ids) == len(set(ids))


def test_it_needs_nothing_but_itself(page):
    links = Checker(page).links
    assert sum(link.startswith("data:image/webp;base64,") for link in links) == len(plots.FIGURES) - 1
    inside = {f"#{name}" for name in Checker(page).ids}
    for link in links:
        assert link.startswith(("data:image/webp", "../")) or link in inside
    assert "<script" not in page and "url(" not in page and "@import" not in page


def test_embedded_figures_are_their_files_pixel_by_pixel(page, recorded):
    import base64
    import io

    import numpy as np
    from PIL import Image

    for link in [link for link in Checker(page).links if link.startswith("data:")][:2]:
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).convert("RGB"))
        files = [plots.paths(PROFILE, name)[0] for name in plots.FIGURES if name != "F10"]
        assert any(np.array_equal(shown, np.asarray(Image.open(path).convert("RGB"))) for path in files)


def test_links_to_files_that_were_written(page, recorded):
    from fsr import files

    base = files.report(PROFILE).parent
    for link in Checker(page).links:
        if link.startswith("../") and "/notebooks/" not in link:
            assert (base / link).resolve().is_file(), link


def test_notebook_links_lead_to_what_is_kept(page, monkeypatch):
    from fsr import files

    assert 'href="../notebooks/ci/01-method.ipynb"' in page  # another --root: executed ones lie beside the report
    monkeypatch.setenv("FSR_ROOT", str(files.repository()))
    assert report._notebooks("demo") == "../notebooks/demo"
    for profile in ("demo", "mini"):  # the repository keeps demo's executed notebooks, and every source
        folder = files.report(profile).parent / report._notebooks(profile)
        assert (folder / "05-whitebox.ipynb").resolve().is_file()


def test_it_names_runs_and_commits_and_no_date(page):
    run = experiments.main_pair(PROFILE)[0]
    assert f"<td>{run_id(run)}</td>" in page and "0123456789" in page
    assert not re.search(r"20\d\d-\d\d-\d\d", page.replace("2026-04", ""))


def test_writing_twice_touches_nothing(page, recorded):
    path = report.write(PROFILE)
    before = path.stat().st_mtime_ns
    assert report.write(PROFILE) == path and path.stat().st_mtime_ns == before
    assert path.read_text() == page


def test_without_any_record_it_still_stands_and_says_so(root):
    page = report.page(PROFILE)
    Checker(page)
    assert page.count("not run") > 20 and "Nothing of this has been run" in page
    assert "0 runs" in page


def test_an_unknown_profile_is_refused():
    with pytest.raises(UsageError, match="unknown profile"):
        report.page("nothing")


def test_markdown_becomes_html_and_everything_else_is_escaped():
    assert inline("a < b & **c** `d*e*` *f*") == "a &lt; b &amp; <strong>c</strong> <code>d*e*</code> <em>f</em>"
    assert inline("2 * 3 * 4") == "2 * 3 * 4"
    assert markdown("one\ntwo\n\n- a\n- b") == "<p>one two</p>\n<ul><li>a</li><li>b</li></ul>"
