"""T1 to T6 and T11 from records whose numbers are known."""

import shutil

import numpy as np
import pytest
from scipy.stats import binomtest

from fsr import experiments, tables
from fsr.config import PROTOCOL, Evaluation, run_id
from fsr.files import UsageError, run_dir, save_json
from fsr.store import save_config, save_evaluation

AT, BOTH = experiments.main_pair("demo")
ROWS = {kind: {row.name: row.runs for row in reversed(rows)} for kind, rows in experiments.ROWS["demo"].items()}
WHITEBOX = ROWS["whitebox"]
GAIN = "AT + FSR: gain over AT"
DOUBTS = [(1, 0, "none"), (2, 0, "PGD-20, joint loss breaks 2 of the 70 that it leaves")]
DOUBTS += [(2, 2, "pgd10 breaks 2 of the 50 that it leaves")]  # of 50 both saw: more than 2 of 100


def pick(name="T1", profile="demo", **keys):
    """The one cell of a table's frame with these keys; network, weights and kind default to the main ones."""
    frame = tables.table(profile, name)
    keys = {"backbone": "resnet18", "checkpoint": "last", "metric": "pgd20", "kind": "ours"} | keys
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, (keys, len(frame))
    return frame.iloc[0]


def test_a_table_shows_each_record_as_soon_as_it_is_there_and_never_a_callers_changes(records):
    write, cells = records("demo"), []
    for metric in PROTOCOL:  # a folder may change twice within one tick of the clock
        cells.append(pick(metric="ensemble", row="AT")["status"])
        write.evaluation(AT, metric, 300)
    frame = tables.table("demo", "T1")
    frame["value"] = 0.0
    assert cells == ["not run"] * 5 and pick(metric="ensemble", row="AT")["value"] == 0.6
    shutil.rmtree(run_dir(run_id(AT)))  # and made again
    write.evaluation(AT, "clean", 200)
    assert pick(metric="clean", row="AT")["value"] == 0.4


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_without_records_every_planned_row_is_there_and_says_not_run(root, profile):
    for name in set(tables.of_profile(profile)) & set(tables.robustness.KINDS):
        ours = tables.table(profile, name).query("kind == 'ours'")
        planned = {row.name for row in experiments.ROWS[profile][tables.robustness.KINDS[name]]}
        assert planned == set(ours["row"]) and ours["value"].isna().all()
        assert set(ours["status"]) <= {"not run", "not applicable"}
    if profile != "overfit":  # the study alone has T11
        with pytest.raises(UsageError, match="no table 'T11'"):
            tables.table(profile, "T11")


def test_accuracy_and_wilsons_interval_of_one_seed_and_the_mean_over_three(records, shown):
    records("demo").columns(AT, 400)
    cell, exact = pick(row="AT"), binomtest(400, 500).proportion_ci(0.95, method="wilson")
    assert (cell["value"], cell["n"], cell["seeds"], cell["planned"]) == (0.8, 500, 1, 3)
    assert (cell["low"], cell["high"]) == pytest.approx((exact.low, exact.high))
    row = shown("AT")
    assert (row["PGD-20"], row["seeds"], row["n"]) == ("80.0 [76.3, 83.3]", "1 of 3", "500")
    assert row["AutoAttack"] == "not run" and shown("AT", weights="ema")["PGD-20"] == "not run"
    for run, right in zip(WHITEBOX["AT"][1:], (390, 410)):
        records("demo").columns(run, right)  # a new record is seen at once
    assert shown("AT")["no attack"] == "80.0 ± 2.0 [76.3, 83.3]"  # of 500 images: all seeds see the same


@pytest.mark.parametrize("before, after, sign", [(400, 420, "+"), (420, 400, "\N{MINUS SIGN}")])
def test_gain_is_paired_by_image_and_has_its_sign(records, shown, before, after, sign):
    records("demo").columns(AT, before)
    records("demo").columns(BOTH, after)
    cell, value = pick(kind="gain", row=GAIN), (after - before) / 500
    assert cell["value"] == pytest.approx(value) and cell["p_first_seed"] == pytest.approx(2 * 0.5**20)
    spread = 1.96 * np.sqrt(0.04 * 0.96 / 500)
    assert (cell["low"], cell["high"]) == pytest.approx((value - spread, value + spread), abs=0.004)
    assert shown(GAIN)["PGD-20"].startswith(f"{sign}4.0 [{sign}")


def test_ensemble_is_taken_per_image_and_needs_all_five(records, shown):
    write = records("demo")
    write.columns(WHITEBOX["AT + FSR"][2], 400)
    for metric in ("clean", "fgsm", "pgd20", "pgd100"):
        write.evaluation(AT, metric, 400)
    assert shown(GAIN)["PGD-20"] == "not run"  # of another seed
    assert shown("AT")["Ensemble"] == "not run"
    write.evaluation(AT, "cw", np.arange(500) >= 100)  # right where the others are wrong, and on 300 of theirs
    assert pick(row="AT", metric="ensemble")["value"] == 0.6


def test_autoattack_shows_its_own_n_and_a_doubt_is_marked(records, shown):
    write = records("demo")
    write.columns(AT, 400)
    write.evaluation(AT, "autoattack", 70, flags={"zero_gradient": True, "dynamic": False, "zero_gradient_points": 3})
    assert shown("AT")["AutoAttack"] == "70.0† [60.4, 78.1] n=100"
    assert pick(row="AT", metric="autoattack")["flags"] == "zero gradient"
    assert ["†: " in tables.display.legend(tables.table("demo", name)) for name in ("T1", "T3")] == [True, False]


