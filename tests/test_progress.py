"""What is shown: a bar over all runs that counts those that are done, and lines in a log file."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from fsr.cli.progress import _Bars, _Lines


@pytest.fixture
def progress():
    return Progress(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=False)


def test_the_bar_over_all_counts_runs_that_are_done(progress):
    bars = _Bars(progress, 3)
    over_all = progress.tasks[0]
    for name in ("a", "b", "c"):
        bars(name, "epoch 1/2", 1, 4)
    assert (over_all.completed, over_all.total) == (0, 3)  # three begun, none done
    assert len(progress.tasks) == 4
    bars("b", "epoch 2/2", 4, 4)
    bars("b", "last clean", 8, 8)
    assert over_all.completed == 0  # its parts are done, more may follow
    bars("b", "done", 1, 1)
    bars("b", "done", 1, 1)
    assert over_all.completed == 1 and len(progress.tasks) == 3
    bars("b", "last clean", 8, 8)  # late news of a worker
    assert over_all.completed == 1 and len(progress.tasks) == 3
    for name in ("a", "c"):
        bars(name, "done", 1, 1)
    assert over_all.completed == 3 and progress.tasks == [over_all]


def test_a_run_of_which_nothing_was_said_before_can_be_done(progress):
    bars = _Bars(progress, 2)
    bars("a", "done", 1, 1)
    assert progress.tasks[0].completed == 1 and len(progress.tasks) == 1


def test_a_log_file_gets_no_line_for_what_is_done(capsys):
    lines = _Lines(2)
    lines("a", "done", 1, 1)
    assert capsys.readouterr().err == ""
    lines("a", "epoch 1/2", 1, 4)
    assert capsys.readouterr().err == "[1/2] a: epoch 1/2 1/4\n"
