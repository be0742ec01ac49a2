"""The plan: what the specification asks for is there, shared, in order, and nothing is planned twice."""

from collections import Counter
from dataclasses import replace

import pytest

from fsr import experiments
from fsr.config import Run, run_id
from fsr.experiments import NEEDS, PROFILES, ROWS, SETS
from fsr.files import UsageError

KINDS = {"all", "audit", "blackbox", "components", "deactivation", "placement", "settings", "streams", "strength",
         "study", "whitebox"}  # fmt: skip
FULL = [name for name in PROFILES if name != "overfit"]  # that one plans T1, T4 and T11 alone
STUDY = {"all", "whitebox", "components", "study"}
PAIR = [("at", 0), ("at+fsr", 0), ("at", 1), ("at+fsr", 1), ("at", 2), ("at+fsr", 2)]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fills_its_sets_and_all_is_their_union_each_item_once(profile):
    filled = {kind for kind, runs in SETS[profile].items() if runs}
    assert set(SETS[profile]) == KINDS
    assert filled == (STUDY if profile == "overfit" else KINDS - {"study"})
    everything = SETS[profile]["all"]
    assert len({run_id(run) for run in everything}) == len(everything)
    assert {run for runs in SETS[profile].values() for run in runs} == set(everything)
    for run in everything[:40]:
        union = {e for kind in KINDS - {"all"} for e in experiments.evaluations(profile, kind, run)}
        asked = experiments.evaluations(profile, "all", run)
        assert set(asked) == union and len({(e.checkpoint, e.attack_id) for e in asked}) == len(asked) == len(union)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_row_is_in_its_set_and_its_baseline_differs_only_by_the_module(profile):
    for kind, rows in ROWS[profile].items():
        for row in rows:
            assert set(row.runs) <= set(SETS[profile][kind])
            for run, baseline in zip(row.runs, row.baseline):
                assert baseline in SETS[profile]["all"] and baseline.seed == run.seed
                if row.intervention is None and profile != "ci":  # ci's ablations train for one epoch, its pair for two
                    assert replace(run, module=None) == baseline


def test_demo_is_the_architectures_plan_and_both_controls_with_every_seed():
    runs = SETS["demo"]["all"]
    assert len(runs) == 43
    expected = {"at": 5, "natural": 1, "trades": 1, "trades+fsr": 1, "mart": 1, "mart+fsr": 1, "at+fd": 1, "at+cas": 1,
                "at+cifs": 1, "at+separation": 1, "at+residual": 3, "at+aux": 3, "at+fsr": 23}  # fmt: skip
    assert Counter(run.label for run in runs) == expected
    assert {run.eps for run in runs} == {0.15} and {run.epochs for run in runs} == {15}
    assert {run.precision for run in runs} == {"float32"} and {run.holdout for run in runs} == {100}
    varied = {(r.fsr.tau, r.fsr.lambda_sep, r.fsr.lambda_rec, r.fsr.mask, r.fsr.granularity)
              for r in SETS["demo"]["settings"]}  # fmt: skip
    assert len(varied) == 12 and {v[0] for v in varied} == {0.05, 0.1, 0.5, 1.0}
    places = {run.fsr.at for run in SETS["demo"]["placement"]}
    assert places == {("layer1",), ("layer2",), ("layer3",), ("layer4",), ("layer2", "layer3")}


def test_required_runs_come_first_seed_by_seed():
    for profile in ("demo", "mini", "headline", "headline40", "paper"):
        assert [(run.label, run.seed) for run in SETS[profile]["all"][:6]] == PAIR


