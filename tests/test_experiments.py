"""The plan: what the specification asks for is there, shared, in order, and nothing is planned twice."""

from collections import Counter

import pytest

from fsr import experiments
from fsr.config import FSRSpec, Run, for_dataset, run_id
from fsr.experiments import NEEDS, NOTEBOOKS, PROFILES, ROWS, SETS, cost
from fsr.files import UsageError
from fsr.runs.auditing import surrogate_run
from fsr.tables import measure

KINDS = {"all", "audit", "blackbox", "components", "deactivation", "placement", "settings", "streams", "strength",
         "whitebox"}  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_every_set_and_none_is_empty(profile):
    assert set(SETS[profile]) == KINDS
    assert all(SETS[profile].values())


@pytest.mark.parametrize("profile", PROFILES)
def test_ids_are_unique_and_all_holds_every_set(profile):
    everything = SETS[profile]["all"]
    assert len({run_id(run) for run in everything}) == len(everything)
    assert {run for runs in SETS[profile].values() for run in runs} == set(everything)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_row_is_in_its_set_and_its_twin_differs_only_by_the_module(profile):
    for kind, rows in ROWS[profile].items():
        for row in rows:
            assert set(row.runs) <= set(SETS[profile][kind])
            for run, plain in zip(row.runs, row.plain):
                assert plain in SETS[profile]["all"] and plain.seed == run.seed
                if row.intervention is None and profile != "ci":  # ci's ablations train for one epoch, its pair for two
                    assert experiments.rows.replace(run, module=None) == plain


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
        first = [(run.label, run.seed) for run in SETS[profile]["all"][:6]]
        assert first == [("at", 0), ("at+fsr", 0), ("at", 1), ("at+fsr", 1), ("at", 2), ("at+fsr", 2)]
    labels = [run.label for run in SETS["mini"]["all"][6:12]]
    assert labels == ["at+residual", "at+aux", "trades", "trades+fsr", "mart", "mart+fsr"]


def test_t1s_resnet_is_the_reference_of_the_other_tables():
    _, both = experiments.main_pair("demo")
    for kind in ("whitebox", "deactivation", "blackbox", "components", "settings", "placement", "streams", "audit"):
        assert both in SETS["demo"][kind]


def test_paper_covers_three_data_sets_backbones_methods_and_seeds():
    runs = SETS["paper"]["whitebox"]
    assert len(runs) == 3 * 3 * 3 * 2 * 3
    assert {run.lr for run in runs if run.dataset == "svhn"} == {0.01}
    assert all(run.width is None and run.epochs == 100 and run.train_size is None for run in runs)


def test_ci_is_small():
    runs = SETS["ci"]["all"]
    assert len(runs) <= 16
    assert all((r.train_size, r.test_size, r.width, r.blocks) == (192, 64, 4, (1, 1, 1, 1)) for r in runs)
    assert {r.epochs for r in runs} == {1, 2} and all(r.epochs == 2 for r in experiments.main_pair("ci"))


def test_columns_of_all_checkpoints_and_autoattack_budgets():
    for profile, name, images in (("ci", "autoattack-ci", 32), ("demo", "autoattack", 100), ("mini", "autoattack", 500),
                                  ("headline", "autoattack", None), ("headline40", "autoattack", None)):  # fmt: skip
        run = experiments.main_pair(profile)[1]
        asked = experiments.evaluations(profile, "whitebox", run)
        assert {e.images for e in asked if e.attack == name} == {images}
        for checkpoint in ("last", "best", "ema"):
            assert {"clean", "fgsm", "pgd20", "pgd100", "cw"} <= {e.attack for e in asked if e.checkpoint == checkpoint}
        columns = [e for e in asked if e.attack != name]
        assert len({e.images for e in columns}) == 1  # Ensemble is taken over common images


def test_interventions_are_asked_of_trained_fsr_runs_only():
    plain, both = experiments.main_pair("demo")
    names = {e.intervention for e in experiments.evaluations("demo", "components", both)} - {None}
    assert names == {"mask_one", "no_recalibration", "mask_random", "mask_constant", "mask_shuffled"}
    assert not any(e.intervention for e in experiments.evaluations("demo", "all", plain))


@pytest.mark.parametrize("profile", PROFILES)
def test_transfer_never_comes_from_the_target_itself(profile):
    plain, both = experiments.main_pair(profile)
    surrogates = {run_id(run): run for run in experiments.rows.surrogates(PROFILES[profile]).values()}
    for target in (plain, both):
        sources = {e.surrogate for e in experiments.evaluations(profile, "blackbox", target)} - {None}
        assert sources == set(surrogates) and run_id(target) not in sources
    twin = surrogates[run_id(next(r for r in surrogates.values() if r.method == "at"))]
    assert twin.seed != 0 and twin.module is None and twin in SETS[profile]["blackbox"]


def test_sweeps_reach_from_weak_to_hopeless_and_never_repeat_the_default():
    run = experiments.main_pair("demo")[0]
    asked = experiments.evaluations("demo", "strength", run)
    eps = [e.eps for e in asked if e.eps is not None]
    assert min(eps) < run.eps and max(eps) >= 4 * run.eps and eps == sorted(eps)
    steps = [e.steps for e in asked if e.steps is not None]
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] >= 100
    assert len({e.attack_id for e in asked}) == len(asked)


@pytest.mark.parametrize("profile", PROFILES)
def test_all_is_the_union_each_item_once_and_files_do_not_collide(profile):
    for run in SETS[profile]["all"][:40]:
        union = {e for kind in KINDS - {"all"} for e in experiments.evaluations(profile, kind, run)}
        everything = experiments.evaluations(profile, "all", run)
        assert set(everything) == union and len(everything) == len(union)
        assert len({(e.checkpoint, e.attack_id) for e in everything}) == len(everything)


