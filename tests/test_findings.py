"""Sentences say what the numbers say, with either sign."""

import importlib

import numpy as np
import pandas as pd
import pytest

from fsr import experiments, store, tables
from fsr.files import UsageError
from fsr.reference import epoch_log
from fsr.report import answer, findings

room = importlib.import_module("fsr.report.findings")
LOWER, HIGHER, OPEN = (-0.03, -0.04, -0.02), (0.03, 0.02, 0.04), (0.01, -0.01, 0.03)
STREAM = {"attack": "none", "accuracy": 0.5, "checkpoint": "last", "seed": 0, "n": 9, "probe": "aux", "stream": "f"}
KEPT = "Ensemble: AT 50.0 %, FSR 40.0 %, without L_sep 45.0 %"
FRAMES: dict[str, list[dict]] = {}


@pytest.fixture(autouse=True)
def frames(monkeypatch, root):
    """Tables are what a test puts into FRAMES; there are no records."""
    FRAMES.clear()
    monkeypatch.setattr(tables, "table", lambda profile, name: pd.DataFrame(FRAMES[name]))
    return FRAMES


def ours(row: str, value: float, metric: str = "autoattack", **fields) -> dict:
    """An accuracy of the main network with last weights."""
    keys = {"dataset": "digits", "network": "N", "checkpoint": "last", "kind": "ours", "flags": None}
    known = {"low": value - 0.01, "high": value + 0.01, "n": 500, "seeds": 1, "seeds_low": np.nan, "seeds_high": np.nan}
    return keys | known | {"row": row, "metric": metric, "value": value} | fields


def gain(row: str, cell: tuple, base: str = "AT", metric: str = "autoattack", **fields) -> dict:
    """A gain over another row: value, low, high."""
    return ours(f"{row}: gain over {base}", cell[0], metric, low=cell[1], high=cell[2], kind="gain", **fields)


@pytest.mark.parametrize(
    "cell, seeds, told",
    [
        (LOWER, 1, "FSR lowers accuracy under AutoAttack, −3.0 points [−4.0, −2.0] (500 images, one seed)."),
        (HIGHER, 2, "FSR raises accuracy under AutoAttack, +3.0 points [+2.0, +4.0] (500 images, two seeds)."),
        (OPEN, 5, "FSR's effect under AutoAttack is undecided, +1.0 points [−1.0, +3.0] (500 images, five seeds)."),
    ],
)
def test_the_answer_has_sign_interval_images_and_seeds(frames, cell, seeds, told):
    frames["T1"] = [gain("AT + FSR", cell, seeds=seeds)]
    assert answer("demo") == f"digits, ResNet-10 (width 8), 15 epochs: {told}"


@pytest.mark.parametrize("seeds, told", [(2, "lowers"), (3, "undecided")])
def test_three_seeds_bring_the_interval_over_seeds(frames, seeds, told):
    frames["T1"] = [gain("AT + FSR", LOWER, seeds=seeds, seeds_low=-0.07, seeds_high=0.01)]
    assert told in answer("demo") and ("[−7.0, +1.0]" in answer("demo")) == (seeds == 3)


def test_without_autoattack_ensemble_answers_and_without_both_nothing_does(frames):
    frames["T1"] = [gain("AT + FSR", HIGHER, metric="ensemble"), gain("AT + FSR", LOWER, checkpoint="ema")]
    assert "raises accuracy under Ensemble" in answer("demo")
    frames["T1"] = [gain("AT + FSR", (np.nan,) * 3)]
    assert answer("demo").endswith("not run yet.") and findings("demo", "T1") == []
    assert findings("demo", "T1")._repr_markdown_() == "- Not run yet."


def test_other_pairs_are_counted_by_side(frames):
    frames["T1"] = [ours("AT", 0.5), ours("AT + FSR", 0.47), gain("AT + FSR", LOWER)]
    frames["T1"] += [gain("AT + FSR", LOWER, metric=metric) for metric in ("clean", "ensemble")]
    frames["T1"] += [gain(f"{m} + FSR", c, m, "ensemble") for m, c in (("TRADES", HIGHER), ("MART", OPEN))]
    said = findings("demo", "T1")
    assert said[1] == "AT keeps 50.0 % of the images, AT + FSR 47.0 %."
    assert said[-1] == "Of 2 other pairs FSR raises Ensemble in 1, lowers it in 0; 1 undecided."