@pytest.mark.parametrize("broken, few, doubt", DOUBTS)
def test_another_attack_that_breaks_what_autoattack_leaves_puts_it_in_doubt(records, broken, few, doubt):
    """Of its 100 images AutoAttack leaves the first 70; the joint loss breaks some of these, and most others."""
    write, cas = records("demo"), ROWS["deactivation"]["AT + CAS"][0]
    write.evaluation(cas, "autoattack", 70, kind="deactivation", flags={"dynamic": False})
    joint = (np.arange(500) >= broken) & (np.arange(500) < 80)
    write.evaluation(cas, "pgd20-joint", joint, kind="deactivation")
    save_evaluation(cas, Evaluation(attack="pgd10", images=50), np.arange(50), np.arange(50) >= few)
    write.evaluation(cas, "pgd20", 0, kind="deactivation", eps=0.3)  # stronger: says nothing
    write.evaluation(cas, "pgd20", 0, kind="deactivation", intervention="mask_one")  # another network
    assert pick("T2", row="AT + CAS", metric="autoattack")["flags"] == doubt


def test_interventions_surrogates_and_sweeps_are_other_rows(records, shown):
    write, name = records("demo"), "m = 1 at test (FSR bypassed)"
    write.evaluation(AT, "transfer-twin", 300, kind="blackbox")
    assert shown("AT", "T3")["transfer (AT)"].startswith("60.0")
    assert shown("AT", "T3")["transfer (natural)"] == "not run"
    write.columns(ROWS["settings"]["tau = 1.0"][0], 250, kind="settings")
    assert shown("AT + FSR")["PGD-20"] == shown("tau = 0.1", "T5")["PGD-20"] == "not run"
    assert shown("tau = 1.0", "T5")["PGD-20"].startswith("50.0")
    write.columns(BOTH, 400, kind="components")
    write.columns(BOTH, 300, kind="components", intervention="mask_one")
    assert pick("T4", row="AT + FSR")["value"] == 0.8 and pick("T4", row=name)["value"] == 0.6
    assert pick("T4", row=f"{name}: gain over AT + FSR", kind="gain")["value"] == pytest.approx(-0.2)
    assert set(tables.table("demo", "T4").query("row == @name")["checkpoint"]) == {"last"}


def test_joint_loss_is_of_the_networks_with_auxiliary_logits(records, shown):
    records("demo").evaluation(ROWS["deactivation"]["AT + CAS"][0], "pgd20-joint", 200, kind="deactivation")
    joint = {name: shown(name, "T2")["PGD-20, joint loss"].split(" [")[0] for name in ROWS["deactivation"]}
    expected = {"AT": "not applicable", "AT + FD": "not applicable", "AT + CAS": "40.0", "AT + CIFS": "not run"}
    assert joint == expected | {"AT + FSR": "not run"}


def test_known_results_stand_beside_ours_on_their_data_only(shown):
    assert set(tables.table("demo", "T1")["kind"]) == {"ours", "gain"}
    row = shown("AT + FSR (rerun: github S-creator31/FSR (2026-04, one seed, H200))", profile="mini")
    assert (row["no attack"], row["PGD-20"], row["AutoAttack"]) == ("82.86", "52.38", "")


def test_the_papers_cells_and_differences_at_full_size_only(records, shown, typed):
    typed("T1,cifar10,resnet18,AT + FSR,pgd20,50.5,percent,", "T1,cifar10,resnet18,AT,pgd20,49,percent,")
    records("headline").columns(experiments.main_pair("headline")[1], 260)
    assert shown("AT + FSR: ours minus paper", profile="headline")["PGD-20"] == "+1.50"
    assert shown("AT: ours minus paper", profile="headline")["PGD-20"] == "not run"
    assert shown("AT + FSR: paper", profile="mini")["PGD-20"] == "50.50"
    assert not tables.table("mini", "T1")["kind"].eq("difference").any()
    theirs = pick(profile="mini", kind="paper", row="AT + FSR: paper")
    assert theirs["network"] == "ResNet-18"  # the paper's network, not ours


@pytest.mark.parametrize("row", ["AT + FRS,pgd20", "AT + FSR,pdg20"])
def test_a_misspelt_cell_names_its_line_instead_of_vanishing(typed, row):
    typed(f"T1,cifar10,resnet18,{row},50,percent,")
    with pytest.raises(UsageError, match="line 2: T1 has no row"):
        tables.table("headline", "T1")


def test_outcomes_of_other_weights_than_the_trainings_are_left_out_and_named(shown):
    """One column was taken from a later training of the same run: no row mixes the two."""
    save_config(AT)
    record = {"run_id": run_id(AT), "checkpoints": {"last": "first"}, "history_sha256": ""}
    save_json(run_dir(run_id(AT)) / "env.json", record)
    for attack in PROTOCOL:
        weights = "second" if attack == "cw" else "first"
        save_evaluation(AT, Evaluation(attack=attack), np.arange(500), np.ones(500, dtype=bool), weights=weights)
    row = shown("AT")
    assert (row["C&W"], row["Ensemble"]) == ("other weights", "other weights") and row["PGD-20"].startswith("100.0")
    (note,) = tables.notes("demo", "T1")
    assert "other weights are left out" in note and run_id(AT) in note and "run-all -p demo" in note
