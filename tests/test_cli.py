"""The command line: one clear line and exit code 2 for wrong use, 0 when all is done."""

import os
import stat
import sys

import pytest

from fsr import __main__ as cli
from fsr import experiments
from fsr.config import run_id


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
    assert code == 2 or "failed:" in lines[0]
    assert "Traceback" not in out + err


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
    assert fsr("data", "path", "--data", str(root / "sets"))[1].strip() == str(root / "sets")


def test_every_command_has_help_with_its_options(fsr):
    for command in ("run-all", "train", "evaluate", "audit", "status", "report", "data", "import-official", "compare"):
        code, out, _ = fsr(command, "--help")
        assert code == 0 and "--help" in out, command
