"""T1 to T6 from records whose numbers are known."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fsr import experiments, tables
from fsr.config import Evaluation
from fsr.files import UsageError, run_dir, save_json
from fsr.store import ENSEMBLE, id_of, retrained_path, save_config, save_evaluation
from fsr.tables import cells, formats

AT, BOTH = experiments.main_pair("demo")
ROWS = {row.name: row for row in experiments.ROWS["demo"]["whitebox"][:2]}


def pick(table, **keys):
    frame = table.numbers
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, (keys, len(frame))
    return frame.iloc[0]


def shown(table, method, weights="last"):
    return table[(table["method"] == method) & (table["weights"] == weights)].iloc[0]


@pytest.mark.parametrize("profile", experiments.PROFILES)
def test_without_records_every_planned_row_is_there_and_says_not_run(root, profile):
    for name in ("T1", "T2", "T3", "T4", "T5", "T6"):
        table = tables.TABLES[name].make(profile)
        kind = tables.TABLES[name].slug
        planned = {row.name for row in experiments.ROWS[profile][kind]}
        assert planned <= set(table["method"])
        ours = table[table["method"].isin(planned)]
        for column in table.columns[4:]:
            words = {"not run", ""} | ({"not applicable"} if "joint" in column else set())
            assert set(ours[column]) <= words, (name, column)
        assert not table.about.bold and not table.about.runs


def test_accuracy_and_wilsons_interval_of_one_seed(records):
    records("demo").columns(AT, 400)
    table = tables.whitebox("demo")
    cell = pick(table, backbone="resnet18", row="AT", kind="ours", checkpoint="last", metric="pgd20")
    exact = binomtest(400, 500).proportion_ci(0.95, method="wilson")
    assert (cell["value"], cell["n"], cell["seeds"]) == (0.8, 500, 1)
    assert (cell["low"], cell["high"]) == pytest.approx((exact.low, exact.high))
    assert shown(table, "AT")["PGD-20"] == "80.0 [76.3, 83.3] (1 of 3 seeds)"
    assert shown(table, "AT")["AutoAttack"] == "not run" and shown(table, "AT", "ema")["PGD-20"] == "not run"
    assert table.about.runs == (id_of(AT),)


def test_mean_and_standard_deviation_over_seeds(records):
    for run, right in zip(ROWS["AT"].runs, (390, 400, 410)):
        records("demo").columns(run, right)
    text = shown(tables.whitebox("demo"), "AT")["no attack"]
    assert text == "80.0 ± 2.0 [76.3, 83.3]"  # the interval is of 500 images, not of 1500: all seeds see the same ones


def test_gain_is_paired_by_image_and_seed(records):
    write = records("demo")
    write.columns(AT, 400)
    write.columns(BOTH, 420)
    table = tables.whitebox("demo")
    cell = pick(table, backbone="resnet18", kind="gain", row="AT + FSR: gain over AT", checkpoint="last", metric="cw")
    assert cell["value"] == pytest.approx(0.04) and cell["p_first_seed"] == pytest.approx(2 * 0.5**20)
    spread = 1.96 * np.sqrt(0.04 * 0.96 / 500)
    assert (cell["low"], cell["high"]) == pytest.approx((0.04 - spread, 0.04 + spread), abs=0.004)
    assert shown(table, "AT + FSR: gain over AT")["C&W"].startswith("+4.0 [+2.")


def test_a_loss_has_a_minus_sign(records):
    write = records("demo")
    write.columns(AT, 420)
    write.columns(BOTH, 400)
    assert shown(tables.whitebox("demo"), "AT + FSR: gain over AT")["C&W"].startswith("\N{MINUS SIGN}4.0 [")


def test_gain_needs_the_same_seed(records):
    write = records("demo")
    write.columns(ROWS["AT"].runs[1], 400)
    write.columns(ROWS["AT + FSR"].runs[2], 400)
    assert shown(tables.whitebox("demo"), "AT + FSR: gain over AT")["C&W"] == "not run"


def test_ensemble_is_taken_per_image_and_needs_all_five(records):
    write = records("demo")
    write.columns(AT, 400, only=("clean", "fgsm", "pgd20", "pgd100"))
    assert shown(tables.whitebox("demo"), "AT")["Ensemble"] == "not run"
    write.evaluation(AT, "cw", np.arange(500) >= 100)  # right where the others are wrong, and on 300 of theirs
    table = tables.whitebox("demo")
    assert pick(table, backbone="resnet18", row="AT", kind="ours", checkpoint="last", metric="ensemble")["value"] == 0.6


def test_autoattack_shows_its_own_n_and_flags(records):
    write = records("demo")
    write.columns(AT, 400)
    write.evaluation(AT, "autoattack", 70, flags={"zero_gradient": True, "dynamic": False, "zero_gradient_points": 3})
    row = shown(tables.whitebox("demo"), "AT")
    assert row["AutoAttack"].startswith("70.0 [") and "n=100" in row["AutoAttack"]
    assert row["AutoAttack flags"] == "zero gradient" and row["n"] == "500"


def test_unflagged_autoattack_says_none(records):
    records("demo").evaluation(AT, "autoattack", 70, flags={"dynamic": False})
    assert shown(tables.whitebox("demo"), "AT")["AutoAttack flags"] == "none"


def test_the_best_of_our_rows_is_bold_and_only_there(records):
    write = records("demo")
    write.columns(AT, 400)
    write.columns(BOTH, 420)
    table = tables.whitebox("demo")
    bold = {(table["method"][i], table["weights"][i], column) for i, column in table.about.bold}
    assert {row for row, _, _ in bold} == {"AT + FSR"} and {weights for _, weights, _ in bold} == {"last"}
    assert "<b>84.0" in table._repr_html_() and "C&amp;W" in table._repr_html_()


def bold_rows(table, column="PGD-20"):
    return {table["method"][i] for i, name in table.about.bold if name == column}


def test_bold_compares_rows_with_the_most_seeds_only(records):
    """MART's only seed has 83 % and means nothing beside means of three; AT + FSR's mean of 81 % is below AT's 82 %."""
    write = records("demo")
    for run, right in zip(ROWS["AT"].runs, (420, 410, 400)):
        write.columns(run, right)
    mart = next(row for row in experiments.ROWS["demo"]["whitebox"] if row.name == "MART")
    write.columns(mart.runs[0], 415)
    assert bold_rows(tables.whitebox("demo")) == set()  # alone with three seeds
    for run, right in zip(ROWS["AT + FSR"].runs, (405, 405, 405)):
        write.columns(run, right)
    assert bold_rows(tables.whitebox("demo")) == {"AT"}


