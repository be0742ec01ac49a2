"""The verdict's claims, each with its tolerance and test: C1 to C12 were written down before any run.

A rule that changed after the runs keeps its old text in `earlier`.
"""

from fsr.reference.claim import Claim
from fsr.reference.known import known_results
from fsr.reference.predictions import PREDICTIONS

PAPER = "arXiv 2303.13846 abstract"
FULL = ("headline", "paper")
WIDE = ("headline40", *FULL)


def _value(kind: str, metric: str) -> float:
    """A stated number, from the one file that may hold it."""
    frame = known_results()
    values = frame.loc[(frame["kind"] == kind) & (frame["metric"] == metric), "value"]
    return float(values.iloc[0])


_ABSTRACT = (
    Claim(
        id="C1",
        text="FSR improves the robustness of existing adversarial training",
        kind="paper",
        source=PAPER + " (words)",
        rule="gain",
        metric="autoattack",
        test="gain of AT + FSR over AT under AutoAttack (reported weights), paired by seed and image: the two-sided "
        "95 % interval over seeds and images lies above 0; below 0 contradicts; three seeds for a verdict",
        earlier="gain of AT + FSR over AT under AutoAttack (last weights), paired by seed: the two-sided 95 % t "
        "interval over at least three seeds lies above 0",
        profiles=("mini", *WIDE),
    ),
    Claim(
        id="C2",
        text="the gain reaches up to the stated points; the setting is not stated",
        kind="paper",
        source=PAPER,
        rule="largest_gain",
        stated=_value("paper", "max_robust_gain_points"),
        tolerance=1.0,
        test="largest gain of T1 over all data sets, backbones, methods and attacks (mean over at least three seeds, "
        "reported weights) at least the stated value minus the tolerance; every cell must have been run",
        earlier="largest gain of T1 over all data sets, backbones, methods and attacks (mean over at least three "
        "seeds, last weights) within the tolerance of the stated value; every cell must have been run",
        profiles=("paper",),
    ),
    Claim(
        id="C3",
        text="the computational overhead is small",
        kind="paper",
        source=PAPER + " (words; small is defined here)",
        rule="overhead",
        unit="percent",
        tolerance=10.0,
        test="on the main backbone, added MACs and added training time per epoch each at most the tolerance",
        profiles=WIDE,
        min_seeds=1,
    ),
    Claim(
        id="C4",
        text="recalibrating beats deactivating (FD, CAS, CIFS)",
        kind="paper",
        source=PAPER + " (words)",
        rule="deactivation",
        metric="autoattack",
        test="AT + FSR minus each peer under AutoAttack (reported weights), paired by seed and image: all three 95 % "
        "intervals over seeds and images lie above 0; one below 0 contradicts; three seeds for a verdict",
        earlier="AT + FSR minus each peer under AutoAttack (last weights), paired by seed: all three 95 % t intervals "
        "over at least three seeds lie above 0",
        profiles=("mini", "paper"),
    ),
    Claim(
        id="C5",
        text="recalibrated features regain discriminative cues",
        kind="paper",
        source=PAPER + " (words)",
        rule="cues",
        metric="knn",
        test="accuracy of the recalibrated stream minus the non-robust one under PGD-20 by k-nearest neighbours "
        "(the auxiliary head was trained to be wrong on the latter and proves nothing): "
        "the 95 % t interval over at least three seeds lies above 0",
        profiles=("mini", *WIDE),
    ),
)


def _rerun() -> list[Claim]:
    source = known_results().query("kind == 'rerun'")["source"].iloc[0]
    names = ("clean", "fgsm", "pgd20", "pgd100", "cw", "ensemble")
    claims = [
        Claim(
            id=f"C{6 + i}",
            text=f"AT + FSR on CIFAR-10 with ResNet-18, last weights: {name} accuracy",
            kind="rerun",
            source=source,
            rule="accuracy",
            metric=name,
            stated=_value("rerun", name),
            unit="percent",
            tolerance=1.5,
            checkpoint="last",
            test="two one-sided t tests over at least three seeds: the mean lies within the tolerance (level 0.05)",
        )
        for i, name in enumerate(names)
    ]
    seconds = Claim(
        id="C12",
        text="training time of AT + FSR per epoch, CIFAR-10 with ResNet-18",
        kind="rerun",
        source=source,
        rule="seconds",
        metric="seconds_per_epoch",
        stated=_value("rerun", "seconds_per_epoch"),
        unit="seconds",
        tolerance=3.4,
        test="not slower than stated plus the tolerance (10 %), on the same kind of device, also when another training "
        "shared it, which only slows; ours crafts in bf16",
        earlier="not slower than stated plus the tolerance (10 %), on the same kind of device; ours crafts in bf16",
        profiles=WIDE,
        min_seeds=1,
    )
    return [*claims, seconds]


