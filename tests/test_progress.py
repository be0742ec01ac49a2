"""What is shown: a bar that counts the runs that are done, one for each under way, and lines in a log file."""

import io

from rich.console import Console
from rich.progress import Progress

from fsr.cli.progress import _bars, _lines


def test_the_overall_bar_counts_runs_that_are_done():
    progress = Progress(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=False)
    report = _bars(progress, 3)
    overall = progress.tasks[0]
    for name in ("a", "b"):
        report(name, "epoch 1/2", 1, 4)
    assert (overall.completed, overall.total, len(progress.tasks)) == (0, 3, 3)
    report("b", "last clean", 8, 8)
    assert overall.completed == 0  # a part is done, more may follow
    for _ in range(2):
        report("b", "done", 1, 1)
    assert overall.completed == 1 and len(progress.tasks) == 2
    report("b", "last clean", 8, 8)  # a late report of a worker
    assert overall.completed == 1 and len(progress.tasks) == 2
    for name in ("a", "c"):  # nothing was said of c before
        report(name, "done", 1, 1)
    assert overall.completed == 3 and progress.tasks == [overall]


def test_a_log_file_gets_a_line_per_run_now_and_then(capsys):
    report = _lines(2)
    report("a", "done", 1, 1)
    assert capsys.readouterr().err == ""
    for name in ("a", "a", "b"):
        report(name, "epoch 1/2", 1, 4)
    assert capsys.readouterr().err == "[1/2] a: epoch 1/2 1/4\n[2/2] b: epoch 1/2 1/4\n"
