"""What figures read from records: paired gains with the right sign, missing records as None."""

from dataclasses import replace

import numpy as np
import pytest

from fsr import experiments, store, tables
from fsr.config import Analysis, Evaluation
from fsr.files import UsageError
from fsr.plots import readings, words

PROFILE = "ci"


def _record(run, attack, correct, images=None, **changes):
    evaluation = Evaluation(attack=attack, images=images, **changes)
    store.save_evaluation(run, evaluation, np.arange(len(correct)), np.array(correct, dtype=bool))


def _pair():
    return next(row for row in readings.gain_rows(PROFILE) if row.name == "AT + FSR")


def test_gain_is_with_fsr_minus_without_paired_by_seed_and_image(root):
    row = _pair()
    for plain, both, flags in zip(row.plain, row.runs, ([1, 1, 1, 0], [1, 0, 1, 1]), strict=True):
        _record(plain, "pgd20", [1, 0, 1, 0])
        _record(both, "pgd20", flags)
    gain = readings.gain(PROFILE, row, "pgd20")
    assert gain.mean == pytest.approx(0.25)
    assert gain.seeds == pytest.approx((0.25, 0.25))
    assert gain.images == 4
    assert gain.low <= gain.mean <= gain.high


def test_a_worse_network_has_a_negative_gain(root):
    row = _pair()
    _record(row.plain[0], "fgsm", [1] * 10)
    _record(row.runs[0], "fgsm", [0] * 10)
    gain = readings.gain(PROFILE, row, "fgsm")
    assert (gain.mean, gain.low, gain.high) == (-1.0, -1.0, -1.0)


def test_half_a_pair_is_not_run(root):
    row = _pair()
    _record(row.runs[0], "pgd20", [1, 1])
    assert readings.gain(PROFILE, row, "pgd20") is None


def test_outcomes_on_other_images_are_not_compared(root):
    row = _pair()
    store.save_evaluation(row.plain[0], Evaluation(attack="pgd20"), np.array([0, 1, 2]), np.array([True, False, False]))
    store.save_evaluation(row.runs[0], Evaluation(attack="pgd20"), np.array([2, 1, 9]), np.array([True, False, True]))
    gain = readings.gain(PROFILE, row, "pgd20")
    assert (gain.images, gain.mean) == (2, 0.5)


def test_gain_is_the_number_of_the_table(recorded):
    numbers = tables.whitebox(PROFILE).numbers
    for row in readings.gain_rows(PROFILE):
        for attack in readings.columns(PROFILE):
            mine = readings.gain(PROFILE, row, attack)
            chosen = (numbers["kind"] == "gain") & (numbers["metric"] == attack) & (numbers["checkpoint"] == "last")
            theirs = numbers[chosen & numbers["row"].str.startswith(row.name + ":")]
            if mine is None:
                assert theirs["value"].isna().all()
                continue
            found = theirs[["value", "low", "high"]].iloc[0].tolist()
            assert found == pytest.approx([mine.mean, mine.low, mine.high])


def test_an_analysis_that_does_not_apply_is_none(root):
    run = experiments.main_pair(PROFILE)[1]
    planned = next(a for a in experiments.analyses(PROFILE, "all", run) if a.kind == "maps")
    assert readings.analysis(PROFILE, run, "maps") is None
    store.save_analysis(run, planned, {"not_applicable": "no mask"})
    assert readings.analysis(PROFILE, run, "maps") is None


def test_an_analysis_is_found_by_kind_and_checkpoint(root):
    run = experiments.main_pair(PROFILE)[1]
    kinds = [a for a in experiments.analyses(PROFILE, "all", run) if a.kind == "streams"]
    for planned in kinds:
        store.save_analysis(run, planned, {"rows": [], "which": planned.checkpoint})
    assert {a.checkpoint for a in kinds} == {"last", "ema"}
    for checkpoint in ("last", "ema"):
        assert readings.analysis(PROFILE, run, "streams", checkpoint)[0]["which"] == checkpoint
    assert readings.analysis(PROFILE, run, "streams", "best") is None
    assert isinstance(kinds[0], Analysis)


def test_accuracy_has_its_interval_around_it(root):
    run = experiments.main_pair(PROFILE)[0]
    _record(run, "clean", [1] * 8 + [0] * 2)
    found = readings.accuracy(readings.outcome(PROFILE, run, "clean"))
    assert (found.value, found.n) == (0.8, 10)
    assert 0 < found.low < 0.8 < found.high < 1
    assert readings.accuracy(None) is None


def test_unknown_profiles_are_refused():
    with pytest.raises(UsageError, match="unknown profile"):
        readings.rows("no-such-profile", "whitebox")


def test_methods_are_written_out():
    run = experiments.main_pair(PROFILE)[1]
    assert words.method(run.label) == "AT + FSR"
    assert words.method(replace(run, module=None, method="trades").label) == "TRADES"
