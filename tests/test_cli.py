"""The command line: one clear line and exit code 2 for wrong use, 0 when all is done."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from tiny import BRISK, tiny_run

from fsr import __main__ as cli
from fsr import experiments, files, runs, store
from fsr.audit import BUDGETS
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.runs import local as executors
from fsr.train import loop as train

PLAIN = run_id(experiments.SETS["ci"]["whitebox"][0])


@pytest.fixture
def fsr(monkeypatch, capsys, root):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fsr", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as done:
            code = done.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


WRONG = [
    (["run-all", "--profile", "dem"], "demo"),
    (["run-all", "--only", "99"], "05-whitebox"),
    (["run-all", "--profile", "ci", "--limit-minutes", "-3"], "limit-minutes"),
    (["train", "whitebx", "--profile", "ci"], "did you mean 'whitebox'"),
    (["train", "whitebox", "--profile", "ci", "--device", "tpu"], "--device cpu"),
    (["evaluate", "nothing", "--profile", "ci"], "whitebox"),
    (["audit", "no-such-run"], "status"),
    (["audit", "../../secrets"], "status"),
    (["data", "fetch"], "data check"),
    (["status", "--profle", "ci"], "--profile"),
    (["frobnicate"], "frobnicate"),
    (["import-official", "missing.pth", "--backbone", "resnet18", "--dataset", "cifar10"], "missing.pth"),
    (["train", "whitebox", "--profile", "mini", "--data", "/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize("arguments, says", WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_wrong_use_is_one_line_that_says_what_to_type(fsr, monkeypatch, arguments, says):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    if arguments[-1] == "/nowhere":
        arguments = [*arguments, "--executor", "inline"]
    code, out, err = fsr(*arguments)
    lines = [line for line in err.splitlines() if says in line]
    assert lines, err
    assert code == 2 or (code == 1 and any(line.startswith("failed:") for line in lines))
    assert "Traceback" not in out + err


def test_the_exit_code_says_whether_all_is_done(fsr, monkeypatch):
    monkeypatch.setattr(train.Trainer, "step", lambda *_: signal.raise_signal(signal.SIGTERM))
    call = [
        "train",
        run_id(experiments.SETS["ci"]["whitebox"][0]),
        "-p",
        "ci",
        "--device",
        "cpu",
        "--executor",
        "inline",
    ]
    assert fsr(*call)[0] == 130
    monkeypatch.setattr(train.Trainer, "step", lambda *_: (_ for _ in ()).throw(MemoryError()))
    code, _, err = fsr(*call)
    assert code == 1 and "out of memory" in err


def test_a_time_limit_that_is_reached_is_exit_code_1_and_the_same_command_goes_on(fsr):
    call = [
        "train",
        run_id(experiments.SETS["ci"]["whitebox"][0]),
        "-p",
        "ci",
        "--device",
        "cpu",
        "--executor",
        "inline",
    ]
    code, _, err = fsr(*call, "--limit-minutes", "0.00001")
    assert code == 1 and "the same command goes on" in err
    assert fsr(*call)[0] == 0


def test_cuda_without_cuda_is_refused(fsr, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = fsr("train", "whitebox", "--profile", "ci", "--device", "cuda")
    assert code == 2 and "no CUDA" in err and len(err.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_results_folder_is_refused_at_once(fsr, root):
    root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, err = fsr("train", "whitebox", "--profile", "ci")
    root.chmod(stat.S_IRWXU)
    assert code == 2 and "cannot write" in err


def test_a_results_folder_that_is_a_file_is_refused_at_once(fsr, root):
    (root / "results").write_text("in the way")
    code, _, err = fsr("train", "whitebox", "--profile", "ci")
    assert code == 2 and "cannot write" in err and (root / "results").read_text() == "in the way"


def test_dry_run_says_what_would_be_computed_and_computes_nothing(fsr, root):
    code, out, _ = fsr("run-all", "--profile", "ci", "--dry-run")
    first = run_id(experiments.SETS["ci"]["all"][0])
    assert code == 0 and f"{first}: train" in out and not list(root.iterdir())


def test_status_lists_every_run_once(fsr):
    code, out, _ = fsr("status", "--profile", "demo")
    ids = [run_id(run) for run in experiments.SETS["demo"]["all"]]
    assert code == 0 and all(out.count(name) == 1 for name in ids)
    assert f"0 done, 0 partial, {len(ids)} missing of {len(ids)} runs" in out


def test_data_check_names_the_folder(fsr, root):
    code, out, _ = fsr("data", "check", "--data", str(root / "sets"))
    assert code == 0 and "digits" in out and str(root / "sets") in out
    assert "download=True" not in out and "downloaded at first use" in out  # not advice to callers of torchvision
    assert fsr("data", "path", "--data", str(root / "sets"))[1].strip() == str(root / "sets")


def test_an_audit_prints_every_group_and_the_worst_case(fsr, root, monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", BRISK)
    run = tiny_run(epochs=1)
    runs.ensure_trained(run, runs.Options(device="cpu"))
    code, out, err = fsr("audit", run_id(run), "--images", "8", "--device", "cpu")
    lines = out.splitlines()
    assert code == 0, err
    assert lines[0].startswith("authors' protocol") and any(line.startswith("worst case") for line in lines)
    record, _ = store.load_analysis(run, Analysis(kind="audit", images=8, budget="quick"))
    assert len(record["groups"]) > 5 and len(lines) >= len(record["groups"]) + 2
    assert f"{100 * record['worst_case'] / 8:.1f} [" in next(line for line in lines if line.startswith("worst case"))


def test_one_attack_on_one_run_is_recorded_and_printed_and_not_computed_twice(fsr, root):
    run = experiments.SETS["ci"]["whitebox"][0]
    call = ["evaluate", run_id(run), "-p", "ci", "--attack", "mi-fgsm", "--images", "16", "--device", "cpu"]
    assert f"{run_id(run)}: train, last mi-fgsm-n16" in fsr(*call, "--dry-run")[1]
    code, out, err = fsr(*call, "--executor", "inline")
    record = store.load_evaluation(run, Evaluation(attack="mi-fgsm", images=16))
    assert code == 0, err
    line = f"{run_id(run)}  last mi-fgsm-n16  {100 * record.accuracy:.1f} ["
    assert out.startswith(line) and out.strip().endswith("] % of 16")
    again = fsr(*call, "--executor", "inline")
    assert again[:2] == (0, out) and "[1/1]" not in again[2]


def test_a_query_attack_takes_the_images_it_has_time_for(fsr, root):
    """20,000 queries an image: 1,000 of CIFAR-10's 10,000 unless more are asked for, all of ci's 64."""
    call = ["--attack", "nattack", "--dry-run", "--executor", "ray", "--device", "cpu"]
    assert "last nattack-n1000" in fsr("evaluate", "whitebox", "-p", "headline", *call)[1]
    assert "last nattack-n2000" in fsr("evaluate", "whitebox", "-p", "headline", *call, "--images", "2000")[1]
    assert "last nattack\n" in fsr("evaluate", PLAIN, "-p", "ci", *call)[1]


def test_a_folder_of_any_size_is_evaluated_whole(fsr, root, tmp_path):
    """The plan's own numbers of images belong to its data sets."""
    run = Run(dataset="folder:pets-12345678", eps=0.1, alpha=0.02, width=4, blocks=(1, 1, 1, 1))
    store.save_config(run)
    out = fsr("evaluate", run_id(run), "--dry-run")[1]
    assert "last autoattack" in out and "-n100" not in out


