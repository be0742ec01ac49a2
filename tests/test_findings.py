"""Sentences say what the numbers say, with either sign."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from fsr import experiments, files, store, tables
from fsr.config import run_id
from fsr.files import save_json
from fsr.reference import epoch_log
from fsr.report import answer, findings, pages, sentences

LOWER, HIGHER, OPEN = (-0.03, -0.04, -0.02), (0.03, 0.02, 0.04), (0.01, -0.01, 0.03)
STREAM = {"attack": "pgd20", "checkpoint": "last", "n": 5000, "correct": 1}
CASES1 = [(LOWER, 1, "a loss in one seed. {}, −3.0 points [−4.0, −2.0]")]
CASES1 += [(HIGHER, 2, "a gain in two seeds. {}, +3.0 points [+2.0, +4.0]")]
CASES1 += [(OPEN, 5, "undecided in five seeds. {}, +1.0 points [−1.0, +3.0]")]
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
    usual = {"low": value - 0.01, "high": value + 0.01, "n": 500, "seeds": 1, "seeds_low": np.nan, "seeds_high": np.nan}
    return keys | usual | {"row": row, "metric": metric, "value": value} | fields


def gain(row: str, cell: tuple, base: str = "AT", metric: str = "autoattack", **fields) -> dict:
    """A gain over another row: value, low, high."""
    return ours(f"{row}: gain over {base}", cell[0], metric, low=cell[1], high=cell[2], kind="gain", **fields)


@pytest.mark.parametrize("cell, seeds, sentence", CASES1)
def test_the_answer_has_sign_interval_images_and_seeds(frames, cell, seeds, sentence):
    frames["T1"] = [gain("AT + FSR", cell, seeds=seeds)]
    frames["T1"] += [ours("AT", 0.5, seeds=seeds), ours("AT + FSR", 0.5 + cell[0], seeds=seeds)]
    sentence = sentence.format(f"AutoAttack accuracy is 50.0 % for AT and {50 + 100 * cell[0]:.1f} % for AT + FSR")
    spread = "" if seeds > 2 else ", spread over seeds not counted"
    assert answer("demo") == f"digits, ResNet-10 (width 8), 15 epochs: {sentence} (last weights, 500 images{spread})."
    frames["T1"][1]["seeds"] += 1  # accuracies of other seeds than the gain's are not set beside it
    assert "AutoAttack accuracy of AT + FSR minus that of AT is" in answer("demo")
    frames["T1"][0] |= {"seeds_low": -0.07, "seeds_high": 0.01}  # decides where there is one
    assert ": undecided in " in answer("demo") and "[−7.0, +1.0]" in answer("demo")


def test_without_autoattack_ensemble_answers_and_without_both_nothing_does(frames):
    frames["T1"] = [gain("AT + FSR", HIGHER, metric="ensemble"), gain("AT + FSR", LOWER, checkpoint="ema")]
    assert "a gain in one seed. Ensemble accuracy of AT + FSR minus" in answer("demo")
    frames["T1"] += [gain("AT + FSR", LOWER)]
    assert "a loss in one seed. AutoAttack accuracy of AT + FSR minus" in answer("demo")
    frames["T1"][0]["seeds"] = 2  # more than AutoAttack was run on
    assert "a gain in two seeds. Ensemble accuracy of AT + FSR minus" in answer("demo")
    frames["T1"] = [gain("AT + FSR", (np.nan,) * 3)]
    assert answer("demo").endswith("not run yet.") and findings("demo", "T1") == []
    assert findings("demo", "T1")._repr_markdown_() == "- Not run yet."


def bypassed(cw: tuple) -> list[dict]:
    """T4 with the mask set to one at test."""
    row = "m = 1 at test (FSR bypassed)"
    return [gain(row, LOWER, "AT + FSR", "pgd20"), gain(row, cw, "AT + FSR", "cw")]


def streams(way: int, seeds: int) -> list[dict]:
    """T7 where f+ and the recalibrated f- have ten points more (or less) than f-, a little more with each seed."""
    rows = []
    for stream, probe in product(("robust", "recalibrated", "nonrobust"), ("aux", "knn")):
        keys = STREAM | {"stream": stream, "probe": probe}
        shift = 0 if stream == "nonrobust" else 0.1 * way
        rows += [keys | {"seed": seed, "accuracy": 0.4 + shift * (1 + seed / 9)} for seed in range(seeds)]
    return [*rows, keys | {"accuracy": 1.0, "correct": None}]  # the last as somebody typed it from the paper


def audited(*worst: int) -> list[dict]:
    """T9: of 100 images 80 right under the authors' protocol, without FSR and with it."""
    counts = {(row, "worst case"): right for row, right in zip(("AT", "AT + FSR"), worst)}
    counts |= {(row, "authors' protocol"): 80 for row in ("AT", "AT + FSR")}
    return [{"row": row, "item": item, "correct": right, "n": 100} for (row, item), right in counts.items()]


