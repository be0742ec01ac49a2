"""What others report is read as it is, typed cells are checked line by line, and claims are fixed."""

import hashlib
from pathlib import Path

import pytest

from fsr import experiments, reference
from fsr.files import UsageError
from fsr.tables import verdict

HEADER = "table,dataset,backbone,row,metric,value,unit,note\n"
LINE = "T1,cifar10,resnet18,AT,clean,{},percent,"
GOOD = LINE.format(82)
BAD = [([LINE.format(v)], f"line 2: '{v}' is no number in") for v in ("82 %", "nan", "182", "-1")]
BAD += [([GOOD + "a,b"], "line 2: more fields"), ([GOOD.replace(",clean", "")], "line 2: unknown unit ''")]
WRONG = {"unit": ("percent", "cents"), "table": ("T1", "T11"), "dataset": ("cifar10", "c10"), "backbone": ("18", "81")}
BAD += [([GOOD.replace(*pair)], f"line 2: unknown {name} '.*{pair[1]}'") for name, pair in WRONG.items()]
BAD += [([LINE.format("0.525")], "line 2: '0.525' is a fraction"), ([GOOD, GOOD + '"', GOOD], "line 3: a quote is not")]
BAD += [([GOOD.replace(*pair)], "line 2: cells of T1 to T6 need") for pair in (("cifar10", ""), ("percent", "points"))]
BAD += [([GOOD, GOOD.replace("clean", "fgsm"), GOOD], "line 4: .* already in line 2")]


def typed(tmp_path, *lines, header=HEADER):
    path = tmp_path / "paper_values.csv"
    path.write_text(header + "\n".join(lines) + "\n")
    return path


def test_only_the_abstracts_number_may_be_called_the_papers():
    frame = reference.known_results()
    paper = frame[frame["kind"] == "paper"]
    assert list(paper["value"]) == [8.57] and set(frame["kind"]) == {"paper", "rerun", "anchor", "computed"}
    typed_in = reference.paper_values(Path(__file__).parent.parent / "results" / "paper_values.csv")
    assert list(typed_in["value"]) == [8.57] and list(typed_in["table"]) == ["T10"]


def test_the_epoch_log_is_whole_and_starts_near_chance():
    log = reference.epoch_log()
    assert list(log["epoch"]) == list(range(1, 101)) and log["train_adv_acc"].iloc[:2].max() < 0.11
    assert log["held_robust_acc"].max() == pytest.approx(0.5216)
    assert list(log[["held_robust_acc", "test_clean_acc"]].iloc[-1]) == pytest.approx([0.5197, 82.86])


def test_a_typed_cell_is_read_and_blank_lines_and_a_byte_order_mark_are_forgiven(tmp_path):
    path = typed(tmp_path, "", "T1,cifar10,resnet18,AT + FSR,pgd20, 52.5 ,percent,page 6", "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (cell,) = reference.paper_values(path)[["row", "metric", "value", "line"]].to_numpy().tolist()
    assert cell == ["AT + FSR", "pgd20", 52.5, 3] and reference.paper_values(tmp_path / "none.csv").empty


@pytest.mark.parametrize(("lines", "message"), BAD)
def test_a_bad_cell_names_its_line_and_an_unknown_column_is_refused(tmp_path, lines, message):
    with pytest.raises(UsageError, match=message):
        reference.paper_values(typed(tmp_path, *lines))
    with pytest.raises(UsageError, match="line 1: the columns must be table,dataset"):
        reference.paper_values(typed(tmp_path, *lines, header="table,data,value\n"))


def test_claims_cover_the_abstract_and_the_reruns_seven_numbers():
    rerun = {c.metric: c.stated for c in reference.CLAIMS if c.kind == "rerun"}
    attacks = {"clean": 82.86, "fgsm": 57.71, "pgd20": 52.38, "pgd100": 50.81, "cw": 50.13, "ensemble": 48.42}
    assert rerun == attacks | {"seconds_per_epoch": 34.1}
    paper = {c.rule: c.stated for c in reference.CLAIMS if c.kind == "paper"}
    assert paper == {"gain": None, "largest_gain": 8.57, "overhead": None, "deactivation": None, "cues": None}


def test_every_claim_says_how_it_is_decided_and_where():
    assert len({c.id for c in reference.CLAIMS}) == len(reference.CLAIMS) == 26
    for claim in reference.CLAIMS:
        assert claim.test != claim.earlier and (claim.profiles or claim.needs)
        assert set(claim.profiles) <= set(experiments.PROFILES) - {"ci", "demo"}  # digits settle nothing on CIFAR-10
        assert claim.stated is None or claim.tolerance > 0
        assert (claim.rule in verdict.RULES) != bool(claim.leads) or not claim.profiles


def test_predictions_are_as_they_were_committed_before_the_runs():
    claims = [c for c in reference.CLAIMS if c.kind == "prediction"]
    fields = [(c.id, c.text, c.rule, c.tolerance, c.test, c.profiles, c.min_seeds) for c in claims]
    assert [claim[0] for claim in fields] == [f"C{i}" for i in range(18, 26)]
    assert hashlib.sha256(repr(fields).encode()).hexdigest()[:16] == "877a58188325d7df"