def test_a_run_outside_a_set_is_asked_for_nothing():
    assert experiments.evaluations("demo", "whitebox", Run()) == ()
    assert experiments.analyses("demo", "audit", Run()) == ()


def test_analyses_of_the_main_pair():
    plain, both = experiments.main_pair("demo")
    assert {a.kind for a in experiments.analyses("demo", "all", plain)} == {"cost", "audit"}
    kinds = {a.kind for a in experiments.analyses("demo", "all", both)}
    assert kinds == {"cost", "audit", "streams", "masks", "maps", "features"}
    assert len([r for r in SETS["demo"]["settings"] if any(a.kind == "masks" for a in
                experiments.analyses("demo", "settings", r))]) == 4  # one per tau  # fmt: skip


def test_notebooks_are_00_to_16_and_need_known_sets():
    assert [name[:2] for name in NOTEBOOKS] == [f"{i:02d}" for i in range(17)]
    assert all(set(needs) <= KINDS for needs in NEEDS.values())


def test_named_gives_the_default_runs_by_label():
    runs = experiments.named("demo")
    assert (runs["at"], runs["at+fsr"]) == experiments.main_pair("demo")
    assert runs["at+fsr"].fsr == FSRSpec(at=("layer3",)) and runs["natural"].method == "natural"


def test_unknown_names_say_what_to_type():
    with pytest.raises(UsageError, match="choose one of ci, demo"):
        experiments.main_pair("dmeo")
    with pytest.raises(UsageError, match="whitebox"):
        experiments.evaluations("demo", "white", Run())


@pytest.mark.parametrize(("backbone", "macs"), [("resnet18", 0.5554), ("vgg16", 0.3137), ("wideresnet34", 6.6589)])
def test_multiply_adds_are_those_of_the_specification(backbone, macs):
    assert cost.forward_macs(Run(backbone=backbone)) / 1e9 == pytest.approx(macs, abs=1e-4)


def test_cost_is_linear_in_epochs_and_an_order_lower_without_an_attack():
    run = for_dataset("cifar10", epochs=10)
    assert cost.estimate(experiments.rows.replace(run, epochs=20)) == pytest.approx(2 * cost.estimate(run))
    natural = experiments.rows.replace(run, method="natural")
    assert cost.training_flops(run) == 11 * cost.training_flops(natural)
    assert cost.estimate(experiments.rows.replace(run, epochs=1)) == pytest.approx(34.1)


def test_measured_speed_is_that_of_the_largest_network():
    small, large = Run(width=16, epochs=1), Run(epochs=1)
    speed = cost.measured_speed([(large, 20.0), (small, 20.0)])
    assert cost.estimate(large, speed) == pytest.approx(20.0)
    assert cost.measured_speed([]) is None


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_an_audit_has_what_it_transfers_from_and_audits_the_pair_alone(profile):
    """AT + FSR is attacked from AT of its seed, AT from another seed's."""
    runs = SETS[profile]["audit"]
    audited = [run for run in runs if experiments.analyses(profile, "audit", run)]
    assert tuple(audited) == experiments.main_pair(profile) and len(runs) == 3
    assert {surrogate_run(run) for run in audited} <= set(runs)


def test_demo_spends_autoattack_on_t1s_and_t2s_resnets_only():
    asked = [run for run in SETS["demo"]["all"] for e in experiments.evaluations("demo", "all", run)
             if e.attack == "autoattack"]  # fmt: skip
    labels = {"at", "at+fsr", "trades", "trades+fsr", "mart", "mart+fsr", "at+fd", "at+cas", "at+cifs"}
    assert {run.label for run in asked} == labels
    assert len(asked) == 13 and {run.backbone for run in asked} == {"resnet18"}
    assert "autoattack" not in experiments.columns("demo", "components")


@pytest.mark.parametrize("profile", ["mini", "headline", "headline40", "paper"])
def test_larger_profiles_attack_every_row_of_t4_to_t6_with_autoattack(profile):
    """Temperature, hard masks and controls at test time are where gradients vanish first."""
    for kind in ("components", "settings", "placement"):
        wanted = experiments.columns(profile, kind)["autoattack"]
        for row in ROWS[profile][kind]:
            asked = experiments.evaluations(profile, kind, row.runs[0])
            assert experiments.rows.replace(wanted, intervention=row.intervention) in asked


def test_headline40_looks_at_its_ema_weights_and_claims_stay_about_the_last():
    """Its tables, sentences and figures but T1; what decides a claim was fixed before, as `last`."""
    plain, both = experiments.main_pair("headline40")
    for kind in ("deactivation", "blackbox", "settings", "strength"):
        asked = [e for run in (plain, both) for e in experiments.evaluations("headline40", kind, run)]
        assert "ema" in {e.checkpoint for e in asked}
        assert {e.checkpoint for e in experiments.columns("headline40", kind).values()} == {"ema"}
    controls = [e for e in experiments.evaluations("headline40", "components", both) if e.intervention]
    assert {e.checkpoint for e in controls} == {"ema"}
    assert {a.checkpoint for a in experiments.analyses("headline40", "all", both)} == {"ema"}
    for metric in ("autoattack", "ensemble"):
        assert measure.column("headline40", metric).checkpoint == "last"
    for name in set(experiments.PROFILES) - {"headline40"}:
        assert {e.checkpoint for e in experiments.columns(name, "whitebox").values()} == {"last"}