def test_peers_that_autoattack_itself_doubts_are_not_ranked(frames):
    frames["T2"] = [gain("AT + FD", HIGHER), gain("AT + CAS", HIGHER), gain("AT + FSR", OPEN)]
    frames["T2"] += [ours("AT + CAS", 0.5, flags="square")]
    above, undecided, doubt = findings("demo", "T2")
    assert above == "Above AT (AutoAttack, one seed): AT + FD +3.0 [+2.0, +4.0]." and "AT + CAS" in doubt
    assert undecided.startswith("Undecided against AT")


@pytest.mark.parametrize(
    "full, without, seeds, told",
    [
        (LOWER, OPEN, 1, f"L_sep is what costs robustness ({KEPT}, a hypothesis of one seed)."),
        (LOWER, OPEN, 3, f"L_sep is what costs robustness ({KEPT})."),
        (HIGHER, OPEN, 3, f"The gain needs L_sep ({KEPT})."),
        (LOWER, LOWER, 3, None),
        (OPEN, LOWER, 3, None),
    ],
)
def test_the_part_of_the_separation_loss_follows_both_signs(frames, full, without, seeds, told):
    rows = (("AT", 0.5), ("AT + FSR", 0.4), ("recalibration without L_sep", 0.45))
    frames["T4"] = [ours(row, value, "ensemble") for row, value in rows]
    frames["T4"] += [gain("AT + FSR", full, metric="ensemble")]
    frames["T4"] += [gain("recalibration without L_sep", without, metric="ensemble", seeds=seeds)]
    assert findings("mini", "T4")[-1] == room.HYPOTHESIS  # first records, which are made again
    said = [s for s in findings("demo", "T4") if s.startswith(("L_sep", "The gain needs"))]
    assert said == ([told] if told else [])


@pytest.mark.parametrize("cw, differs", [(HIGHER, True), (OPEN, True), (LOWER, False)])
def test_bypassing_is_said_to_depend_on_the_attack_when_intervals_are_apart(frames, cw, differs):
    row = "m = 1 at test (FSR bypassed)"
    frames["T4"] = [gain(row, cell, "AT + FSR", metric) for metric, cell in (("pgd20", LOWER), ("cw", cw))]
    assert ("What FSR does at test depends on the attack." in findings("demo", "T4")) == differs


def test_a_sweep_is_described_by_its_ends(frames):
    frames["T5"] = [ours(f"tau = {tau}", value, "ensemble") for tau, value in ((0.1, 0.5), (0.5, 0.6), (1.0, 0.4))]
    told, about = findings("demo", "T5")
    assert told == "Ensemble lies between 40.0 % (tau = 1.0) and 60.0 % (tau = 0.5); the default has 50.0 %."
    assert about == "A sweep of one seed describes and decides nothing."
    frames["T5"] = frames["T5"][:1]
    assert findings("demo", "T5") == []


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("way, learnt, cues", [(1, "is learnt", "returns cues"), (-1, "is not learnt", "removes cues")])
def test_streams_are_read_with_either_sign(frames, way, learnt, cues, seeds):
    frames["T7"] = []
    for stream, probe in (("robust", "aux"), ("nonrobust", "aux"), ("recalibrated", "knn"), ("nonrobust", "knn")):
        keys = {"stream": stream, "probe": probe, "attack": "pgd20", "checkpoint": "last", "n": 5000}
        shift = 0 if stream == "nonrobust" else 0.1 * way
        frames["T7"] += [keys | {"seed": seed, "accuracy": 0.4 + shift * (1 + seed / 9)} for seed in range(seeds)]
    separation, step = findings("demo", "T7")
    assert learnt in separation and cues in step
    assert f"{way * (10.0 if seeds == 1 else 11.1):+.1f}".replace("-", "−") in step