def test_a_row_that_autoattack_flags_is_never_bold_nor_is_a_tie(records):
    write = records("demo")
    write.columns(AT, 400)
    write.columns(BOTH, 400)
    assert not tables.whitebox("demo").about.bold
    mart = next(row for row in experiments.ROWS["demo"]["whitebox"] if row.name == "MART").runs[0]
    write.columns(mart, 450)
    assert bold_rows(tables.whitebox("demo")) == {"MART"}
    write.evaluation(mart, "autoattack", 90, flags={"square_beats_whitebox": True})
    assert bold_rows(tables.whitebox("demo")) == set()  # the others tie
    trades = next(row for row in experiments.ROWS["demo"]["whitebox"] if row.name == "TRADES").runs[0]
    write.columns(trades, 430)
    write.columns(mart, 450, checkpoint="ema")
    write.columns(trades, 430, checkpoint="ema")
    table = tables.whitebox("demo")
    assert bold_rows(table) == {"TRADES"} and len({i for i, _ in table.about.bold}) == 1  # nor with its other weights


def peers():
    return {row.name: row.runs[0] for row in experiments.ROWS["demo"]["deactivation"]}


@pytest.mark.parametrize("broken, doubt", [(1, None), (2, "PGD-20, joint loss breaks 2 of the 70 that it leaves")])
def test_another_attack_that_breaks_what_autoattack_leaves_puts_it_in_doubt(records, broken, doubt):
    """Of its 100 images AutoAttack leaves the first 70; the joint loss breaks some of these, and most others."""
    write, cas = records("demo"), peers()["AT + CAS"]
    write.columns(AT, 400, kind="deactivation")
    write.columns(cas, 450, kind="deactivation")
    write.evaluation(cas, "autoattack", 70, kind="deactivation", flags={"dynamic": False})
    joint = (np.arange(500) >= broken) & (np.arange(500) < 80)
    write.evaluation(cas, "pgd20-joint", joint, kind="deactivation")
    table = tables.deactivation("demo")
    assert shown(table, "AT + CAS")["AutoAttack flags"] == (doubt or "none")
    assert bold_rows(table) == (set() if doubt else {"AT + CAS"})  # AT is then alone


