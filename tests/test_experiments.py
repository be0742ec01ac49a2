"""The plan: what the specification asks for is there, shared, in order, and nothing is planned twice."""

from collections import Counter
from dataclasses import replace

import pytest

from fsr import experiments
from fsr.config import Run, run_id
from fsr.experiments import NEEDS, PROFILES, ROWS, SETS
from fsr.experiments import evaluations as planned
from fsr.files import UsageError

KINDS = {"all", "study", "whitebox", "deactivation", "blackbox", "components", "settings", "placement", "streams"}
KINDS |= {"strength", "audit"}
SIZES = {"ci": (16, 162, 7, 12), "demo": (43, 624, 13, 20), "mini": (63, 998, 85, 20), "headline": (7, 254, 33, 13)}
SIZES |= {"headline40": (7, 254, 33, 10), "overfit": (25, 389, 14, 0), "paper": (205, 3300, 231, 32)}
FULL = [name for name in PROFILES if name != "overfit"]  # that one plans T1, T4 and T11 alone


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fills_its_sets_and_all_is_their_union_each_item_once(profile):
    filled = {kind for kind, runs in SETS[profile].items() if runs}
    assert set(SETS[profile]) == KINDS
    assert filled == ({"all", "whitebox", "components", "study"} if profile == "overfit" else KINDS - {"study"})
    everything = SETS[profile]["all"]
    assert len({run_id(run) for run in everything}) == len(everything)
    assert {run for runs in SETS[profile].values() for run in runs} == set(everything)
    for run in everything[:40]:
        union = {e for kind in KINDS - {"all"} for e in planned(profile, kind, run)}
        requested = planned(profile, "all", run)
        assert set(requested) == union and len(requested) == len(union)
        assert len({(e.checkpoint, e.attack_id) for e in requested}) == len(union)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_row_is_in_its_set_and_its_baseline_differs_only_by_the_module(profile):
    for kind, row in ((kind, row) for kind, rows in ROWS[profile].items() for row in rows):
        assert set(row.runs) <= set(SETS[profile][kind])
        for run, baseline in zip(row.runs, row.baseline):
            assert baseline in SETS[profile]["all"] and baseline.seed == run.seed
            if row.intervention is None and profile != "ci":  # ci's ablations train for one epoch, its pair for two
                assert replace(run, module=None) == baseline


def test_demo_is_the_architectures_plan_and_both_controls_with_every_seed():
    runs = SETS["demo"]["all"]
    expected = dict.fromkeys(("natural", "trades", "trades+fsr", "mart", "mart+fsr", "at+fd", "at+cas", "at+cifs"), 1)
    expected |= {"at+separation": 1, "at": 5, "at+residual": 3, "at+aux": 3, "at+fsr": 23}
    assert len(runs) == 43 and Counter(run.label for run in runs) == expected
    assert {(run.eps, run.epochs, run.precision, run.holdout) for run in runs} == {(0.15, 15, "float32", 100)}
    varied = {replace(run.fsr, at=()) for run in SETS["demo"]["settings"]}
    assert len(varied) == 12 and {fsr.tau for fsr in varied} == {0.05, 0.1, 0.5, 1.0}
    places = {"+".join(run.fsr.at) for run in SETS["demo"]["placement"]}
    assert places == {"layer1", "layer2", "layer3", "layer4", "layer2+layer3"}
    for profile in ("demo", "mini", "headline", "headline40", "paper"):  # required runs come first
        first = [(label, seed) for seed in range(3) for label in ("at", "at+fsr")]
        assert [(run.label, run.seed) for run in SETS[profile]["all"][:6]] == first


def test_sizes_of_the_plans():
    """Trainings, evaluations, those by AutoAttack, and analyses."""
    for profile, expected in SIZES.items():
        runs = SETS[profile]["all"]
        requested = [evaluation for run in runs for evaluation in planned(profile, "all", run)]
        strong = [evaluation for evaluation in requested if evaluation.attack.startswith("autoattack")]
        analysed = [analysis for run in runs for analysis in experiments.analyses(profile, "all", run)]
        assert (len(runs), len(requested), len(strong), len(analysed)) == expected, profile
        assert {e.images for e in strong} == {{"ci": 32, "demo": 100, "mini": 500, "overfit": 500}.get(profile)}


@pytest.mark.parametrize("profile", FULL)
def test_transfer_and_audit_never_come_from_the_target_itself(profile):
    pair, sources = experiments.main_pair(profile), experiments.surrogates(profile)
    for target in pair:
        requested = {e.surrogate for e in planned(profile, "blackbox", target)} - {None}
        assert requested == {run_id(run) for run in sources} and run_id(target) not in requested
    baseline = sources[0]
    assert baseline.seed != 0 and baseline.module is None and baseline in SETS[profile]["blackbox"]
    audited = [run for run in SETS[profile]["audit"] if experiments.analyses(profile, "audit", run)]
    assert tuple(audited) == pair and baseline in SETS[profile]["audit"]


def test_sweeps_reach_from_weak_to_hopeless_and_never_repeat_the_default():
    run = experiments.main_pair("demo")[0]
    requested = planned("demo", "strength", run)
    eps, steps = ([v for e in requested if (v := getattr(e, name)) is not None] for name in ("eps", "steps"))
    assert min(eps) < run.eps and max(eps) >= 4 * run.eps and eps == sorted(eps)
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] >= 100


def test_interventions_and_analyses_of_the_main_pair():
    plain, both = experiments.main_pair("demo")
    names = [{e.intervention for e in planned("demo", "all", run)} - {None} for run in (plain, both)]
    assert names == [set(), {"mask_one", "no_recalibration", "mask_random", "mask_constant", "mask_shuffled"}]
    kinds = [{a.kind for a in experiments.analyses("demo", "all", run)} for run in (plain, both)]
    assert kinds == [{"cost", "audit"}, {"cost", "audit", "streams", "masks", "maps", "features"}]


def test_unknown_names_and_runs_outside_a_set():
    assert planned("demo", "whitebox", Run()) == experiments.analyses("demo", "audit", Run()) == ()
    assert all(set(needs) <= KINDS for needs in NEEDS.values())
    with pytest.raises(UsageError, match="choose one of ci, demo"):
        experiments.main_pair("dmeo")


@pytest.mark.parametrize("profile", ["mini", "headline", "headline40", "paper"])
def test_larger_profiles_attack_every_row_of_t4_to_t6_with_autoattack(profile):
    """Temperature, hard masks and controls at test time are where gradients vanish first."""
    for kind in ("components", "settings", "placement"):
        column = experiments.columns(profile, kind)["autoattack"]
        for row in ROWS[profile][kind]:
            assert replace(column, intervention=row.intervention) in planned(profile, "all", row.runs[0])