@pytest.mark.parametrize(
    "lost, told",
    [((0, 3), "undecided"), ((0, 8), "more with FSR"), ((9, 0), "more without FSR"), ((0, 0), "undecided")],
)
def test_the_audits_losses_are_compared_by_an_exact_test(frames, lost, told):
    items = ("authors' protocol", "worst case")
    counts = zip(("AT", "AT + FSR"), ((80, 80 - lost[0]), (80, 80 - lost[1])))
    cells = [(row, *cell) for row, some in counts for cell in zip(items, some)]
    frames["T9"] = [{"row": row, "item": item, "correct": right, "n": 100} for row, item, right in cells]
    assert findings("demo", "T9")[-1].endswith(f"{lost[0]} images of AT, {lost[1]} of AT + FSR: {told}.")


def test_overhead_and_verdict_are_listed(frames):
    frames["T8"] = [{"network": "N", "fsr": fsr, "params": 100 + 5 * fsr, "macs": 10 + fsr} for fsr in (False, True)]
    assert findings("demo", "T8") == ["N: FSR adds +5.0 % parameters and +10.0 % multiply-adds."]
    frames |= {"T1": [gain("AT + FSR", LOWER)], "T4": [gain("AT + FSR", OPEN)], "T7": [STREAM]}
    frames["T10"] = [{"id": f"C{i}", "verdict": v} for i, v in enumerate(("undecided", "contradicted", "undecided"))]
    assert findings("demo", "T10")[1:] == ["Undecided: C0, C2.", "Contradicted: C1."]


def history(epochs: int, speed: float = 1.0) -> list[dict]:
    """Training accuracy under attack rises by speed per epoch; the rate falls after three quarters."""
    rows = [(epoch, 0.1 if epoch <= 0.75 * epochs else 0.01, 0.01 * speed * epoch) for epoch in range(1, epochs + 1)]
    names = ("epoch", "lr", "train_adv_acc", "ema_held_robust_acc", "seconds")
    return [dict(zip(names, (*row, row[-1], 1.0))) for row in rows]


@pytest.mark.parametrize(
    "speed, told",
    [(0.5, "FSR learns more slowly: its epochs 3, 7, 11 match AT's 1.5, 3.5, 5.5"), (2.0, "no more slowly")],
)
def test_training_speed_is_read_with_either_sign(speed, told):
    at, both = experiments.main_pair("demo")
    store.save_history(at, history(15))
    assert findings("demo", "F5") == []
    store.save_history(both, history(15, speed))
    said = findings("demo", "F5")
    assert told in said[0] and ("regulariser" in said[-1]) == (speed < 1)
    assert f"{(speed - 1) * 3:+.1f} at epoch 3".replace("-", "−") in said[1]


def test_a_full_size_history_is_compared_with_the_authors_log():
    at, both = experiments.main_pair("headline40")
    log, rows = epoch_log(), history(40)
    names = {"train_cls": "train_adv_loss", "train_sep": "train_sep_loss", "train_rec": "train_rec_loss"}
    for row, (_, theirs) in zip(rows, log.iterrows()):
        row |= {ours_: theirs[name] + 0.5 * (ours_ == "train_sep") for ours_, name in names.items()}
        row["train_adv_acc"] = theirs["train_adv_acc"] / 100
    store.save_history(at, rows)
    store.save_history(both, rows)
    distance, accuracy = findings("headline40", "F5")[-2:]
    told = "losses 0.000 (classification), 0.500 (separation), 0.000 (recalibration), epochs 5 to 30."
    assert distance.startswith("Training departs from the log") and distance.endswith(told)
    assert "is 0.0 points" in accuracy


def test_numbers_keep_their_sign_and_unknown_names_are_refused():
    assert [room.number(v, True) for v in (-0.0003, 0.0, -0.012, 0.0004)] == ["−0.03", "+0.0", "−1.2", "+0.04"]
    assert room.number(0.4457) == "44.6" and room.seeds([1, 3, 2]) == "one to three seeds"
    with pytest.raises(UsageError, match="no findings for 'T99'"):
        findings("demo", "T99")
    with pytest.raises(UsageError, match="unknown profile"):
        answer("nothing")