def test_a_planned_run_is_audited_by_its_id_as_it_is_trained(fsr, root, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "ensure_analysed", lambda run, analysis, options: asked.append(run) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fsr("audit", PLAIN, "--images", "8", "--device", "cpu")
    assert [run_id(run) for run in asked] == [PLAIN]


def test_a_dry_run_says_what_is_trained_again_for_its_weights(fsr, root):
    run = experiments.SETS["ci"]["whitebox"][0]
    runs.ensure_trained(run, runs.Options(device="cpu"))
    call = ["evaluate", PLAIN, "-p", "ci", "--attack", "fgsm", "--dry-run", "--device", "cpu"]
    assert "no training;" in fsr(*call)[1]
    runs.weights_path(run, "last").unlink()
    out = fsr(*call)[1]
    assert "train" not in out.splitlines()[0] and "1 training (1 of them again" in out


def test_a_run_outside_the_plan_is_evaluated_by_its_id(fsr, root):
    run = tiny_run(epochs=1)
    runs.ensure_trained(run, runs.Options(device="cpu"))
    code, out, err = fsr("evaluate", run_id(run), "-p", "ci", "--dry-run")
    assert code == 0 and "last clean" in out and "last autoattack-ci-n32" in out and "train," not in out, err
    assert fsr("evaluate", run_id(run)[:-1], "-p", "ci")[2].count(run_id(run)) == 1


def test_every_command_has_help_with_its_options(fsr):
    for command in ("run-all", "train", "evaluate", "audit", "status", "report", "data", "import-official", "compare"):
        code, out, _ = fsr(command, "--help")
        assert code == 0 and "--help" in out, command
        assert f"python -m fsr {command}" in out.partition("Example")[2], command


MEANT = [
    (["status", "-p", "dmo"], "did you mean 'demo'"),
    (["run-all", "-p", "ci", "--only", "05-whitebx"], "did you mean '05-whitebox'"),
    (["trian", "whitebox"], "'train'"),
    (["data", "chek"], "did you mean 'check'"),
    (["evaluate", "whitebox", "-p", "ci", "--attack", "mi-fgms"], "did you mean 'mi-fgsm'"),
    (["evaluate", "whitebox", "-p", "ci", "--attack", "transfer"], "needs surrogate"),
    (["evaluate", "whitebox", "-p", "ci", "--attack", "fgsm", "--checkpoint", "first"], "last, best, ema"),
]


@pytest.mark.parametrize("arguments, says", MEANT, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_unknown_names_come_with_the_one_that_was_meant(fsr, arguments, says):
    code, _, err = fsr(*arguments)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_root_that_is_not_there_is_not_made_by_reading(fsr, root, command):
    code, _, said = fsr(command, "--root", str(root / "nowhere"))
    assert code == 2 and "no folder" in said and not (root / "nowhere").exists()


def test_a_run_id_without_its_hash_means_the_run_that_begins_so(fsr):
    code, _, said = fsr("evaluate", "digits-resnet18-at-s0", "--attack", "fgsm")
    assert code == 2 and "did you mean 'digits-resnet18-at-s0-" in said


def test_an_unknown_run_comes_with_the_one_that_was_meant(fsr):
    run = tiny_run()
    store.save_config(run)
    code, _, err = fsr("audit", run_id(run)[:-1] + "x")
    assert code == 2 and f"did you mean {run_id(run)!r}" in err


def test_a_dry_run_estimates_the_trainings_from_those_finished_here(fsr, root):
    """From the seconds per epoch of those alike, times the epochs that are left."""
    call = ("train", "whitebox", "--profile", "ci", "--dry-run", "--device", "cpu")
    assert "8 trainings, 8 of unknown length" in fsr(*call)[1]
    done, begun, *left = experiments.SETS["ci"]["whitebox"]
    for run, epochs in ((done, done.epochs), (begun, 1)):
        store.save_config(run)
        history = store.save_history(run, [{"epoch": i, "seconds": 600.0} for i in range(1, epochs + 1)])
    record = {"run_id": run_id(done), "hardware": {"device": "cpu"}, "checkpoints": {}}
    history = (files.run_dir(run_id(done)) / "history.csv").read_bytes()
    files.save_json(files.run_dir(run_id(done)) / "env.json", record | {"history_sha256": files.sha256(history)})
    epochs = begun.epochs - 1 + sum(run.epochs for run in left)
    assert f"7 trainings, about {files.duration(600 * epochs)} in all" in fsr(*call)[1]
    line = next(line for line in fsr("status", "-p", "ci", "--device", "cpu")[1].splitlines() if run_id(begun) in line)
    assert files.duration(600 * (begun.epochs - 1)) in line and line.split()[:3] == ["AT", "+", "FSR,"]


def test_quiet_says_nothing_when_all_is_well_and_verbose_excludes_it(fsr):
    arguments = ["train", run_id(experiments.SETS["ci"]["whitebox"][0]), "-p", "ci", "--device", "cpu"]
    code, out, err = fsr("-q", *arguments, "--executor", "inline")
    assert (code, out, err) == (0, "", "")
    assert fsr("-q", "-v", "status")[0] == 2
    assert "demo" in fsr("-q", "status", "-p", "dem")[2]  # failures are still said


def test_verbose_shows_where_a_failure_comes_from(fsr, capsys):
    for loud in ((), ("-v",)):
        fsr(*loud, "data", "path")
        try:
            {}["lost"]
        except KeyError as error:
            line = executors.describe_error(error)
        assert line == "KeyError: 'lost' (-v shows where)"
        assert ("Traceback" in capsys.readouterr().err) == bool(loud)


def test_progress_reads_well_in_a_log_file(fsr):
    arguments = ["train", run_id(experiments.SETS["ci"]["whitebox"][0]), "-p", "ci", "--device", "cpu"]
    code, _, err = fsr(*arguments, "--executor", "inline")
    assert code == 0 and "[1/1]" in err and "epoch 1/" in err and "\x1b" not in err and "\r" not in err


@pytest.mark.parametrize("line, word, offered", [("fsr ru", 1, "run-all"), ("fsr train whi", 2, "whitebox"),
                                                 ("fsr status -p mi", 3, "mini"),
                                                 (f"fsr train -p ci {PLAIN[:-4]}", 4, PLAIN),
                                                 (f"fsr audit {PLAIN[:-4]}", 2, PLAIN),
                                                 ("fsr evaluate all --attack mi-", 4, "mi-fgsm")])  # fmt: skip
def test_the_shell_completes_commands_sets_and_profiles(root, line, word, offered):
    environment = {**os.environ, "_FSR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    code = "import sys; sys.argv = ['fsr']; from fsr.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert offered in done.stdout.split(), done.stderr


def test_the_completion_to_install_is_that_of_the_fsr_command(fsr, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, out, err = fsr("--show-completion", "bash")
    assert code == 0 and "_FSR_COMPLETE" in out, err


def test_tensorboard_files_hold_the_history(fsr, root):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = experiments.SETS["ci"]["whitebox"][0]
    code, _, err = fsr("train", run_id(run), "-p", "ci", "--device", "cpu", "--executor", "inline", "--tensorboard")
    assert code == 0, err
    board = events.EventAccumulator(str(files.results() / "tensorboard" / run_id(run)))
    board.Reload()
    history = store.history(run)
    for column, tag in (("train_total", "train/total"), ("held_robust_acc", "held/robust_acc"), ("lr", "lr")):
        assert [e.value for e in board.Scalars(tag)] == pytest.approx(history[column].tolist(), rel=1e-4)
        assert [e.step for e in board.Scalars(tag)] == history["epoch"].tolist()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["audit", "digits-resnet18-at-s0-149ed331da", "--budget", "huge"], "quick"),
        (["audit", PLAIN, "--images", "65"], "64 test images"),
        (["audit", PLAIN, "--checkpoint", "beste"], "last, best, ema"),
        (["evaluate", "whitebox", "--executor", "ray", "--device", "gpu"], "give cpu or cuda"),
        (["evaluate", "whitebox", "--images", "5"], "--attack"),
        (["evaluate", "whitebox", "--checkpoint", "best"], "--attack"),
        (["evaluate", "whitebox", "--attack", ""], "unknown attack"),
        (["evaluate", "whitebox", "--attack", "pgd20", "--images", "99999"], "64 test images"),
        (["evaluate", "whitebox", "--attack", "pgd20-joint"], "auxiliary heads"),
        (["status", "--root", "~nobody-of-that-name/x"], "--root"),
        (["status", "--root", "x" * 5000], "--root"),
    ],
)
def test_what_would_fail_only_after_training_is_refused_at_once(fsr, root, words, says):
    code, _, out = fsr(*words, *(("-p", "ci") if words[0] == "evaluate" else ()))
    assert code == 2 and says in out and len(out.strip().splitlines()) == 1


def test_a_control_without_heads_has_no_joint_attack(fsr, root):
    name = next(run_id(run) for run in experiments.SETS["ci"]["all"] if run.fsr and run.fsr.kind == "residual")
    code, _, out = fsr("evaluate", name, "--attack", "pgd20-joint", "-p", "ci")
    assert code == 2 and "auxiliary heads" in out and not (root / "results" / "runs").exists()


def test_a_file_where_a_folder_belongs_is_refused(fsr, root):
    (root / "file").write_text("x")
    for words in (("status", "--root", str(root / "file")), ("data", "path", "--data", str(root / "file"))):
        code, _, out = fsr(*words)
        assert code == 2 and "is a file; give a folder" in out and len(out.strip().splitlines()) == 1


def test_missing_data_is_one_line_however_many_runs_need_it(fsr, root, monkeypatch):
    from fsr.files import MissingData
    from fsr.runs import local as executors

    def gone(name):
        raise MissingData(f"{name} is not here")

    monkeypatch.setattr(executors, "fetch", gone)
    code, _, out = fsr("train", "whitebox", "-p", "mini")
    assert (code, out.strip()) == (2, "cifar10 is not here") and not list((root / "results").glob("runs/*"))


def test_a_systems_error_is_one_line(fsr, root):
    (root / "results" / "report" / "ci.html").mkdir(parents=True)
    code, _, said = fsr("report", "-p", "ci")
    assert code == 1 and "ci.html" in said.splitlines()[-1] and "Traceback" not in said


def test_tensorboard_that_is_not_installed_is_said_at_once(fsr, root, monkeypatch):
    monkeypatch.setattr(sys.modules["fsr.cli.options"], "find_spec", lambda name: None)
    code, _, said = fsr("train", "whitebox", "-p", "ci", "--tensorboard")
    assert code == 2 and "pip install -e '.[tensorboard]'" in said and not list((root / "results").glob("runs/*"))
