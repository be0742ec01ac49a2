"""Outcomes of one cell: joined by image, and never of two networks or of two test sets."""

from dataclasses import replace

import numpy as np
import pytest

from fsr import store
from fsr.config import PROTOCOL, Evaluation, Run
from fsr.tables import outcomes

RUN, OTHER = Run(epochs=2), Run(epochs=2, seed=1)
CLEAN, ENSEMBLE = Evaluation(attack="clean"), Evaluation(attack="ensemble")


def record(attack: str, correct, run=RUN, **extra):
    store.save_evaluation(run, Evaluation(attack=attack), np.arange(len(correct)), np.array(correct), **extra)


@pytest.mark.parametrize("key", ["weights", "images_sha256"])
def test_no_ensemble_of_two_networks_or_two_test_sets(root, key):
    for attack in PROTOCOL:
        record(attack, [True, False], **{key: "another" if attack == "cw" else "one"})
        record(attack, [True, False], run=OTHER, images_sha256="one" if attack == "cw" else None)
    assert "ensemble" not in set(outcomes.metrics([RUN])["attack"]) and outcomes.outcome(RUN, ENSEMBLE) is None
    known = outcomes.outcome(OTHER, ENSEMBLE)  # some records name no images
    assert known.tolist() == [True, False] and known.name == "one"
    row = outcomes.metrics([OTHER]).set_index("attack").loc["ensemble"]
    assert (row["n"], row["correct"], row["accuracy"], row["eps"]) == (2, 1, 0.5, OTHER.eps)


def test_nothing_is_paired_between_two_test_sets(root):
    """The same places of two test sets are other images; some records name none."""
    for seed, images in enumerate(("one", "another", None)):
        record("clean", [True, False, seed == 0], run=replace(RUN, seed=seed), images_sha256=images)
    survived = outcomes.outcome(RUN, CLEAN)
    found = [outcomes.broken_only(replace(RUN, seed=seed), CLEAN, survived) for seed in (0, 1, 2)]
    assert found == [(0, 2, 3), (0, 0, 0), (1, 2, 3)]
    both = (RUN, OTHER)  # seeds on two test sets
    assert outcomes.accuracy(both, CLEAN)["seeds"] == outcomes.gain(both, both, CLEAN)["seeds"] == 0