# This project's own questions, for the tables that no claim of others speaks of. Written down when `demo`, `headline40`
# and most of `mini` had been run: what those say about them is no test that was fixed before.
OWN = "this project"
_OWN = (
    Claim(
        id="C13",
        text="T3: attacks without gradients break hardly an image of AT + FSR's that the white-box attacks leave",
        kind="own",
        source=OWN,
        rule="unseen",
        unit="percent",
        tolerance=2.0,
        test="of the images that survive Ensemble (seed 0, reported weights), N-Attack or Square, whichever breaks "
        "more, breaks at most the tolerance; on the 100 images of mini two in a hundred would be one or two",
        earlier="the same of the last weights",
        profiles=("mini", *WIDE),
        min_seeds=1,
    ),
    Claim(
        id="C14",
        text="T4: it is the mask that helps, and not more network or the auxiliary losses",
        kind="own",
        source=OWN,
        rule="controls",
        metric="autoattack",
        test="AT + FSR minus each trained control (residual without a mask, auxiliary heads only) under AutoAttack "
        "(reported weights), paired by seed and image: both 95 % intervals over seeds and images lie above 0",
        earlier="AT + FSR minus each trained control (residual without a mask, auxiliary heads only) under AutoAttack "
        "(last weights), paired by seed: both 95 % t intervals over at least three seeds lie above 0",
        profiles=("mini", "paper"),
    ),
    Claim(
        id="C15",
        text="T5: no other setting is better than the default, the authors'",
        kind="own",
        source=OWN,
        rule="settings",
        metric="ensemble",
        tolerance=1.0,
        test="largest lead of a setting over the default under Ensemble (last weights), paired by seed, at most the "
        "tolerance; at least three seeds of each: the plan trains one, which gives a number and no verdict",
        profiles=(),
        needs="three seeds of every row: a sweep of one seed is described, not judged",
    ),
    Claim(
        id="C16",
        text="T6: no other place is better than the default (the authors', but in ci and demo layer3)",
        kind="own",
        source=OWN,
        rule="placement",
        metric="ensemble",
        tolerance=1.0,
        test="as C15, over T6's places",
        profiles=(),
        needs="three seeds of every row: a sweep of one seed is described, not judged",
    ),
    Claim(
        id="C17",
        text="T9: the authors' protocol flatters AT + FSR no more than AT",
        kind="own",
        source=OWN,
        rule="audit",
        test="images that the protocol counts as robust and the audit's worst case does not (seed 0, last weights), "
        "AT + FSR minus AT in points: at most 0; more is the opposite by McNemar's exact test (0.05), else undecided; "
        "FSR is given more attacks, so passing says more than failing",
        profiles=(),
        needs="withdrawn until all audits are of one version",
        min_seeds=1,
    ),
)

_REPLICA = Claim(
    id="C26",
    text="our FSR is the authors' FSR: it trains as their code does",
    kind="own",
    source=OWN + ", formulated after the runs",
    rule="same_curves",
    unit="of a loss",
    tolerance=0.05,
    test="AT + FSR, seed 0, epochs 5 to 29 (one learning rate), beside a third party's log of the authors' code: mean "
    "absolute differences of the three losses at most the tolerance, of the training accuracy under attack at most one "
    "point; formulated after the runs",
    profiles=("headline40",),
    min_seeds=1,
)

CLAIMS: tuple[Claim, ...] = (*_ABSTRACT, *_rerun(), *_OWN, *PREDICTIONS, _REPLICA)
