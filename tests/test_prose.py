"""Sentences state the records' numbers, and say so where there are none."""

import numpy as np
import pytest
from synthetic_records import made_up_root, write_all

from fsr import experiments, store, tables
from fsr.report import findings as prose
from fsr.report.findings.robustness import NOTHING, PUZZLE
from fsr.report.findings.text import difference, points

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
    assert said == NOTHING if name != "verdict" else "**reproduced" not in said


@pytest.mark.parametrize("name", [name for name in SENTENCES if name != "audit"])
def test_something_is_said_with_records(recorded, name):
    said = getattr(prose, name)(PROFILE)
    assert said != NOTHING and "nan" not in said.lower() and "None" not in said
    assert said._repr_markdown_() == said


def test_the_gain_is_the_tables(recorded):
    numbers = tables.table(PROFILE, "T1")
    gains = numbers[(numbers["kind"] == "gain") & (numbers["metric"] == "ensemble")]
    said = prose.whitebox(PROFILE)
    for value in gains[gains["checkpoint"] == "last"]["value"].dropna():
        assert f"Ensemble **{points(value)}**" in said


def test_a_difference_is_better_worse_or_not_shown():
    cell = {"value": 0.02, "low": 0.01, "high": 0.03, "per_seed": [0.02], "p_first_seed": 0.04}
    assert "no difference shown" in difference({**cell, "p_first_seed": 0.06})  # four of four images: p = 0.125
    assert "better for these networks" in difference(cell) and "one seed" in difference(cell)
    assert "worse" in difference({**cell, "value": -0.02, "low": -0.03, "high": -0.01})
    assert "no difference shown" in difference({**cell, "low": -0.01})
    two = difference({**cell, "per_seed": [0.02, 0.02]})  # two that agree are no certainty
    assert "2 seeds, from +2.0 to +2.0)" in two and two.endswith("better for these networks")
    equal = difference({**cell, "per_seed": [0.02, 0.02, 0.019999999999999997]})
    assert equal.endswith("from +2.0 to +2.0: no interval over seeds), better for these networks")
    three = difference({**cell, "per_seed": [0.03, 0.01, 0.02]})
    assert "from +1.0 to +3.0, over seeds [\N{MINUS SIGN}0.5, +4.5]" in three  # 2 ± 4.3027 / sqrt(3)
    assert three.endswith("better for these networks, but no more than seeds differ")
    assert difference({**cell, "per_seed": [0.0201, 0.0199, 0.02]}).endswith("better for these networks")


def columns(run, profile, kind, right):
    """Outcomes of every column of this kind: the first images right, or those that `right` says for the column."""
    store.save_config(run)
    for name, evaluation in experiments.columns(profile, kind).items():
        count = right(name) if callable(right) else right
        if evaluation.attack != "ensemble" and count is not None:
            images = np.arange(evaluation.images or 500)
            store.save_evaluation(
                run, evaluation, images, images < count if np.isscalar(count) else np.isin(images, count)
            )


def test_autoattack_and_ensemble_are_compared_on_the_same_images(root):
    """All 500 images say +4 points, the 100 that AutoAttack saw 0: no disagreement of attacks."""
    plain, both = experiments.main_pair("demo")
    columns(plain, "demo", "whitebox", lambda name: 60 if name == "autoattack" else 400)
    columns(both, "demo", "whitebox", lambda name: 55 if name == "autoattack" else 420)
    said = prose.whitebox("demo")
    assert "Ensemble **+4.0 points**" in said and "AutoAttack **−5.0 points**" in said
    assert "On AutoAttack's 100 images Ensemble says +0.0 points." in said and PUZZLE not in said


def test_attacks_that_really_disagree_are_said_to(root):
    plain, both = experiments.main_pair("demo")
    columns(plain, "demo", "whitebox", lambda name: 60 if name == "autoattack" else 70)
    columns(both, "demo", "whitebox", lambda name: 40 if name == "autoattack" else 90)
    assert PUZZLE in prose.whitebox("demo")


