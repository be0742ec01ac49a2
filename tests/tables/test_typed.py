"""The paper's cells beside T7 and T8 (T1 to T6: test_accuracy.py)."""

import pytest

from fsr import experiments, tables
from fsr.errors import UsageError


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
    ],
)
def test_a_misspelt_cell_names_its_line(root, line):
    paper_cells(root, line)
    with pytest.raises(UsageError, match="line 2"):
        tables.TABLES[line[:2]].make("headline")
