"""The command line: one clear line and exit code 2 for wrong use, 0 when all is done."""

import re
import shutil
import signal
import sys

import numpy as np
import pytest
from tiny import BRISK, tiny_run

from fsr import __main__ as cli
from fsr import experiments, files, notebooks, report, runs, store
from fsr.audit import BUDGETS
from fsr.cli import options
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.files import MissingData
from fsr.runs.tasks import failure
from fsr.train import loop as train

FIRST = experiments.SETS["ci"]["whitebox"][0]
PLAIN = run_id(FIRST)
CPU = ("-p", "ci", "--device", "cpu", "--executor", "inline")
WRONG = """
run-all --profile dem | did you mean 'demo'
train whitebox -p ci --device tpu | --device cpu
evaluate digits-resnet18-at-s0 --attack fgsm | did you mean 'digits-resnet18-at-s0-
evaluate whitebox -p ci --attack transfer | choose one of
evaluate whitebox -p ci --attack fgsm --checkpoint first | last, best, ema
evaluate whitebox -p ci --images 5 | --attack
evaluate whitebox -p ci --attack pgd20 --images 99999 | 64 test images
audit ../../secrets | status
audit PLAIN --budget huge | quick
status --root ROOT/nowhere | no folder
import-official missing.pth --backbone resnet18 --dataset cifar10 | missing.pth
report -p ci --readme | leave out --root or --readme
compare ROOT | in common
train whitebox -p mini --data ROOT/nowhere | nowhere
"""


@pytest.fixture
def fsr(monkeypatch, capsys, root):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fsr", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code or 0, *capsys.readouterr()

    return call


@pytest.mark.parametrize("line", WRONG.strip().splitlines(), ids=lambda line: line[:60])
def test_wrong_use_is_one_line_that_says_what_to_type(fsr, root, monkeypatch, line):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    line = line.replace("ROOT", str(root)).replace("PLAIN", PLAIN)
    words, says = line.split(" | ")
    code, out, err = fsr(*words.split())
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err
    assert not out and not list((root / "results").glob("r*"))  # runs, report


def test_what_is_not_there_is_refused_before_anything_is_computed(fsr, root, monkeypatch):
    def gone(run):
        raise MissingData(f"{run.dataset} is not here")

    monkeypatch.setattr(options, "read", gone)
    assert fsr("train", "whitebox", "-p", "mini")[::2] == (2, "cifar10 is not here\n")
    with monkeypatch.context() as patch:  # one of several: its own tasks fail
        patch.setattr(options.local, "run_inline", lambda tasks, _: [f"{len(tasks)} tasks"])
        assert "failed: 162 tasks" in fsr("train", "whitebox", "-p", "paper", "--executor", "inline")[2]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no CUDA" in fsr("train", "whitebox", "-p", "ci", "--device", "cuda")[2]
    (root / "results").rename(root / "moved")
    (root / "results").write_text("in the way")
    code, _, err = fsr("train", "whitebox", "-p", "ci")
    assert code == 2 and "cannot write" in err and (root / "results").read_text() == "in the way"


def test_a_systems_error_is_one_line(fsr, root):
    (root / "results" / "report" / "ci.html").mkdir(parents=True)
    code, _, said = fsr("report", "-p", "ci")
    assert code == 1 and "ci.html" in said.splitlines()[-1] and "Traceback" not in said


def test_the_exit_code_says_whether_all_is_done(fsr, monkeypatch):
    call = ["train", PLAIN, *CPU]
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "step", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert fsr(*call)[0] == 130
        patch.setattr(train.Trainer, "step", lambda *_: (_ for _ in ()).throw(MemoryError()))
        code, _, err = fsr(*call)
        assert code == 1 and "out of memory" in err
    code, _, err = fsr(*call, "--limit-minutes", "0.00001")
    assert code == 1 and "the same command goes on" in err
    code, _, err = fsr(*call)
    assert code == 0 and "] " + PLAIN + ": epoch 1/" in err and "[1 of 1 runs done]" in err
    assert [fsr(*quiet, *call)[2] for quiet in ((), ("-q",))] == ["nothing to do\n", ""]


def test_notebooks_that_are_not_there_and_half_of_torchruns_variables_are_wrong_use(fsr, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "fsr" / "files.py"))
    code, _, err = fsr("run-all", "--root", str(tmp_path))
    assert code == 2 and "go into a clone" in err and err.count("\n") == 1
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "two")
    code, _, err = fsr("train", PLAIN, *CPU)
    assert code == 2 and "unset WORLD_SIZE" in err and err.count("\n") == 1


