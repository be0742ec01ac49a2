"""Figure files: their names, the same bytes for the same records, untouched when nothing changed."""

import subprocess
import sys

import pytest

from fsr import plots
from fsr.files import UsageError

PROFILE = "ci"


def _state(paths):
    return [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]


def test_a_second_save_leaves_the_files_alone_and_damage_is_mended(recorded):
    png, pdf = plots.save(PROFILE, "F7")
    assert (png.name, pdf.name, png.parent) == ("F7-gains.png", "F7-gains.pdf", recorded / "figures" / PROFILE)
    before = _state([png, pdf])
    assert b"CreationDate" not in before[1][1]
    plots.save(PROFILE, "F7")
    assert _state([png, pdf]) == before
    png.write_bytes(before[0][1][:100])
    pdf.unlink()
    plots.save(PROFILE, "F7")
    assert [data for _, data in _state([png, pdf])] == [data for _, data in before]


def test_the_module_is_one_file_for_all_profiles(root):
    assert plots.save("ci", "F9") == plots.save("mini", "F9")
    assert plots.paths("mini", "F9")[0] == root / "figures" / "demo" / "F9-module.png"
    assert plots.paths("mini", "F10")[0].name == "F10-training-length.png"


def test_a_notebook_shows_the_saved_file_or_says_what_is_missing(recorded):
    shown = plots.show(PROFILE, "F7")
    assert shown.data == plots.paths(PROFILE, "F7")[0].read_bytes()
    assert "F10 is left out" in plots.show(PROFILE, "F10").data


def test_unknown_figures_are_refused():
    with pytest.raises(UsageError, match="unknown figure 'F11'"):
        plots.save(PROFILE, "F11")


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(recorded):
    code = "from fsr import plots; [plots.save('ci', name) for name in ('F2', 'F5', 'F7')]"
    found = []
    for seed in ("1", "2"):
        for path in (recorded / "figures").rglob("F*"):
            path.unlink()
        environment = {"FSR_ROOT": str(recorded), "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        found.append({path.name: path.read_bytes() for path in (recorded / "figures").rglob("F*")})
    assert len(found[0]) == 6 and found[0] == found[1]
