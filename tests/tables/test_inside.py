"""T7, T8, T9 and the provenance from records whose numbers are known."""

import pytest

from fsr import audit, experiments, tables
from fsr.config import AUDIT_VERSION

AT, BOTH = experiments.main_pair("demo")
NETWORK = "ResNet-10 (width 8)"


def wide(name, *index, profile="demo"):
    return tables.wide(tables.table(profile, name)).set_index(list(index))


def test_streams_over_seeds(records):
    for run, right in zip(experiments.ROWS["demo"]["streams"][0].runs, (90, 100, 110)):
        rows = [{"stream": "recalibrated", "probe": "knn", "attack": "pgd20", "n": 200, "correct": right}]
        records("demo").analysis(run, "streams", {"rows": rows}, checkpoint="last")
    row = wide("T7", "weights", "stream").loc[("last", "f̃⁻ (recalibrated)")]
    assert row["k-nearest neighbours, PGD-20"] == "50.0 ± 5.0 [43.1, 56.9]" and row["n"] == "200"
    assert row["auxiliary head, PGD-20"] == "not run"


def test_overhead_in_percent_and_latency_in_turns(records):
    def cost(params, macs, latency, **more):
        return {"params": params, "macs": macs, "latency_ms": latency, "peak_memory_mb": 2.0} | more

    turns = {"latency_ms_without": {"1": 1, "128": 16.4}}
    records("demo").analysis(AT, "cost", cost(1000, 2_000_000, {"128": 1.0}))
    records("demo").analysis(BOTH, "cost", cost(1113, 2_072_000, {"1": 2, "128": 20.5}, **turns))
    for run, seconds in ((AT, 1.0), (BOTH, 1.5)):
        records("demo").trained(run, seconds, {"cpu": "a test", "threads": 1})
    rows = wide("T8", "network", "method")
    added = rows.loc[(NETWORK, "added by FSR")]
    assert list(added[1:]) == ["+11.30 %", "+3.60 %", "+50.00 %", "+25.00 %", "+0.00 %"]
    assert rows.loc[(NETWORK, "AT")]["latency of a batch, ms"] == "16.400"
    assert rows.loc[("WRN-10-1", "added by FSR")]["MACs"] == "not run"


@pytest.mark.parametrize(
    ("at", "both"), [({"sharing": 2}, {}), ({}, {"processes": 2}), ({"sittings": [{"hardware": {"gpu": "H200"}}]}, {})]
)
def test_seconds_of_shared_or_different_devices_are_not_compared(records, at, both):
    for run, more in ((AT, at), (BOTH, both)):
        records("demo").trained(run, 1.0, {"cpu": "a test"}, **more)
    assert wide("T8", "network", "method").loc[(NETWORK, "added by FSR")]["seconds per epoch"] == "not comparable"


def test_known_parameter_counts_and_the_papers_cells_stand_beside_full_size(typed):
    typed("T8,cifar10,resnet18,AT + FSR,params,12430000,count,", "T7,cifar10,resnet18,recalibrated,aux,40,percent,")
    rows = wide("T8", "method", profile="headline")["parameters"]
    assert rows["added, from the authors' code (computed)"] == "1,259,018"
    assert rows["AT + FSR: paper"] == "12,430,000"
    assert "1,259,018" not in set(wide("T8", "method", profile="mini")["parameters"])
    streams = wide("T7", "stream", profile="headline")["auxiliary head, PGD-20"]
    assert streams["f̃⁻ (recalibrated): paper"] == "40.0"


def audit_record(**changes):
    groups = {name: {"n": 100, "correct": right} for name, right in (("autoattack", 60), ("mask", 55), ("queries", 62))}
    record = {"n": 100, "groups": groups, "not_applicable": {}, "clean": 80, "authors_protocol": 70, "worst_case": 50}
    flags = {"zero_gradient": True, "dynamic": False}
    return record | {"indicators": {"silent_success": 0.25}, "flags": flags} | changes