def test_only_attacks_on_the_same_weights_and_of_the_same_strength_put_autoattack_in_doubt(records):
    write, cas = records("demo"), peers()["AT + CAS"]
    write.evaluation(cas, "autoattack", 70, kind="deactivation", flags={"square_beats_whitebox": True})
    write.evaluation(cas, "pgd20", 0, kind="deactivation", eps=0.3)
    write.evaluation(cas, "pgd20", 0, kind="deactivation", checkpoint="ema")
    write.evaluation(cas, "pgd20", 0, kind="deactivation", intervention="mask_one")
    save_evaluation(cas, Evaluation(attack="cw"), np.arange(500), np.zeros(500, dtype=bool), weights="others")
    assert shown(tables.deactivation("demo"), "AT + CAS")["AutoAttack flags"] == "square beats whitebox"
    write.evaluation(cas, "pgd100", 60, kind="deactivation", steps=50)
    write.evaluation(cas, "pgd100", 69, kind="deactivation")  # of the same name, and breaks less
    told = shown(tables.deactivation("demo"), "AT + CAS")["AutoAttack flags"]
    assert told == "square beats whitebox; PGD-100 breaks 10 of the 70 that it leaves"


def test_a_network_that_learnt_nothing_is_named(records):
    """Of 500 images 60 right is more than a tenth, but its interval reaches down to it; 90 is more."""
    write = records("demo")
    write.evaluation(AT, "clean", 60)
    write.evaluation(BOTH, "clean", 90)
    notes = tables.whitebox("demo").about.notes
    assert [note for note in notes if "guessing" in note] == ["No better than guessing, even without an attack: AT."]


def test_only_empty_cells_have_a_status(records):
    records("demo").columns(AT, 400)
    frame = tables.whitebox("demo").numbers
    ours = frame[frame["kind"].isin(["ours", "gain"])]
    assert ours["value"].notna().any() and (ours["status"].isna() == ours["value"].notna()).all()


def test_a_gain_names_both_of_its_records(records):
    write = records("demo")
    write.columns(AT, 400, kind="settings")
    write.columns(BOTH, 420, kind="settings")
    assert tables.settings("demo").about.runs == tuple(sorted((id_of(AT), id_of(BOTH))))


def test_gain_within_another_columns_images_uses_only_these(records):
    write = records("demo")
    right = np.arange(500) < 400
    write.columns(AT, right)
    write.columns(BOTH, right | (np.arange(500) >= 450))
    write.evaluation(BOTH, "autoattack", 70)  # the first 100 images, which AT and AT + FSR both have right
    columns = experiments.columns("demo", "whitebox")
    pair = (ROWS["AT + FSR"].runs, ROWS["AT"].runs, columns["ensemble"])
    assert cells.gain(*pair)["value"] == pytest.approx(0.1)
    same = cells.gain(*pair, within=columns["autoattack"])
    assert (same["value"], same["n"]) == (0, 100)
    assert len(cells.shared(BOTH, columns["ensemble"], columns["autoattack"])) == 100
    assert cells.shared(AT, columns["ensemble"], columns["autoattack"]) is None