@pytest.mark.parametrize("failed", [[], ["05-whitebox: KeyError: 'x'"]])
def test_run_all_executes_the_notebooks_and_builds_the_report(fsr, monkeypatch, failed):
    def execute(names, profile, *, workers, **how):
        assert (names, profile, workers) == (list(experiments.NEEDS), "ci", 1)
        return failed

    monkeypatch.setattr(runs, "missing", lambda profile, sets: [])
    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(report, "build", lambda profile: f"{profile}.html")
    code, out, err = fsr("run-all", "-p", "ci", "--workers", "1")
    assert out == "report: ci.html\n" and (code, err) == ((1, f"failed: {failed[0]}\n") if failed else (0, ""))
    monkeypatch.setattr(notebooks, "execute", lambda *_, check, **__: check())  # before each
    assert "the time limit is reached; the same command" in fsr("run-all", "-p", "ci", "--limit-minutes", "0")[2]


def test_a_dry_run_says_what_would_be_computed_and_computes_nothing(fsr, root):
    code, out, _ = fsr("run-all", "-p", "ci", "--dry-run")
    assert code == 0 and f"{run_id(experiments.SETS['ci']['all'][0])}: train" in out and not list(root.iterdir())
    out = fsr("evaluate", "whitebox", "-p", "headline", "--attack", "nattack", "--dry-run", "--device", "cpu")[1]
    assert "last nattack-n1000" in out  # 20,000 queries an image: no more images unless they are asked for
    assert f"{PLAIN}: train, last nattack\n" in fsr("evaluate", PLAIN, *CPU, "--attack", "nattack", "--dry-run")[1]
    digits = run_id(experiments.SETS["demo"]["all"][0])
    assert "-n2000" not in fsr("evaluate", digits, "-p", "mini", "--dry-run", "--device", "cpu")[1]  # it has 500
    for profile, sets in experiments.SETS.items():
        for name in (name for name, planned in sets.items() if not planned):
            assert fsr("evaluate", name, "-p", profile, "--dry-run")[:2] == (0, "nothing to do\n")
    assert f"{PLAIN}: train, last audit" in fsr("audit", PLAIN, "--images", "8", "--dry-run")[1]
    run = Run(dataset="folder:pets-12345678", eps=0.1, alpha=0.02, width=4, blocks=(1, 1, 1, 1))
    store.save_config(run)
    out = fsr("evaluate", run_id(run), "--dry-run")[1]
    assert "last autoattack" in out and "-n100" not in out  # a folder of any size is evaluated whole


def test_missing_trainings_take_the_seconds_per_epoch_of_those_alike(fsr, root):
    done, begun = (run for run in experiments.SETS["ci"]["whitebox"] if run.label == "at")
    for run, epochs in ((done, done.epochs), (begun, 1)):
        store.save_config(run)
        data = store.save_history(run, [{"epoch": i, "seconds": 600.0} for i in range(1, epochs + 1)])
        if run == done:
            record = {"run_id": run_id(done), "hardware": {"device": "cpu"}, "history_sha256": files.sha256(data)}
            files.save_json(files.run_dir(run_id(done)) / "env.json", record)
    lines = fsr("status", "-p", "ci", "--device", "cpu")[1].splitlines()
    line = next(line for line in lines if run_id(begun) in line)
    assert "NaN" not in " ".join(lines) and re.search(r"of trainings left, and \d+ that take an unknown", lines[-1])
    assert begun.epochs == 2 and "0:10:00" in line and line.split()[:3] == ["AT,", "seed", "1"]


def test_status_names_every_run_once_in_the_words_of_its_table(fsr):
    code, out, _ = fsr("status", "-p", "demo")
    ids = [run_id(run) for run in experiments.SETS["demo"]["all"]]
    assert code == 0 and all(out.count(name) == 1 for name in ids)
    assert f"0 done, 0 partial, {len(ids)} missing of {len(ids)} runs" in out


