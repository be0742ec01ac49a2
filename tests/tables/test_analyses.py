"""T7, T8, T9 and the provenance from records whose numbers are known."""

import pytest

from fsr import audit, experiments, plots, tables
from fsr.config import run_id

AT, BOTH = experiments.main_pair("demo")
NETWORK = "ResNet-10 (width 8)"


def wide(name, *index, profile="demo"):
    return tables.wide(tables.table(profile, name)).set_index(list(index))


def test_streams_over_seeds(records):
    for run, right in zip(experiments.ROWS["demo"]["streams"][0].runs, (90, 100, 110)):
        rows = [{"stream": "recalibrated", "probe": "knn", "attack": "pgd20", "n": 200, "correct": right}]
        records("demo").analysis(run, "streams", {"rows": rows}, checkpoint="last")
    row = wide("T7", "weights", "stream").loc[("last", "recalibrated")]
    assert row["k-nearest neighbours, PGD-20"] == "50.0 ± 5.0 [43.1, 56.9]"
    assert row["auxiliary head, PGD-20"] == "not run"


def test_overhead_has_the_latency_of_both_from_one_process(records):
    def cost(params, macs, latency, **more):
        return {"params": params, "macs": macs, "latency_ms": latency, "peak_memory_mb": 2.0} | more

    turns = {"latency_ms_without": {"1": 1, "128": 16.4}}
    records("demo").analysis(AT, "cost", cost(1200, 2_000_000, {"128": 1.0}))
    turns["hardware"] = {"cpu": "a processor"}
    records("demo").analysis(BOTH, "cost", cost(1313, 2_072_000, {"1": 2, "128": 20.5}, **turns))
    parts = [{"hardware": {"gpu": "H200"}, "sharing": 2}]
    records("demo").trained(BOTH, 1.5, {"cpu": "a test", "threads": 1}, sittings=parts)
    rows = wide("T8", "network", "method")
    machine = "a test, threads: 1, processes: 1 and H200, shared, threads: None, processes: 1"
    costs = ["1,313", "2,072,000", "1.50", "20.50", "2.00", "a processor", machine]
    assert list(rows.loc[(NETWORK, "AT + FSR")][1:]) == costs
    assert list(rows.loc[(NETWORK, "AT")][["latency of 128 images, ms", "seconds per epoch"]]) == ["16.40", "not run"]


def audit_record(**changes):
    groups = {name: {"n": 100, "correct": right} for name, right in (("autoattack", 60), ("mask", 55), ("queries", 62))}
    record = {"n": 100, "groups": groups, "not_applicable": {}, "clean": 80, "authors_protocol": 70, "worst_case": 50}
    flags = {"zero_gradient": True, "dynamic": False}
    return record | {"indicators": {"silent_success": 0.25}, "flags": flags} | changes


def test_audit_shows_groups_the_control_worst_case_doubts_and_indicators(records):
    write = records("demo")
    attacks = {"queries/square": {"n": 100, "correct": 62}, "queries/random-noise": {"n": 100, "correct": 80}}
    more = {"checks": {"cw_above_pgd20": True, "changed": []}, "binarization": {"pgd20": 0.9, "cw": None}}
    write.analysis(BOTH, "audit", audit_record(not_applicable={"mask/frozen": "no slope"}, attacks=attacks, **more))
    write.analysis(AT, "audit", audit_record(groups={}, not_applicable={"mask": "no FSR mask"}))
    rows = wide("T9", "attack group")
    both, at, order = rows["AT + FSR, last"], rows["AT, last"], list(rows.index)
    assert both["3 the mask frozen or driven"] == "55.0 [45.2, 64.4]" and both["1 AutoAttack"] == "60.0 [50.2, 69.1]"
    assert at["3 the mask frozen or driven"] == "not applicable: no FSR mask" and at["1 AutoAttack"] == "not run"
    assert not {"mask/frozen", "queries/square"} & set(order) and order[0] == "authors' protocol"
    assert at["worst case"].startswith("50.0") and at["checks that raise doubt"] == "zero gradient"
    assert both["indicator: silent success"] == "0.25" and both["binarization test, pgd20"] == "0.90"
    assert both["binarization test, cw"] == "not run" and at["binarization test, pgd20"] == "not applicable"
    assert both["checks that raise doubt"] == "zero gradient, cw above pgd20"
    control = order.index("8 control: random noise of the same size")
    assert order[control - 1] == "8 Square" and both.iloc[control].startswith("80.0")
    lines = tables.analyses.audit_lines(audit_record())  # the same in a terminal
    assert lines[0].startswith("authors' protocol ") and lines[0].endswith("70.0 [60.4, 78.1]")
    assert set(audit.GROUPS) - {"protocol", "indicators", "binarization"} <= set(tables.analyses.GROUPS)


@pytest.mark.parametrize("name, kind", [("T7", "streams"), ("T9", "audit"), ("F2", "masks")])
def test_analyses_of_other_weights_than_the_trainings_are_left_out_and_named(records, name, kind):
    records("demo").trained(BOTH, 1.0, {}, checkpoints=dict.fromkeys(("last", "best", "ema"), "first"))
    rows = [{"stream": "f", "probe": "knn", "attack": "pgd20", "n": 200, "correct": 90}]
    records("demo").analysis(BOTH, kind, audit_record(weights="second", rows=rows))
    says = tables.notes("demo", name)[0] if name[0] == "T" else plots.show("demo", name).data
    assert f"Outcomes of other weights are left out; move results/runs/{run_id(BOTH)} away" in says
    assert name == "F2" or tables.table("demo", name)["correct"].isna().all()


def test_provenance_has_a_row_per_finished_training(records):
    parts = [{"hardware": {"gpu": "H200"}}, {"hardware": {"gpu": "H200"}, "sharing": 2}]
    more = {"commit": "0123456789abcdef", "half": True, "versions": {"torch": "2.11.0"}, "sittings": parts}
    records("demo").trained(BOTH, 1.0, {"gpu": "H200", "cpu": "a test"}, **more)
    records("demo").trained(AT, 1.0, {"cpu": "a test"})
    frame = tables.provenance("demo").set_index("label")
    assert list(frame.index) == ["AT, seed 0", "AT + FSR, seed 0"]
    row = frame.loc["AT + FSR, seed 0", ["machine", "commit", "torch", "resumed", "shared", "float16_weights"]]
    machine = " and ".join(f"H200{shared}, threads: None, processes: 1" for shared in ("", ", shared"))
    assert list(row) == [machine, "0123456789", "2.11.0", True, True, True]
    assert not frame.loc["AT, seed 0", ["resumed", "shared", "float16_weights"]].any()
