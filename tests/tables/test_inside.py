"""T7, T8 and T9 from records whose numbers are known."""

import pytest

from fsr import experiments, tables
from fsr.config import AUDIT_VERSION
from fsr.report import findings as prose
from fsr.tables.inside import EARLIER

AT, BOTH = experiments.main_pair("demo")


def stream_rows(recalibrated, *, probe="knn"):
    right = {"f": 300, "robust": 320, "nonrobust": 100, "recalibrated": recalibrated, "output": 350}
    return [{"stream": s, "probe": probe, "attack": "pgd20", "n": 500, "correct": c} for s, c in right.items()]


@pytest.mark.parametrize("profile", experiments.PROFILES)
@pytest.mark.parametrize("name", ["T7", "T8", "T9", "T10"])
def test_without_records_they_say_not_run(root, profile, name):
    table = tables.TABLES[name].make(profile)
    assert len(table) and "nan" not in repr(table).lower().replace("resonance", "")
    assert "not run" in repr(table) and not table.about.runs


def test_streams_show_every_stream_with_interval_and_seeds(records):
    for run, right in zip(experiments.SETS["demo"]["streams"], (240, 250, 260)):
        records("demo").analysis(run, "streams", {"rows": stream_rows(right), "rows_clean": []})
    table = tables.streams("demo")
    row = table[(table["weights"] == "last") & (table["stream"] == "f̃⁻ (recalibrated)")].iloc[0]
    assert row["k-nearest neighbours, PGD-20"] == "50.0 ± 2.0 [45.6, 54.4]" and row["n"] == "500"
    assert row["auxiliary head, PGD-20"] == "not run" and row["k-nearest neighbours, no attack"] == "not run"
    assert next(iter(table["stream"])) == "f (f)"


def test_streams_name_missing_seeds(records):
    records("demo").analysis(BOTH, "streams", {"rows": stream_rows(250), "rows_clean": []}, "last")
    table = tables.streams("demo")
    assert table["k-nearest neighbours, PGD-20"][0].endswith("(1 of 3 seeds)")


def cost(params, macs, seconds):
    return {"params": params, "macs": macs, "train_seconds_per_epoch": seconds, "latency_ms": {"1": 9.0, "64": 20.5},
            "latency_ms_without": {"1": 8.0, "64": 16.4}, "peak_memory_mb": 100.0}  # fmt: skip


def test_overhead_is_the_difference_of_the_pair(records):
    write = records("demo")
    write.analysis(AT, "cost", cost(1000, 2_000_000, 1.0))
    write.analysis(BOTH, "cost", cost(1113, 2_072_000, 1.5))
    rows = tables.overhead("demo").set_index(["network", "method"])
    added = rows.loc[("ResNet-10 (width 8)", "added by FSR")]
    assert (added["parameters"], added["MACs"]) == ("+11.30 %", "+3.60 %")
    assert added["seconds per epoch"] == "+50.00 %" and added["peak memory, MiB"] == "+0.00 %"
    assert rows.loc[("ResNet-10 (width 8)", "AT")]["MACs"] == "2,000,000"
    assert rows.loc[("ResNet-10 (width 8)", "AT")]["latency of a batch, ms"] == "16.400"
    assert (
        added["latency of a batch, ms"] == "+25.00 %"
    )  # against its own network without FSR, timed in turns: 20.5 and 16.4
    assert rows.loc[("WRN-10-1", "added by FSR")]["MACs"] == "not run"


def test_known_parameter_counts_stand_beside_full_size_only(root):
    assert "+1,259,018" in set(tables.overhead("headline")["parameters"])
    assert not any("+1," in cell for cell in tables.overhead("mini")["parameters"])


def audit_record(**changes):
    groups = {"autoattack": {"n": 100, "correct": 60}, "mask": {"n": 100, "correct": 55}}
    counts = {"clean": 80, "authors_protocol": 70, "worst_case": 50}
    record = {"n": 100, "groups": groups, "not_applicable": {}} | counts
    flags = {"zero_gradient": True, "dynamic": False}
    return record | {"indicators": {"silent_success": 0.25}, "flags": flags} | changes