PAIRS = [ours("AT", 0.5), ours("AT + FSR", 0.47), *(gain("AT + FSR", LOWER, metric=m) for m in ("autoattack", "clean"))]
PAIRS += [gain("TRADES + FSR", HIGHER, "TRADES", "ensemble"), gain("AT + FSR", LOWER, metric="ensemble")]
PAIRS += [gain("MART + FSR", OPEN, "MART", "ensemble", network="M")]
PEERS = [gain("AT + FD", HIGHER), gain("AT + CAS", HIGHER), gain("AT + FSR", OPEN)]
PEERS += [ours("AT + CAS", 0.5, flags="square")]
SWEEP = [ours(f"tau = {tau}", value, "ensemble", axis="tau") for tau, value in ((0.1, 0.5), (0.5, 0.6), (1.0, 0.4))]
COST = [{"network": "N", "fsr": fsr, "params": 100 + 5 * fsr, "macs": 10 + fsr} for fsr in (False, True)]
SAID: list[tuple] = [("T1", PAIRS, "Accuracy without attack of AT + FSR minus that of AT is −3.0 points [−4.0, −2.0].")]
ALSO = "MART + FSR (M) +1.0 [−1.0, +3.0]."
SAID += [("T1", PAIRS, f"without, in points (one seed): TRADES + FSR +3.0 [+2.0, +4.0]; {ALSO}")]
OVER = "AutoAttack accuracy minus AT's, in points (one seed): AT + FD"
SAID += [("T2", PEERS, f"{OVER} +3.0 [+2.0, +4.0]; AT + FSR +1.0 [−1.0, +3.0].")]
SAID += [("T2", PEERS, "AutoAttack is in doubt for AT + CAS (left out here).")]
REMOVED = "changes PGD-20 accuracy by −3.0 points [−4.0, −2.0], C&W accuracy by"
SAID += [("T4", bypassed(HIGHER), f"{REMOVED} +3.0 points [+2.0, +4.0].")]
SAID += [("T3", [gain("AT + FSR", OPEN, metric="square")], "AT + FSR minus AT, in points (one seed): Square +1.0 [")]
RANGE = "Over {} Ensemble accuracy lies between 40.0 % (tau = 1.0) and 60.0 % (tau = 0.5) (one seed, not judged)."
SAID += [("T5", SWEEP, RANGE.format("settings")), ("T5", SWEEP[:1], None)]
CORRECT = "{} right on {} % of images from robust features, 40.0 % from non-robust"
SAID += [("T7", streams(way, 1), CORRECT.format("is", share)) for way, share in ((1, "50.0"), (-1, "30.0"))]
SAID += [("T7", streams(-1, 1), "seed). Nothing was separated."), ("T7", streams(1, 1), "seed). Nearest")]
NEAR = CORRECT.format("are", "50.0") + ", 50.0 % from recalibrated ones (PGD-20, one seed)."
SAID += [("T7", streams(1, 1), NEAR), ("T7", streams(0, 1), "+0.00 points (undecided).")]
CUES = "Recalibration changes the accuracy of nearest neighbours on non-robust features by"
SAID += [("T7", streams(1, 3), f"{CUES} +11.11 ["), ("T7", streams(-1, 3), f"{CUES} −11.11 [")]
SAID += [("T8", COST, "N: FSR adds 5.0 % parameters and 10.0 % multiply-adds."), ("T8", COST[:1], None)]
WORST = "worst case: AT 80.0 % and 80.0 %; AT + FSR 80.0 % and 72.0 % (100 images, one seed)."
SAID += [("T9", audited(80, 72), WORST)]


@pytest.mark.parametrize("name, rows, sentence", SAID)
def test_a_sentence_follows_its_numbers(frames, name, rows, sentence):
    frames[name] = rows
    said = " ".join(findings("demo", name))
    silent = not said or (sentence is None and "Over" not in said)
    assert sentence in said if sentence else silent


def history(epochs: int, speed: float = 1.0) -> list[dict]:
    """Training accuracy under attack rises by speed per epoch; the rate falls after three quarters."""
    rows = [(epoch, 0.1 if epoch <= 0.75 * epochs else 0.01, 0.01 * speed * epoch) for epoch in range(1, epochs + 1)]
    names = ("epoch", "lr", "train_adv_acc", "ema_held_robust_acc", "seconds")
    return [dict(zip(names, (*row, row[-1], 1.0))) for row in rows]


