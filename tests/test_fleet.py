"""What a plan costs on several devices."""

import pytest

from fsr.config import Evaluation, Run, replace
from fsr.experiments import SETS, evaluations
from fsr.experiments.cost import EPOCH_SECONDS_H200, estimate
from fsr.experiments.fleet import PASSES, chain, evaluation_seconds, seconds_on


def test_a_pgd_evaluation_costs_what_the_same_passes_cost_in_training():
    """PGD-10 training takes 11 steps an image; PGD-100 on as many images takes 100."""
    run = Run(epochs=1)
    many = replace(Evaluation(attack="pgd100"), images=50_000)
    assert evaluation_seconds(run, many) == pytest.approx(EPOCH_SECONDS_H200 * 100 / 11)
    assert evaluation_seconds(run, many, 2.0) == pytest.approx(evaluation_seconds(run, many, 1.0) / 2)


def test_steps_of_their_own_count_instead_of_the_attacks():
    run, usual = Run(), Evaluation(attack="pgd20", images=100)
    assert evaluation_seconds(run, replace(usual, steps=40)) == pytest.approx(2 * evaluation_seconds(run, usual))


def test_devices_share_the_work_but_a_chain_stays_whole():
    chains = [(6.0, [2.0, 1.0]), (3.0, []), (0.0, [4.0])]
    assert seconds_on(1, chains) == 16.0
    assert seconds_on(2, chains) == 8.0
    assert seconds_on(64, chains) == 8.0  # 6 + 2: an evaluation waits for its training
    assert seconds_on(3, []) == 0.0


def test_a_chain_without_training_has_only_evaluations():
    run, looks = Run(), (Evaluation(attack="clean"), Evaluation(attack="fgsm"))
    assert chain(run, looks, train=False)[0] == 0.0
    assert chain(run, looks, train=True)[0] == estimate(run)
    assert len(chain(run, looks, train=True)[1]) == 2


def test_every_attack_of_the_plans_has_its_passes():
    planned = {
        e.attack for profile in SETS for name in SETS[profile] for run in SETS[profile][name]
        for e in evaluations(profile, name, run)
    }  # fmt: skip
    twenty = {"pgd20", "pgd20-joint", "transfer", "di-fgsm", "ti-fgsm", "mi-fgsm"}  # the default: 20 steps
    assert planned <= PASSES.keys() | twenty
