"""README is short, its snippets run, and its numbers are those of the records."""

import re

import pytest
import torch
from torch import nn

from fsr import files, store
from fsr.files import MissingRecord, load_json
from fsr.report import pages

README, SPEED = files.repository() / "README.md", files.repository() / "docs" / "speed.md"
PAGES = [README, *sorted((files.repository() / "docs").glob("*.md"))]


def test_generated_parts_are_those_of_the_committed_records(monkeypatch):
    monkeypatch.delenv("FSR_ROOT", raising=False)
    if not store.runs():
        pytest.skip("no records in this checkout")
    assert pages.rewrite(README.read_text(), pages.PARTS) == README.read_text()  # a second update changes nothing


def test_documented_speed_is_what_the_benchmarks_recorded():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in SPEED.read_text().splitlines() if "|" in line]
    for record, case, *shown in rows[2:]:
        recorded = load_json(files.repository() / "results" / "benchmarks" / f"{record}.json")["rows"]
        (ratio,) = [row["ratio"] for row in recorded if row.get("case") == case]
        assert shown == [f"{ratio[name]:.1f}" for name in ("median", "low", "high")]


def test_readme_is_short_and_types_no_result():
    text = README.read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) < 1700
    by_hand = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL).replace("95 %", "")
    assert not re.search(r"\d\s*(%|points\b|percent\b)|\d\.\d+ \[", by_hand)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_without_records_readme_says_so(root):
    assert pages.answers().startswith("No profile that answers")  # as notebook 15 shows it
    with pytest.raises(MissingRecord, match="run-all"):
        pages.results()


def test_snippets_run():
    """In order, in one namespace, as somebody types them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer4, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)

        def forward(self, x):
            return self.head(self.layer4(x).mean((2, 3)))

    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    space = {"your_network": Net(), "x": images, "y": labels}
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(first, space)
    space["loss"].backward()
    assert (space["x_adv"] - images).abs().max() <= 8 / 255 + 1e-6
    space["model"].eval()
    exec(second, space)
    assert space["result"].worst_case.shape == (4,)
