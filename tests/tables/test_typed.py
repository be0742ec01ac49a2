"""The paper's cells beside T7 and T8 (T1 to T6: test_accuracy.py)."""

import pytest

from fsr import experiments, tables
from fsr.files import UsageError


def paper_cells(root, *lines):
    (root / "results").mkdir(exist_ok=True)
    head = "table,dataset,backbone,row,metric,value,unit,note\n"
    (root / "results" / "paper_values.csv").write_text(head + "\n".join(lines) + "\n")


def cost(params):
    return {"params": params, "macs": 5, "train_seconds_per_epoch": 30.0, "latency_ms": 1.0, "peak_memory_mb": 1.0}


def test_overhead_shows_paper_and_difference(root, records):
    paper_cells(root, "T8,cifar10,resnet18,AT + FSR,params,12430000,count,")
    records("headline").analysis(experiments.main_pair("headline")[1], "cost", cost(12_432_980))
    table = tables.overhead("headline").set_index("method")
    assert table.loc["AT + FSR: paper", "parameters"] == "12,430,000" and table.loc["AT + FSR: paper", "MACs"] == ""
    assert table.loc["AT + FSR: ours minus paper", "parameters"] == "+2,980"


@pytest.mark.parametrize("sharing, difference", [(1, "\N{MINUS SIGN}30.0"), (2, "not comparable")])
def test_seconds_of_a_shared_device_are_not_compared_with_the_papers(root, records, sharing, difference):
    paper_cells(root, "T8,cifar10,resnet18,AT + FSR,train_seconds_per_epoch,60,seconds,")
    for run in experiments.main_pair("headline"):
        records("headline").analysis(run, "cost", cost(1))
        records("headline").trained(run, 30.0, {"gpu": "H200"}, sharing=sharing)
    shown = tables.overhead("headline").set_index("method")["seconds per epoch"]
    assert shown["AT + FSR: ours minus paper"].startswith(difference)


def test_streams_show_paper_and_difference_at_full_size_only(root, records):
    paper_cells(root, "T7,cifar10,resnet18,recalibrated,aux,40,percent,")
    row = {"stream": "recalibrated", "probe": "aux", "attack": "pgd20", "n": 1000, "correct": 385}
    records("headline").analysis(experiments.main_pair("headline")[1], "streams", {"rows": [row]})
    column = "auxiliary head, PGD-20"
    full = tables.streams("headline").set_index("method")[column]
    assert (full["paper"], full["ours minus paper"]) == ("40.00", "\N{MINUS SIGN}1.50")
    assert tables.streams("mini").set_index("method")[column]["ours minus paper"] == "not comparable"
    assert "paper" not in set(tables.streams("demo")["method"])


@pytest.mark.parametrize(
    "line",
    [
        "T8,cifar10,resnet18,AT+FSR,params,1,count,",
        "T8,cifar10,resnet18,AT,parameters,1,count,",
        "T8,cifar10,resnet18,AT,params,1,percent,",
        "T7,cifar10,resnet18,f_plus,aux,40,percent,",
        "T10,,,+FSR,max_robust_gain_points,8.57,points,",
    ],
)
def test_a_misspelt_cell_names_its_line(root, line):
    paper_cells(root, line)
    with pytest.raises(UsageError, match="line 2"):
        tables.TABLES[line.split(",")[0]].make("headline")


def test_the_papers_cells_are_filed_under_the_papers_network(root):
    paper_cells(root, "T1,cifar10,resnet18,AT + FSR,pgd20,52,percent,")
    numbers = tables.whitebox("mini").numbers
    theirs = numbers[numbers["kind"] == "paper"].iloc[0]
    assert theirs["network"] == "ResNet-18" and theirs["full_size"]
    assert set(numbers[numbers["kind"] == "ours"]["network"]).isdisjoint({"ResNet-18"})


def test_the_csv_has_the_latency_that_the_table_shows(root, records):
    plain, both = experiments.main_pair("headline")
    records("headline").analysis(plain, "cost", cost(10))
    more = {"latency_ms": {"128": 3.0}, "latency_ms_without": {"128": 2.0}}
    records("headline").analysis(both, "cost", cost(12_432_981) | more)
    table = tables.overhead("headline")
    assert table.numbers[~table.numbers["fsr"]]["latency_ms"].iloc[0] == 2.0
    text = tables.save(table, "headline", "T8", "overhead")[0].read_text()
    assert ",12432981," in text  # a count is exact
