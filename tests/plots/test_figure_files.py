"""Figure files: the same bytes for the same records, their origin inside, untouched when nothing changed."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fsr import plots, store
from fsr.config import run_id
from fsr.files import FSRError, UsageError
from fsr.plots import output, style

PROFILE = "ci"


def _figure(height: float = 1.0, label: str = "x"):
    fig, axes = style.panels(1, 1, 2.0)
    axes[0][0].plot([0, 1], [0, height])
    axes[0][0].set_xlabel(label)
    return fig


def test_a_second_save_leaves_the_files_alone(root):
    saved = plots.save(_figure(), PROFILE, "F7", "gains")
    before = [(p.stat().st_mtime_ns, p.read_bytes()) for p in (saved.png, saved.pdf)]
    plots.save(_figure(), PROFILE, "F7", "gains")
    assert [(p.stat().st_mtime_ns, p.read_bytes()) for p in (saved.png, saved.pdf)] == before


@pytest.mark.parametrize("other", [_figure(height=1.01), _figure(label="y")])
def test_changed_numbers_or_words_are_written(root, other):
    saved = plots.save(_figure(), PROFILE, "F7", "gains")
    before = saved.png.read_bytes(), saved.pdf.read_bytes()
    plots.save(other, PROFILE, "F7", "gains")
    assert saved.png.read_bytes() != before[0] and saved.pdf.read_bytes() != before[1]


def test_a_damaged_or_missing_file_is_written_again(root):
    saved = plots.save(_figure(), PROFILE, "F7", "gains")
    good = saved.png.read_bytes()
    saved.png.write_bytes(good[: len(good) // 2])
    saved.pdf.unlink()
    plots.save(_figure(), PROFILE, "F7", "gains")
    assert saved.png.read_bytes() == good and saved.pdf.exists()


def test_files_name_their_runs_and_the_records_commit(recorded):
    saved = plots.show(PROFILE, "F6")
    with Image.open(saved.png) as image:
        info = dict(image.info)
    runs = plots.runs_of(PROFILE, "F6")
    assert all(run_id(run) in info["Subject"] for run in runs)
    assert store.environment(runs[0])["commit"][:12] in info["Keywords"]
    assert b"CreationDate" not in saved.pdf.read_bytes()
    assert run_id(runs[0]).encode() in saved.pdf.read_bytes().replace(b"\\", b"")


@pytest.mark.parametrize("name", plots.FIGURES)
def test_every_figure_is_small_enough(recorded, name):
    saved = plots.show(PROFILE, name)
    assert saved.png.stat().st_size <= output.MAX_PNG
    with Image.open(saved.png) as image:
        assert 1000 <= image.width <= 1200


def test_a_chart_has_a_palette_that_changes_next_to_nothing(recorded):
    data = output._png(figure := plots.draw(PROFILE, "F7"), {})
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(io.BytesIO(data)) as small, Image.open(buffer) as whole:
        assert small.mode == "P" and len(data) < len(buffer.getvalue())
        pair = [np.asarray(image.convert("RGB")).astype(int) for image in (small, whole)]
        difference = np.abs(pair[0] - pair[1])
        assert difference.mean() < 0.1 and difference.max() < 60  # of 255, where an edge has its one pixel of grey


def test_a_photograph_keeps_its_colours_while_it_is_small():
    fig, axes = style.panels(1, 1, 2.0)
    axes[0][0].imshow(np.random.default_rng(0).random((90, 90, 3)), interpolation="nearest")
    with Image.open(io.BytesIO(output._png(fig, {}))) as image:
        assert image.mode != "P"


def test_a_figure_that_cannot_be_small_is_refused():
    fig, axes = style.panels(1, 1, 9.0)
    axes[0][0].imshow(np.random.default_rng(0).random((800, 800, 3)), interpolation="nearest")
    with pytest.raises(FSRError, match="show less"):
        output._png(fig, {"Title": "noise"})


def test_a_saved_figure_shows_exactly_its_file(root):
    saved = plots.save(_figure(), PROFILE, "F7", "gains", title="What FSR adds")
    data, metadata = saved._repr_mimebundle_()
    assert data["image/png"] == saved.png.read_bytes()
    assert "What FSR adds" in data["text/plain"] and str(saved.png.parent) not in data["text/plain"]
    assert metadata["image/png"]["width"] > 300


def test_drawing_leaves_the_callers_matplotlib_alone(root):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.show(PROFILE, "F9")
    assert dict(mpl.rcParams) == before


def test_unknown_figures_are_refused():
    with pytest.raises(UsageError, match="unknown figure 'F10'"):
        plots.info("F10")


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(recorded, tmp_path, monkeypatch):
    code = "import sys; from fsr import plots; [plots.show('ci', n) for n in sys.argv[1:]]"
    names = ["F2", "F7"]
    files = []
    for seed in ("1", "2"):
        for name in names:
            folder = recorded / "figures"
            for path in folder.rglob(f"{name}-*"):
                path.unlink()
        environment = {"FSR_ROOT": str(recorded), "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", code, *names], check=True, env=environment)
        files.append([p.read_bytes() for name in names for p in sorted((recorded / "figures").rglob(f"{name}-*"))])
    assert len(files[0]) == 4 and files[0] == files[1]
