"""Sentences state the records' numbers, and say so where there are none."""

import pytest
from synthetic_records import made_up_root, write_all

from fsr import experiments, prose, tables
from fsr.prose.robustness import NOTHING
from fsr.prose.text import difference, points

PROFILE = "ci"
SENTENCES = [name for name in prose.__all__ if name not in ("Prose", "budget", "progress")]
ALWAYS = ("verdict", "deactivation")  # the verdict is always told; ci has peers only on paper


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A root with made-up records of the smallest profile."""
    with made_up_root(tmp_path_factory.mktemp("prose")):
        write_all(PROFILE)
        yield


@pytest.mark.parametrize("name", SENTENCES)
def test_nothing_is_claimed_without_records(root, name):
    said = getattr(prose, name)(PROFILE)
    assert said == NOTHING if name != "verdict" else "not tested" in said and "**reproduced" not in said


@pytest.mark.parametrize("name", [name for name in SENTENCES if name != "audit"])
def test_something_is_said_with_records(recorded, name):
    said = getattr(prose, name)(PROFILE)
    assert said != NOTHING and "nan" not in said.lower() and "None" not in said
    assert said._repr_markdown_() == said


def test_the_gain_is_the_tables(recorded):
    numbers = tables.whitebox(PROFILE).numbers
    gains = numbers[(numbers["kind"] == "gain") & (numbers["metric"] == "ensemble")]
    said = prose.whitebox(PROFILE)
    for value in gains[gains["checkpoint"] == "last"]["value"].dropna():
        assert f"Ensemble **{points(value)}**" in said


def test_a_difference_is_better_worse_or_not_shown():
    cell = {"value": 0.02, "low": 0.01, "high": 0.03, "per_seed": [0.02]}
    assert "better on these images" in difference(cell) and "one seed" in difference(cell)
    assert "worse" in difference({**cell, "value": -0.02, "low": -0.03, "high": -0.01})
    assert "no difference shown" in difference({**cell, "low": -0.01})
    assert "2 seeds, from +1.0 to +3.0" in difference({**cell, "per_seed": [0.03, 0.01]})


def test_progress_counts_records(root):
    notebook = "11-attention-maps"
    said = prose.progress(PROFILE, notebook)
    assert f"--profile {PROFILE} --only 11" in said and ": 0 of" in said
    write_all(PROFILE, ("streams",))
    said = prose.progress(PROFILE, notebook)
    done, planned = said.split(": ")[1].split(" records")[0].split(" of ")
    assert done == planned and "--only" not in said


def test_a_small_profile_says_how_far_it_is_from_the_paper():
    assert "far from the paper's setting" in prose.budget("ci")
    assert "the setting of the authors' code" in prose.budget("headline")
    for profile in experiments.PROFILES:
        assert str(experiments.profile_of(profile).base.epochs) in prose.budget(profile)
