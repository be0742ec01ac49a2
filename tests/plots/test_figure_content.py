"""Every figure shows its records' numbers, and says so where there are none."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fsr import experiments, plots, store
from fsr.plots import curves, features, maps, readings, streams, strength

PROFILE = "ci"


def texts(figure: Figure) -> str:
    """All words of a figure."""
    import matplotlib.text

    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("name", plots.FIGURES)
def test_without_records_a_figure_says_so(root, name):
    figure = plots.draw(PROFILE, name)
    assert ("not run" in texts(figure)) == (name != "F9")


@pytest.mark.parametrize("name", plots.FIGURES)
def test_with_records_nothing_is_called_not_run(recorded, name):
    assert "not run" not in texts(plots.draw(PROFILE, name))


def test_gains_draws_each_gain_in_points(recorded):
    figure = plots.gains(PROFILE)
    drawn = np.concatenate([line.get_xdata() for ax in figure.axes for line in ax.get_lines()])
    row = readings.gain_rows(PROFILE)[0]
    for attack in ("clean", "ensemble"):
        assert np.isclose(drawn, 100 * readings.gain(PROFILE, row, attack).mean).any()


def test_attack_strength_starts_at_the_clean_accuracy(recorded):
    run = experiments.main_pair(PROFILE)[0]
    points = strength.sweep(PROFILE, run, "eps")
    images = experiments.profile_of(PROFILE).sweep_images
    clean = next(e for e in experiments.evaluations(PROFILE, "strength", run) if e.attack == "clean")
    assert (points[0][0], points[0][1].value) == (0.0, store.load_evaluation(run, clean).accuracy)
    assert clean.images == images
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    left = plots.attack_strength(PROFILE).axes[0]
    drawn = next(line for line in left.get_lines() if line.get_label() == "AT")
    assert drawn.get_ydata().tolist() == [a.value for _, a in points]


def test_clean_accuracy_alone_is_no_curve(root):
    run = experiments.main_pair(PROFILE)[0]
    clean = next(e for e in experiments.evaluations(PROFILE, "strength", run) if e.attack == "clean")
    store.save_evaluation(run, clean, range(4), [True] * 4)
    figure = plots.attack_strength(PROFILE)
    assert texts(figure).count("not run") == 2 and not figure.legends


def test_more_steps_are_drawn_from_few_to_many(recorded):
    run = experiments.main_pair(PROFILE)[0]
    planned = [e.steps for e in experiments.evaluations(PROFILE, "strength", run) if e.steps]
    assert [x for x, _ in strength.sweep(PROFILE, run, "steps")] == sorted(planned)


def test_names_are_moved_apart_and_no_further():
    centres = np.array([[0.0, 0.0], [1.0, 0.1], [1.0, 5.0], [9.0, 0.05], [0.5, 0.15]])
    moved = features.apart(centres, np.full(5, 3.0), 1.0)
    for i in range(5):
        for j in range(i):
            near = abs(moved[i, 0] - moved[j, 0]) < 3.0
            assert not near or abs(moved[i, 1] - moved[j, 1]) >= 1.0 - 1e-6
    assert (moved[:, 0] == centres[:, 0]).all() and (moved[[2, 3]] == centres[[2, 3]]).all()
    assert moved[0, 1] < moved[1, 1] < moved[4, 1]  # order is kept
    assert np.isclose(moved[[0, 1, 4], 1].mean(), centres[[0, 1, 4], 1].mean())


def test_stream_bars_reach_little_above_what_they_show(recorded, monkeypatch):
    few = {("f", "aux"): (100, 1000), ("f", "knn"): (200, 1000)}  # 20 %, its interval up to 22.6 %
    monkeypatch.setattr(streams, "mean_counts", lambda _records: few)
    top = plots.stream_bars(PROFILE).axes[0].get_ylim()[1]
    assert 0.226 < top < 0.3


def test_stream_bars_are_means_over_seeds_at_the_images_of_one():
    """Three seeds of 40 images are not 120 independent ones: the interval stays as wide as that of 40."""
    few, more = ([{"stream": "robust", "probe": "knn", "n": 40, "correct": correct}] for correct in (16, 24))
    found = streams.mean_counts([{"rows": few}, {"rows": more}, {"rows": more}])
    assert found == {("robust", "knn"): (pytest.approx(64 / 3), 40)}


def test_stream_bars_have_the_recorded_heights(recorded):
    records = readings.analysed(PROFILE, readings.rows(PROFILE, "streams")[0], "streams", "last")
    shares = sorted(correct / n for correct, n in streams.mean_counts(records).values())
    heights = sorted(patch.get_height() for patch in plots.stream_bars(PROFILE).axes[0].patches)
    assert heights == pytest.approx(shares)


@pytest.mark.parametrize(("seen", "told"), [(("last", "ema"), "last epoch"), (("ema",), "EMA weights"), ((), None)])
def test_stream_bars_say_whose_weights_they_show(recorded, monkeypatch, seen, told):
    whole = readings.analysed
    monkeypatch.setattr(readings, "analysed", lambda *given: whole(*given) if given[-1] in seen else [])
    words = texts(plots.stream_bars(PROFILE))
    assert f"{told}, " in words if told else "not run" in words


def test_mask_histograms_are_shares_that_sum_to_one(recorded):
    figure = plots.mask_histograms(PROFILE)
    steps = [patch for ax in figure.axes for patch in ax.patches if hasattr(patch, "get_data")]
    assert len(steps) >= 2
    for patch in steps:
        assert patch.get_data().values.sum() == pytest.approx(1)


def test_best_is_the_first_of_equal_epochs():
    frame = pd.DataFrame({"epoch": [1, 2, 3, 4], "held_robust_acc": [0.1, 0.5, 0.5, 0.4]})
    figure = Figure()
    ax = figure.add_subplot()
    curves.draw_accuracy(ax, frame)
    marked = {line.get_marker(): float(line.get_xdata()[0]) for line in ax.get_lines() if len(line.get_xdata()) == 1}
    assert marked == {"o": 4.0, "*": 2.0}


def test_a_run_without_held_out_images_has_no_best():
    frame = pd.DataFrame({"epoch": [1, 2], "train_cls": [2.0, 1.0], "held_robust_acc": [np.nan, np.nan]})
    ax = Figure().add_subplot()
    curves.draw_accuracy(ax, frame)
    assert not ax.get_lines()


def test_a_half_finished_training_is_drawn(root):
    from synthetic_records import write_history

    run = experiments.main_pair(PROFILE)[0]
    store.save_config(run)
    write_history(run, epochs=1)
    assert len(curves.history(run)) == 1
    plots.training_curves(PROFILE)


def test_attention_is_stretched_from_zero_to_one_and_keeps_its_corners():
    large = maps.attention(np.array([[0.0, 1.0], [2.0, 3.0]]), (8, 8))
    assert large.shape == (8, 8)
    assert (large[0, 0], large[-1, -1]) == (0.0, 1.0)
    assert large[0, -1] == pytest.approx(1 / 3)
    assert (np.diff(large, axis=0) >= 0).all() and (np.diff(large, axis=1) >= 0).all()


def test_a_constant_map_is_black_not_an_error():
    assert not maps.attention(np.full((4, 4), 0.7), (8, 8)).any()


def test_an_overlay_is_the_image_in_grey_under_its_map():
    grey = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    shown = maps.overlay(np.stack([grey] * 3), np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert shown.shape == (maps.SMOOTH, maps.SMOOTH, 3) and shown.dtype == np.uint8
    low, high = np.array([0.001462, 0.000466, 0.013866]), np.array([0.988362, 0.998364, 0.644924])  # inferno's ends
    for corner, value, heat in ((shown[0, 0], 0, low), (shown[0, -1], 255, low), (shown[-1, 0], 255, high)):
        assert np.abs(corner - (0.28 * value + 0.72 * 255 * heat)).max() <= 0.5
    assert maps.overlay(np.zeros((3, 32, 32), np.uint8), np.ones((4, 4))).shape == (32, 32, 3)  # large ones as they are


def test_maps_show_right_and_wrong_answers(recorded):
    shown = texts(plots.attention_maps(PROFILE))
    assert "right: 0" in shown and "wrong: 2" in shown


def test_feature_space_names_every_class(recorded):
    figure = plots.feature_space(PROFILE)
    for ax in figure.axes:
        assert {t.get_text() for t in ax.texts} == {str(i) for i in range(10)}


def test_a_profile_that_varies_nothing_has_words_in_place_of_sweeps(recorded):
    figure = plots.sweeps("headline40")
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["not varied\nin this profile"] * 6
    assert not any(ax.lines or ax.collections for ax in figure.axes) and not figure.legends


def test_sweeps_draw_every_setting_of_the_plan(recorded):
    figure = plots.sweeps(PROFILE)
    ticks = [[t.get_text() for t in ax.get_xticklabels()] for ax in figure.axes]
    taus = sorted(row.value for row in readings.rows(PROFILE, "settings") if row.axis == "tau")
    assert ticks[0] == [f"{tau:g}" for tau in taus]
    assert len(ticks[5]) == len(readings.rows(PROFILE, "placement"))