def test_mini_trains_other_epochs_and_precisions_against_an_at_of_their_own():
    rows = {row.name: row for row in ROWS["mini"]["settings"] if row.checkpoints}
    assert list(rows) == ["epochs = 5", "epochs = 10", "epochs = 20", "precision = float32"]
    plain, both = experiments.main_pair("mini")
    for row in rows.values():
        assert [run.seed for run in row.runs] == [0, 1, 2]
        changed = {row.axis: row.value}
        assert (row.baseline[0], row.runs[0]) == (replace(plain, **changed), replace(both, **changed))
    for run in (*rows["epochs = 5"].baseline, *rows["epochs = 5"].runs):  # F10 shows all three, beside AutoAttack
        asked = {(e.attack, e.checkpoint) for e in experiments.evaluations("mini", "all", run)}
        assert {("cw", "last"), ("cw", "best"), ("cw", "ema"), ("autoattack", "last")} <= asked
    seeds = {row.name: len(row.runs) for row in ROWS["mini"]["components"] if row.intervention is None}
    three = {"AT", "AT + FSR", "recalibration without L_sep", *experiments.CONTROLS}
    assert {name for name, count in seeds.items() if count == 3} == three


def test_the_overfitting_study_is_five_rows_of_five_seeds():
    rows = ROWS["overfit"]["study"]
    names = ["AT", "AT + FSR", "recalibration without L_sep", *experiments.CONTROLS]
    assert [row.name for row in rows] == names and all(len(row.runs) == 5 for row in rows)
    assert {run_id(run) for run in SETS["overfit"]["all"]} >= {
        "cifar10-resnet18-at-s0-63a12d9d45", "cifar10-resnet18-at+fsr-s0-ffd767f0e8",
    }  # fmt: skip
    for row in rows:
        for run in row.runs:
            asked = experiments.evaluations("overfit", "all", run)
            columns = {(e.attack, e.checkpoint) for e in asked if e.images == 2000}
            strong = {e.checkpoint for e in asked if e.images == 500}
            assert len(columns) == 15 and experiments.analyses("overfit", "all", run) == ()
            expected = {"last", "best", "ema"} if run.seed == 0 else {"last"}
            assert strong == (expected if row.name in names[:2] else set())
            assert not any(e.intervention or e.surrogate for e in asked)


def test_columns_of_all_checkpoints_and_autoattack_budgets():
    for profile, name, images in (("ci", "autoattack-ci", 32), ("demo", "autoattack", 100), ("mini", "autoattack", 500),
                                  ("headline", "autoattack", None), ("headline40", "autoattack", None)):  # fmt: skip
        asked = experiments.evaluations(profile, "whitebox", experiments.main_pair(profile)[1])
        assert {e.images for e in asked if e.attack == name} == {images}
        for checkpoint in ("last", "best", "ema"):
            assert {"clean", "fgsm", "pgd20", "pgd100", "cw"} <= {e.attack for e in asked if e.checkpoint == checkpoint}
        assert len({e.images for e in asked if e.attack != name}) == 1  # Ensemble is taken over common images


@pytest.mark.parametrize("profile", FULL)
def test_transfer_and_audit_never_come_from_the_target_itself(profile):
    pair, sources = experiments.main_pair(profile), experiments.surrogates(profile)
    for target in pair:
        asked = {e.surrogate for e in experiments.evaluations(profile, "blackbox", target)} - {None}
        assert asked == {run_id(run) for run in sources.values()} and run_id(target) not in asked
    twin = sources["AT twin"]
    assert twin.seed != 0 and twin.module is None and twin in SETS[profile]["blackbox"]
    audited = [run for run in SETS[profile]["audit"] if experiments.analyses(profile, "audit", run)]
    assert tuple(audited) == pair and twin in SETS[profile]["audit"]


def test_sweeps_reach_from_weak_to_hopeless_and_never_repeat_the_default():
    run = experiments.main_pair("demo")[0]
    asked = experiments.evaluations("demo", "strength", run)
    eps = [e.eps for e in asked if e.eps is not None]
    assert min(eps) < run.eps and max(eps) >= 4 * run.eps and eps == sorted(eps)
    steps = [e.steps for e in asked if e.steps is not None]
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] >= 100
    assert len({e.attack_id for e in asked}) == len(asked)