def test_checkpoints_are_rows_of_their_own(records):
    write = records("demo")
    write.columns(AT, 400, checkpoint="last")
    write.columns(AT, 450, checkpoint="ema")
    table = tables.whitebox("demo")
    values = [shown(table, "AT", weights)["FGSM"].split(" ")[0] for weights in ("last", "ema")]
    assert values == ["80.0", "90.0"] and shown(table, "AT", "best")["FGSM"] == "not run"


def test_interventions_are_other_rows_and_are_compared_with_the_same_network(records):
    write = records("demo")
    write.columns(BOTH, 400, kind="components")
    write.columns(BOTH, 300, kind="components", intervention="mask_one")
    table = tables.components("demo")
    assert shown(table, "AT + FSR")["PGD-20"].startswith("80.0")
    assert shown(table, "m = 1 at test (FSR bypassed)")["PGD-20"].startswith("60.0")
    gain = "m = 1 at test (FSR bypassed): gain over AT + FSR"
    assert shown(table, gain)["Ensemble"].startswith("\N{MINUS SIGN}20.0")
    assert set(table[table["method"] == "m = 1 at test (FSR bypassed)"]["weights"]) == {"last"}


def test_surrogates_do_not_mix(records):
    write = records("demo")
    write.evaluation(AT, "transfer-twin", 300, kind="blackbox")
    row = shown(tables.blackbox("demo"), "AT")
    assert row["transfer (AT twin)"].startswith("60.0") and row["transfer (natural)"] == "not run"


def test_ablations_do_not_enter_the_main_rows(records):
    sweep = next(row for row in experiments.ROWS["demo"]["settings"] if row.name == "tau = 1.0")
    records("demo").columns(sweep.runs[0], 250, kind="settings")
    assert shown(tables.whitebox("demo"), "AT + FSR")["PGD-20"] == "not run"
    assert shown(tables.settings("demo"), "tau = 1.0")["PGD-20"].startswith("50.0")
    assert shown(tables.settings("demo"), "tau = 0.1")["PGD-20"] == "not run"


def test_joint_loss_column_is_of_the_networks_with_auxiliary_logits(records):
    cas = experiments.named("demo")["at+cas"]
    records("demo").evaluation(cas, "pgd20-joint", 200, kind="deactivation")
    table = tables.deactivation("demo")
    assert shown(table, "AT + CAS")["PGD-20, joint loss"].startswith("40.0")
    assert shown(table, "AT + FD")["PGD-20, joint loss"] == "not applicable"
    assert shown(table, "AT")["PGD-20, joint loss"] == "not applicable"
    assert shown(table, "AT + FSR")["PGD-20, joint loss"] == "not run"


def test_known_results_stand_beside_ours_on_their_data_only(root):
    mini, demo = tables.whitebox("mini"), tables.whitebox("demo")
    assert set(demo.numbers["kind"]) == {"ours", "gain"}
    row = mini[mini["method"].str.contains("rerun: github S-creator31")].iloc[0]
    assert (row["no attack"], row["PGD-20"], row["AutoAttack"]) == ("82.86", "52.38", "")
    assert row["method"].startswith("AT + FSR") and row["weights"] == "last"
    assert any("own budget" in note for note in mini.about.notes)


def paper_cells(root, *lines):
    (root / "results").mkdir(exist_ok=True)
    head = "table,dataset,backbone,row,metric,value,unit,note\n"
    (root / "results" / "paper_values.csv").write_text(head + "\n".join(lines) + "\n")


def test_typed_cells_give_paper_and_difference_at_full_size(root, records):
    paper_cells(root, "T1,cifar10,resnet18,AT + FSR,pgd20,50.5,percent,")
    run = experiments.main_pair("headline")[1]
    records("headline").columns(run, 260)
    table = tables.whitebox("headline")
    assert shown(table, "AT + FSR: paper")["PGD-20"] == "50.50"
    assert shown(table, "AT + FSR: ours minus paper")["PGD-20"] == "+1.50"
    assert shown(table, "AT + FSR: paper")["C&W"] == ""