def test_audit_shows_groups_the_noise_control_worst_case_flags_checks_and_indicators(records):
    write = records("demo")
    attacks = {"queries/square": {"n": 100, "correct": 62}, "queries/random-noise": {"n": 100, "correct": 80}}
    more = {"checks": {"cw_above_pgd20": True, "changed": []}, "binarization": {"pgd20": 0.9}, "attacks": attacks}
    write.analysis(BOTH, "audit", audit_record(not_applicable={"mask/frozen": "no slope"}, **more))
    write.analysis(AT, "audit", audit_record(groups={}, not_applicable={"mask": "no FSR mask"}))
    rows = wide("T9", "attack group")
    both, at, order = rows["AT + FSR, last"], rows["AT, last"], list(rows.index)
    assert both["3 the mask frozen or driven"] == "55.0 [45.2, 64.4]"
    assert at["3 the mask frozen or driven"] == "not applicable: no FSR mask"
    assert not {"mask/frozen", "queries/square"} & set(order) and order[0] == "authors' protocol"
    assert at["worst case"].startswith("50.0") and at["AutoAttack's flags"] == "zero_gradient"
    assert both["indicator: silent success"] == "0.25" and both["indicator: binarization test, pgd20"] == "0.90"
    assert (
        order[-1].endswith("right without attack, the share that no attack breaks") and at.iloc[-1] == "0.62"
    )  # 50 of 80
    assert both["checks that raise doubt"] == "cw above pgd20"
    control = order.index("8 control: random noise of the same size")
    assert order[control - 1] == "8 Square" and both.iloc[control].startswith("80.0")
    lines = tables.audit_lines(audit_record())  # the same in a terminal
    assert lines[0].startswith("authors' protocol ") and lines[0].endswith("70.0 [60.4, 78.1]")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"details": {"noise": {"noisy_accuracy": 0.52}}}, "52.0 [42.3, 61.5]"),
        ({}, "not run"),  # a record from before the detail was kept
        ({"not_applicable": {"noise": "this model draws no noise"}}, "not applicable: this model draws no noise"),
    ],
)
def test_the_noisy_network_has_a_row_of_its_own(records, changes, told):
    """Images crafted through the noise are judged without it in group 7, and with it in the row below."""
    groups = {"noise": {"n": 100, "correct": 66}} if "not_applicable" not in changes else {}
    records("demo").analysis(BOTH, "audit", audit_record(groups=groups, **changes))
    rows = wide("T9", "attack group")["AT + FSR, last"]
    below = list(rows.index).index("7 the same, judged with the noise on")
    assert rows.iloc[below] == told
    assert rows.index[below - 1] == "7 crafted through the training noise, judged without it"


@pytest.mark.parametrize("version", [{}, {"version": AUDIT_VERSION - 1}, {"version": AUDIT_VERSION}])
def test_an_audit_of_an_earlier_version_is_told_and_every_group_has_a_title(records, version):
    """{}: from when records had no version."""
    records("demo").analysis(BOTH, "audit", audit_record(**version))
    assert bool(tables.notes("demo", "T9")) == (version.get("version") != AUDIT_VERSION)
    assert set(audit.GROUPS) - {"protocol", "indicators", "binarization"} <= set(tables.inside.GROUPS)


def test_provenance_has_a_row_per_finished_training(records):
    parts = [{"first_step": 0}, {"first_step": 9, "sharing": 2}]
    more = {"commit": "0123456789abcdef", "half": True, "versions": {"torch": "2.11.0"}, "sittings": parts}
    records("demo").trained(BOTH, 1.0, {"gpu": "NVIDIA H200", "cpu": "a test"}, **more)
    records("demo").trained(AT, 1.0, {"cpu": "a test"})
    frame = tables.provenance("demo").set_index("label")
    assert list(frame.index) == ["AT, seed 0", "AT + FSR, seed 0"]
    told = frame.loc["AT + FSR, seed 0", ["machine", "commit", "torch", "resumed", "shared", "float16_weights"]]
    assert list(told) == ["NVIDIA H200", "0123456789", "2.11.0", True, True, True]
    assert not frame.loc["AT, seed 0", ["resumed", "shared", "float16_weights"]].any()
