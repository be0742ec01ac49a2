"""What is missing of a plan costs on one device, and on several: closed-form counts at a measured speed."""

from fsr.config import DATASETS, Evaluation, Run
from fsr.experiments.cost import BACKWARD, estimate, forward_macs, reference_speed

STEP = 1 + BACKWARD  # passes of one gradient step
# Passes per image of attacks at their own settings. Half the images are taken to withstand all that only goes on with
# survivors: AutoAttack's 100 steps of APGD-CE, 9 x 100 of APGD-T and of FAB-T and 5,000 queries; Square; N-Attack.
PASSES = {
    "clean": 1, "random-noise": 1, "fgsm": STEP, "pgd10": 10 * STEP, "pgd100": 100 * STEP, "cw": 30 * STEP,
    "square": 2500, "nattack": 10_000, "autoattack": (1900 * STEP + 5000) // 2, "autoattack-rand": 2000 * STEP,
    "autoattack-ci": (95 * STEP + 50) // 2, "apgd-ce": 100 * STEP, "apgd-dlr": 100 * STEP,
    "pgd-mt": 450 * STEP // 2, "pgd100-restarts": 1000 * STEP // 2,
}  # fmt: skip


def evaluation_seconds(run: Run, evaluation: Evaluation, speed: float | None = None) -> float:
    """Seconds of one evaluation; speed in operations per second, default the reference's (see `cost.estimate`)."""
    known = DATASETS[run.dataset].test if run.dataset in DATASETS else 10_000
    images = evaluation.images or run.test_size or known
    passes = PASSES.get(evaluation.attack, 20 * STEP) if evaluation.steps is None else evaluation.steps * STEP
    return 2.0 * forward_macs(run) * passes * images / (speed or reference_speed())


def seconds_on(devices: int, chains: list[tuple[float, list[float]]]) -> float:
    """Seconds until all is done on so many devices: the work in equal shares, but no less than the longest chain.

    chains: for every run its training and the evaluations that wait for it, which run side by side.
    """
    whole = sum(training + sum(rest) for training, rest in chains)
    return max([whole / devices, *(training + max(rest, default=0.0) for training, rest in chains)])


def chain(run: Run, evaluations: tuple[Evaluation, ...], *, train: bool, speed: float | None = None):
    """(seconds of the training, 0 when there is none to do; seconds of each evaluation)."""
    training = estimate(run, speed) if train else 0.0
    return training, [evaluation_seconds(run, evaluation, speed) for evaluation in evaluations]