def test_interventions_and_analyses_of_the_main_pair():
    plain, both = experiments.main_pair("demo")
    names = {e.intervention for e in experiments.evaluations("demo", "components", both)} - {None}
    assert names == {"mask_one", "no_recalibration", "mask_random", "mask_constant", "mask_shuffled"}
    assert not any(e.intervention for e in experiments.evaluations("demo", "all", plain))
    assert {a.kind for a in experiments.analyses("demo", "all", plain)} == {"cost", "audit"}
    kinds = {a.kind for a in experiments.analyses("demo", "all", both)}
    assert kinds == {"cost", "audit", "streams", "masks", "maps", "features"}
    assert len([r for r in SETS["demo"]["settings"] if any(a.kind == "masks" for a in
                experiments.analyses("demo", "settings", r))]) == 4  # one per tau  # fmt: skip


def test_named_runs_unknown_names_and_runs_outside_a_set():
    runs = experiments.named("demo")
    assert (runs["at"], runs["at+fsr"]) == experiments.main_pair("demo") and runs["natural"].method == "natural"
    assert experiments.evaluations("demo", "whitebox", Run()) == experiments.analyses("demo", "audit", Run()) == ()
    assert all(set(needs) <= KINDS for needs in NEEDS.values())
    with pytest.raises(UsageError, match="choose one of ci, demo"):
        experiments.main_pair("dmeo")
    with pytest.raises(UsageError, match="whitebox"):
        experiments.evaluations("demo", "white", Run())


@pytest.mark.parametrize("profile", ["mini", "headline", "headline40", "paper"])
def test_larger_profiles_attack_every_row_of_t4_to_t6_with_autoattack(profile):
    """Temperature, hard masks and controls at test time are where gradients vanish first."""
    for kind in ("components", "settings", "placement"):
        planned = experiments.columns(profile, kind)["autoattack"]
        for row in ROWS[profile][kind]:
            asked = experiments.evaluations(profile, "all", row.runs[0])
            assert replace(planned, intervention=row.intervention) in asked
    asked = [run for run in SETS["demo"]["all"] for e in experiments.evaluations("demo", "all", run)
             if e.attack == "autoattack"]  # fmt: skip
    assert len(asked) == 13 and {run.backbone for run in asked} == {"resnet18"}  # demo: T1 and T2 alone


def test_headline40_reports_its_ema_weights_and_the_others_the_last():
    pair = experiments.main_pair("headline40")
    for kind in ("deactivation", "blackbox", "settings", "strength"):
        asked = [e for run in pair for e in experiments.evaluations("headline40", kind, run)]
        assert "ema" in {e.checkpoint for e in asked}
        assert {e.checkpoint for e in experiments.columns("headline40", kind).values()} == {"ema"}
    controls = [e for e in experiments.evaluations("headline40", "components", pair[1]) if e.intervention]
    assert {e.checkpoint for e in controls} == {"ema"}
    assert {a.checkpoint for a in experiments.analyses("headline40", "all", pair[1])} == {"ema"}
    for name in set(PROFILES) - {"headline40"}:
        assert {e.checkpoint for e in experiments.columns(name, "whitebox").values()} == {"last"}


def test_ci_is_small_and_paper_whole():
    ci, paper = SETS["ci"]["all"], SETS["paper"]["whitebox"]
    assert len(ci) <= 16 and len(paper) == 3 * 3 * 3 * 2 * 3  # data sets, backbones, methods, with FSR or not, seeds
    assert all((r.train_size, r.test_size, r.width, r.blocks) == (192, 64, 4, (1, 1, 1, 1)) for r in ci)
    assert {r.epochs for r in ci} == {1, 2} and all(r.epochs == 2 for r in experiments.main_pair("ci"))
    assert {run.lr for run in paper if run.dataset == "svhn"} == {0.01}
    assert all(run.width is None and run.epochs == 100 and run.train_size is None for run in paper)
