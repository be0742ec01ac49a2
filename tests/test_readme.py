"""README states what the records say."""

import pytest

from fsr import paths, store
from fsr.errors import UsageError
from fsr.report.readme import BEGIN, END, results, rewrite


def test_the_results_in_readme_are_those_of_the_committed_records(monkeypatch):
    monkeypatch.delenv("FSR_ROOT", raising=False)
    if not store.runs():
        pytest.skip("no records in this checkout")
    text = (paths.repository() / "README.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == results("demo").strip()


def test_what_was_not_run_says_so(root):
    text = results("demo")
    assert text.count("not run") >= 32 and "| AT + FSR |" in text


def test_only_the_marked_part_is_rewritten(root, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert rewrite(path, "ci") and not rewrite(path, "ci")
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    path.write_text("no marks")
    with pytest.raises(UsageError, match="results"):
        rewrite(path, "ci")