def test_a_smaller_network_is_never_subtracted_from_the_paper(root, records):
    paper_cells(root, "T1,cifar10,resnet18,AT + FSR,pgd20,50.5,percent,")
    records("mini").columns(experiments.main_pair("mini")[1], 900)
    table = tables.whitebox("mini")
    assert shown(table, "AT + FSR: paper")["PGD-20"] == "50.50"
    assert shown(table, "AT + FSR: ours minus paper")["PGD-20"] == "not comparable"


@pytest.mark.parametrize("cell", ["AT + FRS,pgd20", "AT + FSR,pdg20"])
def test_a_misspelt_cell_names_its_line_instead_of_vanishing(root, cell):
    paper_cells(root, f"T1,cifar10,resnet18,{cell},50.5,percent,")
    with pytest.raises(UsageError, match="line 2"):
        tables.whitebox("mini")


def test_an_unknown_profile_says_what_to_type():
    with pytest.raises(UsageError, match="choose one of"):
        tables.whitebox("dmeo")


def test_rows_of_the_same_weights_stand_together(root):
    table = tables.whitebox("demo")
    weights = list(table[table["network"] == "ResNet-10 (width 8)"]["weights"])
    assert weights == sorted(weights, key=("last", "best", "ema").index) and set(weights) == {"last", "best", "ema"}


def test_a_rewritten_record_is_read_again(records, root):
    records("demo").columns(AT, 400)
    assert shown(tables.whitebox("demo"), "AT")["FGSM"].startswith("80.0")
    for path in root.rglob("last-fgsm*"):
        path.unlink()
    assert shown(tables.whitebox("demo"), "AT")["FGSM"] == "not run"
    records("demo").evaluation(AT, "fgsm", 300)
    assert shown(tables.whitebox("demo"), "AT")["FGSM"].startswith("60.0")


def test_ensemble_agrees_with_the_store(records):
    from fsr import store
    from fsr.config import Evaluation
    from fsr.tables.cells import outcome

    rng = np.random.default_rng(0)
    for metric in experiments.COLUMNS:
        records("demo").evaluation(AT, metric, rng.random(500) < 0.8)
    mine = outcome(AT, Evaluation(attack="ensemble"))
    theirs = store.ensemble(AT, "last")
    assert (mine.index == theirs.index).all() and (mine.correct == theirs.correct).all()


def test_two_trainings_of_a_run_are_never_mixed_and_named(root):
    plain, both = experiments.main_pair("demo")
    for run in (plain, both):
        save_config(run)
    for attack in ENSEMBLE:
        save_evaluation(plain, Evaluation(attack=attack), range(4), [True] * 4, weights="b" if attack == "cw" else "a")
    assert cells.outcome(plain, Evaluation(attack="ensemble")) is None
    bare, one = Evaluation(attack="pgd20"), Evaluation(attack="pgd20", intervention="mask_one")
    save_evaluation(both, bare, range(4), [True] * 4, weights="a")
    save_evaluation(both, one, range(4), [False] * 4, weights="b")
    assert cells.gain((both,), (both,), one, bare)["value"] is None
    table = tables.whitebox("demo")
    note = next(note for note in table.about.notes if note.startswith(formats.MIXED))
    assert id_of(plain) in note and id_of(both) not in note
    assert f"Of one training of {id_of(plain)} no record says" in note
    for digest, path in (("a", run_dir(id_of(plain)) / "env.json"), ("b", retrained_path(plain, "b"))):
        save_json(path, {"run_id": id_of(plain), "checkpoints": {"last": digest}})
    note = next(note for note in tables.whitebox("demo").about.notes if note.startswith(formats.MIXED))
    assert "no record says" not in note
    (run_dir(id_of(plain)) / "env.json").unlink()
    for name in ("T9", "T10"):  # T10 judges T1's columns, T9 none
        notes = tables.TABLES[name].make("demo").about.notes
        assert any(note.startswith(formats.MIXED) for note in notes) == (name == "T10")
