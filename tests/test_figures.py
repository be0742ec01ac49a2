"""What figures draw and the report says is what the records say, as the same bytes every time."""

import re
import subprocess
import sys

import matplotlib.pyplot as plt
import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from synthetic_records import made_up_root, write_all, write_history

from fsr import experiments, files, plots, report, store, tables
from fsr.files import MissingRecord, UsageError
from fsr.plots import curves, style
from fsr.report.pages import QUESTIONS, page
from fsr.tables import outcomes
from fsr.tables.labels import measured

PROFILE = "ci"
PLAIN, BOTH = experiments.main_pair(PROFILE)
RECORDED = [name for name in plots.FIGURES if name != "F10"]  # ci has one training length


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A root that holds every record of `ci`, made up; for the whole module."""
    with made_up_root(tmp_path_factory.mktemp("recorded")) as root:
        write_all(PROFILE)
        yield root


def draw(name: str, profile: str = PROFILE) -> Figure:
    with plt.rc_context(style.STYLE):
        return plots.FIGURES[name](profile)


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def drawn(ax) -> list[float]:
    return [float(v) for line in ax.get_lines() if line.get_marker() == "o" for v in line.get_ydata()]


def test_a_second_save_leaves_the_files_alone_and_damage_is_mended(recorded):
    png, pdf = plots.save(PROFILE, "F7")
    assert (png.name, pdf.name, png.parent) == ("F7-gains.png", "F7-gains.pdf", recorded / "figures" / PROFILE)
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in (png, pdf)]
    assert b"CreationDate" not in before[1][1]
    plots.save(PROFILE, "F7")
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in (png, pdf)] == before
    png.write_bytes(before[0][1][:100])
    pdf.unlink()
    assert plots.show(PROFILE, "F7").data == before[0][1] and pdf.read_bytes() == before[1][1]
    assert "F10 is left out" in plots.show(PROFILE, "F10").data


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(recorded):
    code = "from fsr import plots; [plots.save('ci', name) for name in ('F2', 'F5', 'F7')]"
    saved = []
    for seed in ("1", "2"):
        for path in (recorded / "figures").rglob("F*"):
            path.unlink()
        environment = {"FSR_ROOT": str(recorded), "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        saved.append({path.name: path.read_bytes() for path in (recorded / "figures").rglob("F*")})
    assert len(saved[0]) == 6 and saved[0] == saved[1]


@pytest.mark.parametrize("profile", ["ci", "overfit", "headline40"])
def test_a_figure_without_records_raises_and_the_module_is_one_file(root, profile):
    plain = experiments.main_pair(profile)[0]
    for clean in (e for e in experiments.evaluations(profile, "strength", plain) if e.attack == "clean"):
        store.save_evaluation(plain, clean, range(4), [True] * 4)  # alone it is no curve of F6
    for name in set(plots.FIGURES) - {"F9"}:
        with pytest.raises(MissingRecord, match=f"run-all --profile {profile}"):
            plots.FIGURES[name](profile)
    with pytest.raises(UsageError, match="unknown figure 'F11'"):
        plots.save(profile, "F11")
    assert "training only" in texts(plots.FIGURES["F9"](profile))  # drawn from no record
    assert plots.save(profile, "F9")[0] == root / "figures" / "demo" / "F9-module.png"


@pytest.mark.parametrize("name", RECORDED)
def test_a_figure_names_its_setting_and_leaves_matplotlib_alone(recorded, monkeypatch, name):
    before, opened, figures = dict(plt.rcParams), plt.get_fignums(), []
    made = plots.FIGURES[name]
    monkeypatch.setitem(plots.FIGURES, name, lambda profile: figures.append(made(profile)) or figures[0])
    plots.save(PROFILE, name)
    assert dict(plt.rcParams) == before and plt.get_fignums() == opened
    assert all(len(legend.get_texts()) > 1 for legend in figures[0].legends)
    note = figures[0].get_supxlabel()
    assert name == "F9" or ("digits" in texts(figures[0]) and "2 epochs" in note)
    assert name in ("F5", "F9") or "weights" in note


def test_gains_are_those_of_the_table_in_the_method_s_colour(recorded):
    cells = tables.table(PROFILE, "T1")
    cells = cells[(cells["kind"] == "gain") & (cells["checkpoint"] == "last") & cells["value"].notna()]
    ax = draw("F7").axes[0]
    assert sorted(drawn(ax)) == pytest.approx(sorted(100 * cells["value"]))
    colours = {line.get_label(): line.get_color() for line in ax.get_lines()}
    for method in ("AT", "TRADES", "MART"):
        assert same_color(colours[f"{method} + FSR − {method}"], style.METHODS[f"{method} + FSR"])
    assert "PGD-20" in texts(ax.figure) and "digits (192 training images), ResNet-10" in texts(ax.figure)


def test_sweeps_are_differences_to_the_default(recorded):
    panels = {ax.get_title("left"): ax for ax in draw("F4").axes}
    assert set(panels) == {curves.AXES["tau"], curves.AXES["place"]}  # what ci varies; the others are not drawn
    ax = panels[curves.AXES["tau"]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.1\n(default)", "1.0"]
    rows = [row for row in experiments.ROWS[PROFILE]["settings"] if row.axis == "tau"]
    expected = outcomes.gain(rows[1].runs, (BOTH,), experiments.columns(PROFILE, "settings")["pgd20"])["value"]
    assert 100 * expected in [pytest.approx(value) for value in drawn(ax)]


def test_attack_strength_starts_at_the_clean_accuracy_and_shows_the_paired_difference(recorded):
    top, _, below, _ = draw("F6").axes
    clean = next(e for e in experiments.evaluations(PROFILE, "strength", PLAIN) if e.attack == "clean")
    (line,) = [line for line in top.get_lines() if line.get_label() == "AT"]
    assert line.get_ydata()[0] == store.load_evaluation(PLAIN, clean).correct.mean()
    assert line.get_xdata()[0] == 0 and (np.diff(line.get_xdata()) > 0).all()
    assert drawn(below)[0] == pytest.approx(100 * outcomes.gain((BOTH,), (PLAIN,), clean)["value"])


def test_stream_bars_are_means_over_seeds_at_the_images_of_one(recorded):
    frame = tables.table(PROFILE, "T7").query("checkpoint == 'last' and attack == 'pgd20'")
    means = frame.groupby(["stream", "probe"])["accuracy"].mean()
    figure = draw("F3")
    ax = figure.axes[0]
    assert sorted(bar.get_height() for bar in ax.patches) == pytest.approx(sorted(100 * means))
    assert f"over {frame['n'].max():,.0f} images" in " ".join(figure.get_supxlabel().split())
    assert {measured(mean) for mean in means} == {text.get_text() for text in ax.texts}  # as T7 rounds them


def test_masks_are_shares_that_sum_to_one_and_no_panel_is_empty(recorded):
    sums = [[patch.get_data().values.sum() for patch in ax.patches] for ax in draw("F2").axes]
    assert np.array(sums) == pytest.approx(np.ones((2, 2)))


def test_maps_show_images_that_the_attack_fools(recorded):
    shown = texts(draw("F1"))
    assert "right: 1" in shown and "wrong: 2" in shown and "right: 0" not in shown


def test_features_are_turned_onto_each_other_and_named(recorded):
    for ax, stream in zip(draw("F8").axes, ("nonrobust", "recalibrated")):
        assert {dots.get_label() for dots in ax.collections} == {str(i) for i in range(10)}
        cells = style.cells(PROFILE, "T7", attack="pgd20", checkpoint="ema", probe="knn", stream=stream, seed=0)
        assert f"{100 * cells['accuracy'].item():.1f} % by nearest" in ax.get_title("left")


def test_training_length_draws_each_length_and_checkpoint(recorded, monkeypatch):
    with pytest.raises(MissingRecord, match="several lengths"):  # one length is no curve
        draw("F10")
    frame = pd.DataFrame({"setting": [5, 10, 10], "checkpoint": ["last", "last", "ema"], "network": "ResNet-18"})
    monkeypatch.setattr(style, "cells", lambda *_, **__: frame.assign(value=[-0.01, -0.02, 0.01], low=-0.03, high=0.02))
    assert [drawn(ax) for ax in draw("F10").axes] == [[-1, -2], [1]]


@pytest.mark.parametrize("profile, trained", [("overfit", 100), (PROFILE, 1)])
def test_training_and_held_out_accuracy_are_drawn_also_of_a_half_finished_training(root, profile, trained):
    plain = experiments.main_pair(profile)[0]
    store.save_config(plain)
    write_history(plain, epochs=trained)
    for ax, column in zip(draw("F5", profile).axes, curves.PANELS):
        history = store.history(plain)
        assert column not in history or any(
            np.array_equal(line.get_ydata(), history[column]) for line in ax.get_lines()
        )
    assert {line.get_marker() for line in ax.figure.axes[4].get_lines()} >= {"o", "*", "D"}  # last, best, EMA


@pytest.fixture(scope="module")
def text(recorded):
    return report.build(PROFILE).read_text()


def whole(text: str) -> bool:
    """Every element of a page is closed, and no id is used twice."""
    ids = re.findall(r' id="([^"]+)"', text)
    tags = set(re.findall(r"<(\w+)", text)) - {"meta", "img", "br", "html"}
    return len(ids) == len(set(ids)) and all(len(re.findall(rf"</?{tag}\b", text)) % 2 == 0 for tag in tags)


def test_the_page_answers_first_then_gives_the_verdict_and_then_each_question(text):
    order = [text.index(f'id="{name}"') for name in ("answer", "F7", "T1", "T10", "T4")]
    assert order == sorted(order) and text.index(report.answer(PROFILE)) < order[1]
    shown = [name for _, _, items in QUESTIONS for name in items.split()]
    assert sorted(shown) == sorted([*tables.TABLES, *plots.FIGURES])
    before = files.report(PROFILE).stat().st_mtime_ns
    assert report.build(PROFILE).stat().st_mtime_ns == before  # a second build touches nothing


def test_the_page_is_whole_needs_nothing_but_itself_and_links_to_files(text):
    base = files.report(PROFILE).parent
    assert whole(text) and text.count("<img") == text.count("<img alt=")
    for link in re.findall(r'(?:href|src)="([^"]+)"', text):
        inside_page = link.startswith("data:image/png;base64,") or (link[0] == "#" and f'id="{link[1:]}"' in text)
        assert inside_page or (base / link).resolve().is_file(), link
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert "0123456789" in text and not re.search(r"20\d\d-\d\d-\d\d", text)  # the commit of the records, no day


def test_without_any_record_the_page_stands_and_leaves_tables_out(root):
    text = page(PROFILE)
    assert whole(text) and "not run yet" in text and 'id="T1"' not in text
    assert "Left out because most of it was not planned or not run: " in text


def test_the_study_shows_its_rows_once_and_others_with_their_epochs(root, monkeypatch):
    monkeypatch.setattr(report.pages, "_part", lambda profile, name: {"name": name, "said": [], "notes": []})
    text = page("overfit")
    assert "T11" in re.findall('id="([TF][0-9]+)"', text) and "Left out" not in text
    assert not {"T1", "T4", "F10"} & set(re.findall('id="([TF][0-9]+)"', text))
    assert "official code and recipe, 100 epochs" in text and "41.20" in text and ">seeds<" not in text