def test_two_trainings_of_one_row_are_not_said_to_disagree(root):
    """As above, but AutoAttack saw another training of AT + FSR: nothing follows from what the two say."""
    plain, both = experiments.main_pair("demo")
    right = {plain: (60, 70), both: (40, 90)}
    for run, (strong, weak) in right.items():
        store.save_config(run)
        for name, evaluation in experiments.columns("demo", "whitebox").items():
            if name != "ensemble":
                images, hard = np.arange(evaluation.images or 500), name == "autoattack"
                digest = "second" if run == both and hard else "first"
                store.save_evaluation(run, evaluation, images, images < (strong if hard else weak), weights=digest)
    said = prose.whitebox("demo")
    assert "AutoAttack **−20.0 points**" in said and PUZZLE not in said and "On AutoAttack's" not in said


def test_a_network_that_stands_in_every_sweep_counts_once(root):
    """The default is a row of each sweep of T5 and of T6, and compared with none of itself."""
    run = experiments.main_pair("demo")[1]
    columns(run, "demo", "settings", 400)
    assert prose.settings("demo") == NOTHING
    other = next(row for row in experiments.ROWS["demo"]["settings"] if row.name == "tau = 0.5").runs[0]
    columns(other, "demo", "settings", 410)
    said = prose.settings("demo")
    assert said.startswith("Against the default setting and place, Ensemble, seed 0, one training each, last weights:")
    assert "- tau = 0.5: **+2.0 points**" in said and "tau = 0.1" not in said and "1 comparisons" not in said
    other = next(row for row in experiments.ROWS["demo"]["placement"] if row.name == "layer1").runs[0]
    columns(other, "demo", "placement", 399)
    said = prose.settings("demo")
    assert "- no difference shown: layer1." in said and "2 comparisons" in said


def test_a_sweep_that_is_not_at_its_end_says_nothing_of_what_is_left_there(root):
    run = experiments.main_pair("demo")[1]
    sweep = [e for e in experiments.evaluations("demo", "strength", run) if e.eps or e.attack == "clean"]
    for evaluation in sweep[:-1]:
        store.save_evaluation(run, evaluation, range(4), [True] * 4)
    said = prose.attack_strength("demo")
    assert said.startswith("- AT + FSR: the largest radius was not run yet.") and "gradients" not in said
    store.save_evaluation(run, sweep[-1], range(4), [True, False, False, False])
    assert "25.0 %" in prose.attack_strength("demo") and "not run yet" not in prose.attack_strength("demo")


def test_a_sweep_of_steps_that_is_not_at_its_end_says_how_far_it_went(root):
    run = experiments.main_pair("demo")[1]
    sweep = [e for e in experiments.evaluations("demo", "strength", run) if e.steps]
    for evaluation in sweep[:-1]:
        store.save_evaluation(run, evaluation, range(4), [True] * 4)
    told = f"never rises up to {sweep[-2].steps} steps ({sweep[-1].steps} were not run yet)."
    assert told in prose.attack_strength("demo")
    store.save_evaluation(run, sweep[-1], range(4), [True] * 4)
    assert "accuracy never rises." in prose.attack_strength("demo")


def test_the_joint_loss_is_compared_on_the_seeds_that_have_it_of_the_same_weights(root):
    plain, joint = (experiments.columns("demo", "deactivation")[name] for name in ("pgd20", "pgd20-joint"))
    both = next(row for row in experiments.ROWS["demo"]["deactivation"] if row.name == "AT + FSR").runs
    for run, right, weights in zip(both, (50, 60, 90), ("a", "b", "c"), strict=True):
        store.save_config(run)
        store.save_evaluation(run, plain, range(100), np.arange(100) < right, weights=weights)
    store.save_evaluation(both[0], joint, range(100), np.arange(100) < 40, weights="a")
    store.save_evaluation(both[1], joint, range(100), np.arange(100) < 10, weights="other")
    assert "on the final logits leaves 50.0 %, on the joint loss 40.0 %" in prose.deactivation("demo")


def test_a_variant_that_learnt_nothing_is_said_to(root):
    rows = {row.name: row.runs[0] for row in experiments.ROWS["demo"]["components"]}
    columns(rows["AT + FSR"], "demo", "components", 300)
    columns(rows["separation only"], "demo", "components", 50)
    columns(rows["auxiliary heads only"], "demo", "components", 250)
    lines = {line.split(":")[0]: line for line in prose.components("demo").splitlines()}
    assert lines["- separation only"].endswith("It is no better than guessing, even without an attack.")
    assert "guessing" not in lines["- auxiliary heads only"]