def recorded(run, rows: list[dict]) -> None:
    """A finished training with this history."""
    digest = files.sha256(store.save_history(run, rows))
    save_json(files.run_dir(run_id(run)) / "env.json", {"run_id": run_id(run), "history_sha256": digest})


def test_training_accuracy_is_that_before_the_rate_falls_over_all_seeds():
    """One point an epoch with AT, half a point and two with FSR, to epoch 11 of 15."""
    rows = {row.name: row.runs for row in reversed(experiments.ROWS["demo"]["whitebox"])}
    assert findings("demo", "F5") == []
    for at, both, speed in zip(rows["AT"], rows["AT + FSR"], (0.5, 2.0)):
        recorded(at, history(15)), recorded(both, history(15, speed))
    text = "training accuracy under attack is 11.0 % for AT and 13.8 % for AT + FSR (two seeds)."
    assert findings("demo", "F5") == [f"At epoch 11, the last before the learning rate falls, {text}"]


def test_the_study_lists_gains_by_weights_over_at_stopped_early_and_over_controls(frames, monkeypatch):
    frames["T11"] = [ours("AT", value, "ensemble", checkpoint=name) for name, value in (("best", 0.3), ("last", 0.2))]
    fall, kinds = "AT overfits: in Ensemble 30.0 % with best weights, 20.0 % with last.", {"best": LOWER, "ema": OPEN}
    assert sentences.study("overfit") == [fall] and sentences.in_short("overfit") == ""  # without records

    def made(runs, baseline, after, before):
        """Of two seeds; with AT stopped early undecided; over itself without L_sep of three, whose interval decides."""
        found = kinds.get(after.checkpoint, OPEN if before.checkpoint == "best" else HIGHER)
        more = {"seeds": 3, "seeds_low": -0.01, "seeds_high": 0.07} if baseline[0].fsr and len(runs) > 2 else {}
        return {"value": found[0], "low": found[1], "high": found[2], "seeds": min(2, len(runs)), "n": 500} | more

    monkeypatch.setattr(sentences.outcomes, "gain", made)
    first, listed, clean, hard, over = sentences.study("overfit")
    high, low, open_one = "+3.0 [+2.0, +4.0]", "−3.0 [−4.0, −2.0]", "+1.0 [−1.0, +3.0]"
    assert first == fall and "no attack (500 images)" in clean and "early" not in clean and "AutoAttack" in hard
    assert f"(500 images), in points (two seeds): last weights {high}; best weights {low}; EMA weights" in listed
    assert listed.endswith(f"EMA weights {open_one}; last weights against AT stopped early {open_one}.")
    assert over.startswith(f"Gain of AT + FSR in Ensemble, last weights, in points: over AT {high} (two seeds); over ")
    assert "; over recalibration without L_sep +3.0 [−1.0, +7.0] (three seeds); over same-capacity residual" in over
    frames["T10"] = [{"id": "C22", "claim": "AT stopped early is as robust", "verdict": "supported"}]
    short = "a gain (last weights); a loss (best weights); undecided (EMA weights)"
    short += ". AT stopped early is as robust: supported."
    assert sentences.in_short("overfit") == f"Where AT overfits (1,000 training images), in Ensemble: {short}"
    assert sentences.in_short("demo") == ""


def test_a_table_that_was_mostly_not_run_is_left_out_of_the_report(frames, monkeypatch):
    monkeypatch.setattr(pages.say, "findings", lambda *_: ["something"])
    monkeypatch.setattr(tables, "show", lambda frame: frame)
    monkeypatch.setattr(tables, "notes", lambda *_: [])
    frames["T2"] = [ours("AT", 0.5), ours("AT + FD", np.nan), ours("AT + CAS", np.nan)]
    assert pages._part("demo", "T2") is None
    frames["T2"][1]["value"] = 0.5
    assert pages._part("demo", "T2")["said"] == ["something"]
    shares = {"authors' protocol": None, "binarization test, cw": 0.5, "binarization test, pgd20": 1.0}
    frames["T9"] = [{"row": "AT", "item": item, "value": share} for item, share in shares.items()]
    shown = pages._part("demo", "T9")["html"]
    assert "protocol" in shown and "test, cw" in shown and "pgd20" not in shown  # what finds all is left to the csv


def test_a_full_size_history_is_compared_with_the_authors_log():
    log, rows = epoch_log(), history(40)
    for row, (_, theirs) in zip(rows, log.iterrows()):
        row |= theirs[["train_cls", "train_rec", "train_adv_acc"]].to_dict() | {"train_sep": theirs["train_sep"] + 0.5}
    for run in experiments.main_pair("headline40"):
        recorded(run, rows)
    distance = findings("headline40", "F5")[-1]
    assert distance.startswith("Our FSR losses of epochs 5 to 30") and "on average within 0.500 of" in distance
