"""What figures draw is what the records say."""

import matplotlib.pyplot as plt
import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from synthetic_records import write_history

from fsr import experiments, plots, store, tables
from fsr.files import MissingRecord
from fsr.plots import curves, features, gains, inside, records, style
from fsr.tables import outcomes

PROFILE = "ci"
PLAIN, BOTH = experiments.main_pair(PROFILE)


def texts(figure: Figure) -> str:
    """All words of a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def drawn(ax, axis: str = "y") -> list[float]:
    """The places of the points in a panel."""
    lines = [line for line in ax.get_lines() if line.get_marker() == "o"]
    return [float(v) for line in lines for v in (line.get_ydata() if axis == "y" else line.get_xdata())]


@pytest.mark.parametrize("profile", ["ci", "overfit"])
def test_a_figure_without_records_raises(root, profile):
    for name in set(plots.FIGURES) - {"F9"}:
        with pytest.raises(MissingRecord, match=f"run-all --profile {profile}"):
            plots.FIGURES[name](profile)
    assert "training only" in texts(plots.FIGURES["F9"](profile))  # drawn from no record


@pytest.mark.parametrize("name", [name for name in plots.FIGURES if name != "F10"])
def test_a_figure_names_its_setting_and_leaves_matplotlib_alone(recorded, name):
    before, opened = dict(plt.rcParams), plt.get_fignums()
    figure = plots.FIGURES[name](PROFILE)
    assert dict(plt.rcParams) == before and plt.get_fignums() == opened
    assert all(len(legend.get_texts()) > 1 for legend in figure.legends)
    note = figure.get_supxlabel()
    assert name == "F9" or ("digits" in note and "2 epochs" in note)
    assert name in ("F5", "F9") or "weights" in note


def test_gains_are_those_of_the_table_in_the_method_s_colour(recorded):
    cells = tables.table(PROFILE, "T1")
    cells = cells[(cells["kind"] == "gain") & (cells["checkpoint"] == "last") & cells["value"].notna()]
    figure = plots.FIGURES["F7"](PROFILE)
    assert sorted(drawn(figure.axes[0], "x")) == pytest.approx(sorted(100 * cells["value"]))
    for line in figure.axes[0].get_lines():
        for method in ("AT + FSR", "TRADES + FSR", "MART + FSR"):
            values = 100 * cells.loc[cells["row"].str.startswith(f"{method}:"), "value"]
            if len(line.get_xdata()) == len(values) and np.allclose(line.get_xdata(), values):
                assert same_color(line.get_color(), style.METHODS[method])
    assert "AT + FSR − AT" in texts(figure) and "PGD-20" in texts(figure)


def test_sweeps_are_differences_to_the_default(recorded):
    figure = plots.FIGURES["F4"](PROFILE)
    panels = {ax.get_title("left"): ax for ax in figure.axes}
    assert set(panels) == {gains.AXES["tau"], gains.AXES["place"]}  # what ci varies; the others are not drawn
    ticks = [tick.get_text() for tick in panels[gains.AXES["tau"]].get_xticklabels()]
    assert ticks == ["0.1\n(default)", "1"]
    rows = [row for row in experiments.ROWS[PROFILE]["settings"] if row.axis == "tau"]
    pgd = experiments.columns(PROFILE, "settings")["pgd20"]
    expected = outcomes.gain(rows[1].runs, (BOTH,), pgd)["value"]
    assert 100 * expected in [pytest.approx(value) for value in drawn(panels[gains.AXES["tau"]])]
    with pytest.raises(MissingRecord, match="varied"):
        plots.FIGURES["F4"]("headline40")


def test_attack_strength_rises_from_the_clean_accuracy_and_shows_the_paired_difference(recorded):
    figure = plots.FIGURES["F6"](PROFILE)
    curve = gains.strength(PROFILE).query("method == 'AT' and axis == 'eps'")
    clean = next(e for e in experiments.evaluations(PROFILE, "strength", PLAIN) if e.attack == "clean")
    assert curve[["x", "value"]].iloc[0].tolist() == [0, store.load_evaluation(PLAIN, clean).accuracy]
    assert curve["x"].is_monotonic_increasing
    top, below = figure.axes[0], figure.axes[2]
    assert drawn(top)[: len(curve)] == pytest.approx(curve["value"].tolist())
    assert drawn(below)[0] == pytest.approx(100 * outcomes.gain((BOTH,), (PLAIN,), clean)["value"])


def test_clean_accuracy_alone_is_no_curve(root):
    clean = next(e for e in experiments.evaluations(PROFILE, "strength", PLAIN) if e.attack == "clean")
    store.save_evaluation(PLAIN, clean, range(4), [True] * 4)
    with pytest.raises(MissingRecord):
        plots.FIGURES["F6"](PROFILE)


def test_best_is_the_first_of_equal_epochs():
    values = [0.1, 0.5, 0.5, 0.4]
    frame = pd.DataFrame({"epoch": [1, 2, 3, 4], "held_robust_acc": values, "ema_held_robust_acc": values})
    ax = Figure().add_subplot()
    curves._marks(ax, frame.assign(method="AT", seed=0))
    marked = {line.get_marker(): (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.get_lines()}
    assert marked == {"o": (4, 0.4), "*": (2, 0.5), "D": (4, 0.4)}


def test_trades_is_shown_under_pgd_and_not_under_its_own_attack(recorded):
    figure = plots.FIGURES["F5"](PROFILE)
    rows = [figure.axes[i : i + 3] for i in range(0, len(figure.axes), 3)]
    held = next(axes[2] for axes in rows if axes[0].get_title("left").startswith("TRADES"))
    run = next(row.runs[0] for row in experiments.ROWS[PROFILE]["whitebox"] if row.name == "TRADES")
    own = store.history(run)["held_robust_acc"]
    lines = [line.get_ydata() for line in held.get_lines() if len(line.get_ydata()) == len(own)]
    assert not any(np.allclose(line, own) for line in lines)
    cells = records.frame(PROFILE, "T1", kind="ours", metric="pgd20", row="TRADES", checkpoint="last")
    assert cells["value"].item() in drawn(held)


def test_the_authors_log_stands_beside_the_authors_setting_only():
    log = curves.official(experiments.main_pair("headline40")[0])
    assert len(log) == 40 and 0.3 < log["train_adv_acc"].iloc[-1] < 0.6
    for profile in ("mini", "demo"):
        assert curves.official(experiments.main_pair(profile)[0]).empty


def test_a_half_finished_training_is_drawn(root):
    store.save_config(PLAIN)
    write_history(PLAIN, epochs=1)
    assert len(plots.FIGURES["F5"](PROFILE).axes) == 3


def test_stream_bars_are_means_over_seeds_at_the_images_of_one(recorded):
    cells, checkpoint = inside.stream_shares(PROFILE)
    assert checkpoint == "last"
    frame = tables.table(PROFILE, "T7").query("checkpoint == 'last' and attack == 'pgd20'")
    means = frame.groupby(["stream", "probe"])["accuracy"].mean()
    assert cells["value"].to_dict() == pytest.approx(means.to_dict())
    assert cells["n"].max() == frame["n"].max()  # three seeds of 200 images are not 600 independent ones
    ax = plots.FIGURES["F3"](PROFILE).axes[0]
    assert sorted(bar.get_height() for bar in ax.patches) == pytest.approx(sorted(means))
    wide = frame[frame["probe"] == "knn"].pivot(index="seed", columns="stream", values="accuracy")
    step = 100 * (wide["recalibrated"] - wide["nonrobust"]).mean()
    assert f"{step:+.2f} points".replace("-", "−") in ax.get_title("left")


def test_masks_are_shares_that_sum_to_one_and_no_panel_is_empty(recorded):
    figure = plots.FIGURES["F2"](PROFILE)
    assert len(figure.axes) == 2
    for ax in figure.axes:
        assert [patch.get_data().values.sum() for patch in ax.patches] == pytest.approx([1, 1])
        assert "saturated" in ax.get_title("left")


def test_maps_show_images_that_the_attack_fools(recorded):
    labels = np.arange(4)
    arrays = {"labels": labels, "pred_clean": np.array([0, 1, 0, 3]), "pred_adv": np.array([0, 2, 1, 0])}
    assert inside.fooled_first(arrays).tolist() == [1, 3]
    assert inside.fooled_first(arrays | {"pred_adv": labels}).tolist() == [0, 1, 2, 3]
    shown = texts(plots.FIGURES["F1"](PROFILE))
    assert "right: 1" in shown and "wrong: 2" in shown and "right: 0" not in shown


def test_features_are_turned_onto_each_other_and_named_where_they_lie_densest(recorded):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 2))
    turned = points[:, ::-1] * [1, -1] + 7  # mirrored, turned and moved
    assert features.aligned(turned, points) == pytest.approx(points)
    cluster = np.concatenate([rng.normal(5, 0.01, size=(40, 2)), rng.normal(0, 3, size=(20, 2))])
    assert features.densest(cluster, [], np.ones(2)) == pytest.approx([5, 5], abs=0.05)
    assert np.abs(features.densest(cluster, [np.array([5, 5])], np.ones(2)) - 5).max() >= 1.0
    figure = plots.FIGURES["F8"](PROFILE)
    for ax, stream in zip(figure.axes, ("nonrobust", "recalibrated")):
        assert {t.get_text() for t in ax.texts} == {str(i) for i in range(10)}
        cells = records.frame(PROFILE, "T7", attack="pgd20", checkpoint="ema", probe="knn", stream=stream, seed=0)
        assert f"{100 * cells['accuracy'].item():.1f} % by nearest" in ax.get_title("left")


def test_training_length_draws_each_length_and_checkpoint(recorded, monkeypatch):
    row = next(row for row in experiments.ROWS[PROFILE]["whitebox"] if row.name == "AT + FSR")
    frame = pd.DataFrame(
        {"network": "ResNet-18", "epochs": [5, 10, 10], "checkpoint": ["last", "last", "ema"], "own": True, "seeds": 1,
         "value": [-0.01, -0.02, 0.01], "low": -0.03, "high": 0.02}
    )  # fmt: skip
    assert gains._by_length(PROFILE)["epochs"].unique().tolist() == [row.runs[0].epochs]
    with pytest.raises(MissingRecord, match="several lengths"):  # one length is no curve
        plots.FIGURES["F10"](PROFILE)
    monkeypatch.setattr(gains, "_by_length", lambda profile: frame)
    figure = plots.FIGURES["F10"](PROFILE)
    assert [drawn(ax) for ax in figure.axes] == [[-1, -2], [], [1]]


def test_overfitting_draws_training_and_held_out_accuracy(recorded):
    figure = curves.overfitting(PROFILE)
    for ax, column in zip(figure.axes, ("train_adv_acc", "held_robust_acc")):
        expected = records.histories([row for row in experiments.ROWS[PROFILE]["whitebox"][0].runs])
        mean = expected.groupby("epoch")[column].mean()
        assert any(np.allclose(line.get_ydata(), mean) for line in ax.get_lines() if len(line.get_ydata()) == len(mean))