def test_black_box_breaks_are_counted_among_the_survivors(root):
    run = experiments.main_pair("demo")[0]
    columns(run, "demo", "whitebox", 80)
    columns(run, "demo", "blackbox", lambda name: 78 if name == "square" else 80)
    assert "N-Attack 0 of 80, Square 2 of 80." in prose.blackbox("demo")


def test_streams_that_the_head_cannot_tell_apart_are_named(root):
    run = experiments.main_pair("demo")[1]
    planned = next(
        a for a in experiments.analyses("demo", "all", run) if a.kind == "streams" and a.checkpoint == "last"
    )
    store.save_config(run)
    right = {"robust": 100, "nonrobust": 120, "recalibrated": 110}
    rows = [{"stream": s, "probe": "aux", "attack": "pgd20", "n": 500, "correct": c} for s, c in right.items()]
    store.save_analysis(run, planned, {"rows": rows, "rows_clean": []})
    said = prose.streams("demo")
    assert "one seed, last epoch" in said and "no more in the robust stream (20.0 %) than in the other (24.0 %)" in said


def test_a_step_that_the_head_does_not_show_is_said(root):
    run = experiments.main_pair("demo")[1]
    planned = next(a for a in experiments.analyses("demo", "all", run) if a.kind == "streams")
    store.save_config(run)
    rows = [{"stream": s, "probe": "aux", "attack": "pgd20", "n": 500, "correct": c}
            for s, c in {"robust": 300, "nonrobust": 120, "recalibrated": 119}.items()]  # fmt: skip
    store.save_analysis(run, planned, {"rows": rows, "rows_clean": []})
    assert "the separation was not learnt" in prose.streams("demo")


@pytest.mark.parametrize("fails, told", [(None, "it was not run"), (0.0, "breaks every image"), (0.04, "4.0 %")])
def test_what_is_left_at_the_largest_radius_is_read_with_the_audit(root, fails, told):
    run = experiments.main_pair("demo")[0]
    store.save_config(run)
    for evaluation in experiments.evaluations("demo", "strength", run):
        store.save_evaluation(run, evaluation, range(500), [i < 5 for i in range(500)])
    if fails is not None:
        planned = next(a for a in experiments.analyses("demo", "all", run) if a.kind == "audit")
        store.save_analysis(run, planned, {"indicators": {"unbounded_attack_fails": fails}, "not_applicable": {}})
    said = prose.attack_strength("demo")
    assert told in said and "n = 500" in said


def test_a_profile_without_sweeps_says_so():
    assert prose.settings("headline") == "This profile varies no settings and no places."


def test_black_box_without_queries_says_so(root):
    run = experiments.main_pair("demo")[0]
    columns(run, "demo", "whitebox", 80)
    store.save_evaluation(run, experiments.columns("demo", "blackbox")["transfer-twin"], range(100), [True] * 100)
    assert "Not run: N-Attack, Square" in prose.blackbox("demo")


def test_the_audits_losses_are_compared_image_by_image(root):
    """AT loses nothing between protocol and worst case, FSR six images: p = 2 / 2**6."""
    for run, lost in zip(experiments.main_pair("demo"), (0, 6)):
        planned = next(a for a in experiments.analyses("demo", "all", run) if a.kind == "audit")
        store.save_config(run)
        protocol = np.arange(100) < 80
        arrays = {"authors_protocol": protocol, "worst_case": protocol & (np.arange(100) >= lost)}
        counts = {"n": 100, "clean": 90, "groups": {}, "authors_protocol": 80, "worst_case": 80 - lost}
        store.save_analysis(run, planned, counts, **arrays)
    said = prose.audit("demo")
    assert "Seed 0, last weights, quick budget" in said and "(6 of 100 images)" in said
    assert "6 images with FSR, 0 without (p = 0.03, McNemar): more with FSR than chance explains" in said


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
    full = prose.budget("headline")
    assert "the setting of the authors' code, but with crafting and updates in bf16 and 1,000 of the training" in full
    shorter = prose.budget("headline40")
    assert "shorter schedule" in shorter and "far from" not in shorter and "neither confirms nor refutes" in shorter
    for profile in experiments.PROFILES:
        assert str(experiments.profile_of(profile).base.epochs) in prose.budget(profile)
