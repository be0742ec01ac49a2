"""The profiles: what is trained, how large, and how much of the test set each kind of attack sees."""

from collections import namedtuple
from dataclasses import dataclass, replace
from typing import Any

from fsr.config import PEERS, Run, for_dataset
from fsr.files import choose

CONTROLS = ("same-capacity residual, no mask", "auxiliary heads only")  # is it the mask, or only more network?
VARIANTS: dict[str, dict] = {  # T4: row name -> the fields of FSRSpec that differ
    "separation only": {"kind": "separation", "lambda_rec": 0.0},
    "recalibration without L_sep": {"lambda_sep": 0.0},
    "recalibration without L_rec": {"lambda_rec": 0.0},
    "recalibration without either": {"lambda_sep": 0.0, "lambda_rec": 0.0},
    CONTROLS[0]: {"kind": "residual"},
    CONTROLS[1]: {"kind": "aux"},
}
INTERVENTIONS = {  # T4's controls that act at test time
    "mask_one": "m = 1 at test (FSR bypassed)",
    "no_recalibration": "R = 0 at test",
    "mask_random": "random mask at test",
    "mask_constant": "constant mask at test",
    "mask_shuffled": "shuffled mask at test",
}
SWEEPS: dict[str, tuple] = {  # T5: field of FSRSpec -> values beside its default
    "tau": (0.05, 0.5, 1.0),
    "lambda_sep": (0.5, 2.0),
    "lambda_rec": (0.5, 2.0),
    "mask": ("soft", "hard"),
    "granularity": ("channel", "spatial"),
}
METHODS = ("at", "trades", "mart")
# T1's methods, T2's peers, T4's variants and T5's values
Scope = namedtuple("Scope", "methods peers variants sweeps", defaults=(("at",), (), (), {}))
SCOPES = {
    "full": Scope(METHODS, tuple(PEERS), tuple(VARIANTS), SWEEPS),
    "smoke": Scope(METHODS, tuple(PEERS), ("separation only", CONTROLS[0]), {"tau": (1.0,)}),  # one of each kind
    "pair": Scope(),  # AT and AT + FSR alone
    "study": Scope(variants=("recalibration without L_sep", *CONTROLS)),  # T1, T4 and T11 alone
}
# test images, None for all: of AutoAttack, of attacks by queries (T3), of the sweep (F6), of streams and of the audit
Limits = namedtuple("Limits", "autoattack queries sweep streams audit", defaults=(None, 1000, None, None, 1000))
USUAL = Limits()
Place = tuple[str, ...]  # where modules are inserted


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A budget for the whole plan; what differs from it by one setting only (T5, T6) has seed 0."""

    name: str
    base: Run  # plain AT on the main backbone, seed 0
    place: Place = ()  # where FSR sits in it; () for the backbone's own
    peers_at: Place = ()
    placements: tuple[Place, ...] = (("layer1",), ("layer2",), ("layer3",), ("layer3", "layer4"))  # T6's other ones
    seeds: tuple[int, ...] = (0, 1, 2)  # of the pair {AT, AT + FSR}
    other_seeds: tuple[int, ...] = (0,)  # of every other row of T1, T2 and T4
    all_seeds: tuple[str, ...] = ()  # rows of T4 with as many seeds as the pair
    trainings: tuple[tuple[str, Any], ...] = ()  # (field of Run, value): a row of T5 against AT trained the same way
    others: tuple[Run, ...] = ()  # plain AT on further backbones
    others_at: Place = ()  # where FSR sits in these
    scope: str = "full"  # a key of SCOPES
    images: int | None = None  # test images of T1's columns; None: all
    limits: Limits = USUAL
    autoattack: str = "autoattack"
    autoattack_everywhere: bool = True  # in T4 to T6 too
    autoattack_seeds: tuple[int, ...] = (0, 1, 2)  # of the pair, on `best` and `ema` too
    audit_budget: str = "full"
    report_checkpoint: str = "last"  # the weights that tables, figures and sentences report


# on digits the peers sit in the last two blocks, as layer4.0 and layer4.1 are in ResNet-18
MINUTES: dict = {"place": ("layer3",), "peers_at": ("layer3.0", "layer4.0"), "audit_budget": "quick"}
MINUTES |= {"autoattack_seeds": (), "autoattack_everywhere": False}
SMALL = {"width": 4, "blocks": (1, 1, 1, 1), "epochs": 2, "batch": 32, "precision": "float32"}
DIGITS = for_dataset("digits", width=8, blocks=(1, 1, 1, 1), holdout=100, epochs=15, precision="float32")
WIDE: dict = {"backbone": "wideresnet34", "width": 1}
MINI, BACKBONES = for_dataset("cifar10", width=16, epochs=10), ("resnet18", "vgg16", "wideresnet34")
WHOLE = [for_dataset(data, backbone=net) for data in ("cifar10", "svhn", "tinyimagenet") for net in BACKBONES]
ALL = (
    Profile(
        name="ci",
        base=for_dataset("digits", train_size=192, test_size=64, holdout=32, **SMALL),
        **MINUTES,
        placements=(("layer2",),),
        seeds=(0, 1),
        scope="smoke",
        autoattack="autoattack-ci",
        limits=Limits(autoattack=32, queries=4, sweep=32, audit=16),
    ),
    Profile(
        name="demo",
        base=DIGITS,
        **MINUTES,
        placements=(("layer1",), ("layer2",), ("layer4",), ("layer2", "layer3")),
        others=(replace(DIGITS, backbone="vgg16", blocks=(1, 1, 1, 1, 1)), replace(DIGITS, **WIDE, blocks=(1, 1, 1))),
        others_at=("block3",),
        all_seeds=CONTROLS,
        limits=Limits(autoattack=100, queries=100, audit=100),
    ),
    Profile(
        name="mini",
        base=MINI,
        others=(replace(MINI, backbone="vgg16"), replace(MINI, **WIDE, blocks=(2, 2, 2))),
        images=2000,
        limits=Limits(autoattack=500, queries=100, sweep=500, streams=2000, audit=500),
        audit_budget="quick",
        all_seeds=("recalibration without L_sep", *CONTROLS),
        trainings=(("epochs", 5), ("epochs", 10), ("epochs", 20), ("precision", "float32")),
    ),
    Profile(name="headline", base=WHOLE[0], scope="pair", limits=Limits(sweep=1000)),
    # The EMA weights are reported: they are the better ones, and the first that AutoAttack was run on.
    Profile(
        name="headline40",
        base=replace(WHOLE[0], epochs=40),
        scope="pair",
        limits=Limits(sweep=1000, streams=2000),
        audit_budget="quick",
        report_checkpoint="ema",
    ),
    # Does FSR gain where AT overfits?  The authors' recipe on 1,000 training images, five seeds of each row.
    Profile(
        name="overfit",
        base=replace(WHOLE[0], width=32, train_size=1000),
        scope="study",
        seeds=(0, 1, 2, 3, 4),
        other_seeds=(0, 1, 2, 3, 4),
        images=2000,
        limits=Limits(autoattack=500),
        autoattack_everywhere=False,
        autoattack_seeds=(0,),
    ),
    Profile(name="paper", base=WHOLE[0], other_seeds=(0, 1, 2), others=tuple(WHOLE[1:]), limits=Limits(audit=None)),
)
PROFILES = {profile.name: profile for profile in ALL}


def profile_of(name: str) -> Profile:
    """The profile of this name; an unknown one raises UsageError with the choices."""
    return choose("profile", name, PROFILES)
