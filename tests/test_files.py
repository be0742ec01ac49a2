"""Where a record's code came from."""

import shutil
import subprocess

import pytest

from fsr import files


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing said by the environment."""
    for name in ("FSR_COMMIT", "FSR_DIRTY"):
        monkeypatch.delenv(name, raising=False)


def origin() -> tuple:
    record = files.provenance.__wrapped__()
    return record["commit"], record["dirty"]


@pytest.mark.parametrize(("said", "dirty"), [({}, None), ({"FSR_DIRTY": "0"}, False), ({"FSR_DIRTY": "1"}, True)])
def test_the_environment_says_both_or_nothing_is_known(monkeypatch, said, dirty):
    for name, value in {"FSR_COMMIT": "c0ffee", **said}.items():
        monkeypatch.setenv(name, value)
    assert origin() == ("c0ffee", dirty)


def test_only_a_repository_that_tracks_this_code_is_believed(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        call = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    copy = tmp_path / "copies" / "fsr" / "files.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(files.__file__, copy)
    monkeypatch.setattr(files, "__file__", str(copy))
    assert origin() == (None, None)  # no repository at all
    git("init")
    (tmp_path / ".gitignore").write_text("copies/\n")
    git("add", ".gitignore")
    git("commit", "-m", "of something else")
    assert origin() == (None, None)
    git("add", "-f", "copies")
    git("commit", "-m", "of this code")
    assert origin() == (git("rev-parse", "HEAD"), False)
    copy.write_text("changed")
    assert origin() == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("FSR_COMMIT", "c0ffee")
    assert origin() == ("c0ffee", None)