def test_data_names_the_folder_and_what_is_missing(fsr, root):
    folder = str(root / "sets")
    code, out, _ = fsr("data", "check", "--data", folder)
    assert fsr("data", "--data", folder)[1] == out and fsr("data", "path", "--data", folder)[1].strip() == folder
    assert fsr("data", "chekc")[0] == 2
    assert code == 0 and "digits" in out and folder in out
    assert "download=True" not in out and "downloaded at first use" in out  # not advice to callers of torchvision


def test_an_audit_prints_every_group_and_the_worst_case(fsr, root, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", BRISK)
    run = tiny_run(epochs=1)
    runs.ensure_trained(run, runs.Options(device="cpu"))
    code, out, err = fsr("audit", run_id(run), "--images", "8", "--device", "cpu", "--executor", "inline")
    assert code == 0 and out.startswith("authors' protocol"), err
    record, _ = store.load_analysis(run, Analysis(kind="audit", images=8, budget="quick"))
    assert {"autoattack", "latent", "queries", "restarts"} <= set(record["groups"])
    assert re.search(rf"\nworst case.* {100 * record['worst_case'] / 8:.1f} \[", out)
    assert len(out.splitlines()) >= len(record["groups"]) + 2


def test_one_attack_on_one_run_is_recorded_and_printed_and_not_computed_twice(fsr, root):
    call = ["evaluate", PLAIN, *CPU, "--attack", "mi-fgsm", "--images", "16"]
    assert f"{PLAIN}: train, last mi-fgsm-n16" in fsr(*call, "--dry-run")[1]
    code, out, err = fsr(*call)
    accuracy = 100 * store.load_evaluation(FIRST, Evaluation(attack="mi-fgsm", images=16)).correct.mean()
    assert code == 0 and out.startswith(f"{PLAIN}  last mi-fgsm-n16  {accuracy:.1f} ["), err
    assert out.strip().endswith("] % of 16")
    again = fsr(*call)
    assert again == (0, out, "nothing to do\n")
    assert f"{PLAIN}: last fgsm\n" in fsr("evaluate", PLAIN, *CPU, "--attack", "fgsm", "--dry-run")[1]
    shutil.rmtree(files.checkpoint_dir(PLAIN))  # then new attacks need another training
    assert f"{PLAIN}: train again, last fgsm\n" in fsr("evaluate", PLAIN, *CPU, "--attack", "fgsm", "--dry-run")[1]


def test_another_root_is_compared_in_points_where_both_have_a_value(fsr, root):
    for where, outcomes in {"again": {"clean": 4, "fgsm": 1}, ".": {"cw": 4, "fgsm": 2, "clean": 4}}.items():
        files.use(root=root / where)
        store.save_config(FIRST)
        for attack, right in outcomes.items():
            store.save_evaluation(FIRST, Evaluation(attack=attack), np.arange(4), np.arange(4) < right, seconds=1.0)
    code, out, _ = fsr("compare", str(root / "again"), "-p", "ci")
    rows = {line.split()[2]: line.split()[-1] for line in out.splitlines()[1:-2]}
    assert code == 0 and rows == {"clean": "0.0000", "fgsm": "-25.0000"}
    assert "2 values: 1 equal; largest difference 25.00 points\nnot compared: 1 values only here, 0 only in " in out
    assert files.root() == root.resolve()


def test_every_command_has_help_with_an_example(fsr):
    for command in ("run-all", "train", "evaluate", "audit", "status", "report", "data", "import-official", "compare"):
        code, out, _ = fsr(command, "--help")
        assert code == 0 and f"python -m fsr {command}" in out.partition("Example")[2], command


def test_verbose_shows_where_a_failure_comes_from(fsr, capsys):
    for loud in ((), ("-v",)):
        fsr(*loud, "data")
        assert failure(KeyError("lost"), "x") == "x: KeyError: 'lost' (-v shows where)"
        assert ("a task failed" in capsys.readouterr().err) == bool(loud)


def test_tensorboard_files_hold_the_history(fsr, root):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert fsr("train", PLAIN, *CPU, "--tensorboard")[0] == 0
    board = events.EventAccumulator(str(files.results() / "tensorboard" / PLAIN))
    board.Reload()
    history = store.history(FIRST)
    for column, tag in (("train_total", "train/total"), ("held_robust_acc", "held/robust_acc"), ("lr", "lr")):
        assert [e.value for e in board.Scalars(tag)] == pytest.approx(history[column].tolist(), rel=1e-4)
        assert [e.step for e in board.Scalars(tag)] == history["epoch"].tolist()
