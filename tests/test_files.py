"""Where a record's code came from."""

import shutil
import subprocess

import pytest

from fsr import files


def origin(monkeypatch, **said) -> tuple:
    """(commit, dirty) when the environment says this and nothing more."""
    for name in ("FSR_COMMIT", "FSR_DIRTY"):
        monkeypatch.setenv(name, said.get(name, ""))
    record = files.provenance.__wrapped__()
    return record["commit"], record["dirty"]


@pytest.mark.parametrize(("said", "dirty"), [({}, None), ({"FSR_DIRTY": "0"}, False), ({"FSR_DIRTY": "1"}, True)])
def test_the_environment_says_both_or_nothing_is_known(monkeypatch, said, dirty):
    assert origin(monkeypatch, FSR_COMMIT="c0ffee", **said) == ("c0ffee", dirty)


def test_only_a_repository_that_tracks_this_code_is_believed(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        call = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    copy = tmp_path / "copies" / "fsr" / "files.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(files.__file__, copy)
    monkeypatch.setattr(files, "__file__", str(copy))
    assert origin(monkeypatch) == (None, None)  # no repository at all
    git("init")
    git("commit", "--allow-empty", "-m", "of something else")
    assert origin(monkeypatch) == (None, None)
    git("add", "copies")
    git("commit", "-m", "of this code")
    assert origin(monkeypatch) == (git("rev-parse", "HEAD"), False)
    copy.write_text("changed")
    assert origin(monkeypatch) == (git("rev-parse", "HEAD"), True)