def test_audit_shows_groups_worst_case_flags_and_indicators(records):
    write = records("demo")
    write.analysis(BOTH, "audit", audit_record())
    plain = audit_record(groups={"autoattack": {"n": 100, "correct": 65}}, not_applicable={"mask": "no FSR mask"})
    write.analysis(AT, "audit", plain)
    rows = tables.audit("demo").set_index("attack group")
    assert rows.loc["3 the mask frozen or driven", "AT + FSR, last"] == "55.0 [45.2, 64.4] (n = 100)"
    assert rows.loc["3 the mask frozen or driven", "AT, last"] == "not applicable: no FSR mask"
    assert rows.loc["worst case", "AT, last"].startswith("50.0") and rows.index[0] == "authors' protocol"
    assert rows.loc["authors' protocol", "AT, last"].startswith("70.0")
    assert rows.loc["AutoAttack's flags", "AT, last"] == "zero_gradient"
    assert rows.loc["indicator: silent success", "AT + FSR, last"] == "0.25"
    assert rows.loc["share that no attack breaks", "AT, last"] == "0.62"  # 50 of the 80 that are right when clean
    assert rows.index[-1] == "share that no attack breaks"


@pytest.mark.parametrize("version", [{}, {"version": AUDIT_VERSION - 1}, {"version": AUDIT_VERSION}])
def test_a_record_of_an_earlier_audit_is_named(records, version):
    """{}: from when records had no version."""
    records("demo").analysis(BOTH, "audit", audit_record(**version))
    earlier, told = version.get("version") != AUDIT_VERSION, f"{EARLIER}: AT + FSR."
    assert (told in tables.audit("demo").about.notes) == earlier == (told in prose.audit("demo"))


def test_a_single_attack_left_out_does_not_hide_its_group(records):
    records("demo").analysis(BOTH, "audit", audit_record(not_applicable={"mask/frozen": "no slope"}))
    rows = tables.audit("demo").set_index("attack group")
    assert rows.loc["3 the mask frozen or driven", "AT + FSR, last"].startswith("55.0")
    assert "mask/frozen" not in rows.index


def test_random_noise_of_the_same_size_is_the_control_beside_square(records):
    attacks = {"queries/square": {"n": 100, "correct": 62}, "queries/random-noise": {"n": 100, "correct": 80}}
    groups = {"queries": {"n": 100, "correct": 62}, "unmasked": {"n": 100, "correct": 60}}
    records("demo").analysis(AT, "audit", audit_record(groups=groups, attacks=attacks))
    rows = tables.audit("demo").set_index("attack group")
    at = list(rows.index).index("8 control: random noise of the same size")
    assert rows.index[at - 1] == "8 Square" and rows["AT, last"].iloc[at].startswith("80.0")
    assert "queries/square" not in rows.index


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"details": {"noise": {"noisy_accuracy": 0.52}}}, "52.0 [42.3, 61.5] (n = 100)"),
        ({}, "not run"),  # a record from before the detail was kept
        ({"not_applicable": {"noise": "this model draws no noise"}}, "not applicable: this model draws no noise"),
    ],
)
def test_the_noisy_network_has_a_row_of_its_own(records, changes, shown):
    """Images crafted through the noise are judged without it in group 7, and with it in the row below."""
    groups = {"noise": {"n": 100, "correct": 66}} if "not_applicable" not in changes else {}
    records("demo").analysis(BOTH, "audit", audit_record(groups=groups, **changes))
    rows = tables.audit("demo").set_index("attack group")["AT + FSR, last"]
    below = list(rows.index).index("7 the same, judged with the noise on")
    assert rows.iloc[below] == shown
    assert rows.index[below - 1] == "7 crafted through the training noise, judged without it"


def test_a_table_of_rounded_weights_says_so(records):
    run, write = BOTH, records("demo")
    write.trained(run, 1.0, {}, half=True)
    write.analysis(run, "audit", audit_record())
    assert any("rounded to float16" in note for note in tables.audit("demo").about.notes)


def test_every_group_of_the_audit_has_a_title():
    from fsr import audit
    from fsr.tables.inside import GROUPS

    assert set(GROUPS) - {"queries/random-noise", "noise/own"} == set(audit.GROUPS) - {audit.PROTOCOL, "indicators"}


def test_the_note_on_the_quick_autoattack_is_true():
    from fsr.audit.case import BUDGETS

    assert BUDGETS["quick"].autoattack == {"steps": 20, "queries": 300}
    assert any("20 steps and 300 queries" in note for note in tables.audit("demo").about.notes)
