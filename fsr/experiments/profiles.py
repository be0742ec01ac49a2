"""The profiles: what is trained, how large, and how much of the test set each kind of attack sees."""

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fsr.config import PEERS, Run, for_dataset
from fsr.files import UsageError, did_you_mean

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
# T5: field of FSRSpec -> values beside its default
SWEEPS: dict[str, tuple] = {"tau": (0.05, 0.5, 1.0), "lambda_sep": (0.5, 2.0), "lambda_rec": (0.5, 2.0)}
SWEEPS |= {"mask": ("soft", "hard"), "granularity": ("channel", "spatial")}
METHODS = ("at", "trades", "mart")
EVERY = "whitebox deactivation blackbox components settings placement streams strength audit"
# T1's methods, T2's peers, T4's variants, T5's values, and the sets that are planned
Scope = namedtuple("Scope", "methods peers variants sweeps sets", defaults=(("at",), (), (), {}, EVERY))
SCOPES = {
    "full": Scope(METHODS, tuple(PEERS), tuple(VARIANTS), SWEEPS),
    "smoke": Scope(METHODS, tuple(PEERS), ("separation only", CONTROLS[0]), {"tau": (1.0,)}),  # one of each kind
    "pair": Scope(),  # AT and AT + FSR alone
    "study": Scope(variants=("recalibration without L_sep", *CONTROLS), sets="whitebox components study"),
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A budget for the whole plan.

    base: plain AT on the main backbone, seed 0; place: where FSR sits in it, () for the backbone's own; placements:
    the other places of T6; seeds: of the pair {AT, AT + FSR}; other_seeds: of every other row of T1, T2 and T4 (T5 and
    T6 are sweeps with seed 0); all_seeds: rows of T4 with as many seeds as the pair; trainings: a field of Run -> its
    values, rows of T5 with AT trained the same way; others: plain AT on further backbones with FSR's place there;
    scope: a key of SCOPES; images: test images of T1's columns, None for all; limits: see `limit`;
    autoattack_everywhere: in T4 to T6 too; autoattack_seeds: of the pair, on `best` and `ema` too;
    report_checkpoint: the weights that tables, figures and sentences report.
    """

    name: str
    base: Run
    place: tuple[str, ...] = ()
    peers_at: tuple[str, ...] = ()
    placements: tuple[tuple[str, ...], ...] = (("layer1",), ("layer2",), ("layer3",), ("layer3", "layer4"))
    seeds: tuple[int, ...] = (0, 1, 2)
    other_seeds: tuple[int, ...] = (0,)
    all_seeds: tuple[str, ...] = ()
    trainings: Mapping[str, tuple] = field(default_factory=dict)
    others: tuple[tuple[Run, tuple[str, ...]], ...] = ()
    scope: str = "full"
    images: int | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    autoattack: str = "autoattack"
    autoattack_everywhere: bool = True
    autoattack_seeds: tuple[int, ...] = (0, 1, 2)
    audit_budget: str = "full"
    report_checkpoint: str = "last"

    def limit(self, what: str) -> int | None:
        """Test images of autoattack, queries (T3), sweep (F6), streams or audit; None: all of them."""
        return self.limits.get(what, {"queries": 1000, "audit": 1000}.get(what))


# on digits the peers sit in the last two blocks, as layer4.0 and layer4.1 are in ResNet-18
MINUTES: dict = {"place": ("layer3",), "peers_at": ("layer3.0", "layer4.0"), "audit_budget": "quick"}
MINUTES |= {"autoattack_seeds": (), "autoattack_everywhere": False}
SMALL = {"width": 4, "blocks": (1, 1, 1, 1), "epochs": 2, "batch": 32, "precision": "float32"}
DIGITS = for_dataset("digits", width=8, blocks=(1, 1, 1, 1), holdout=100, epochs=15, precision="float32")
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
        limits={"autoattack": 32, "queries": 4, "sweep": 32, "audit": 16},
    ),
    Profile(
        name="demo",
        base=DIGITS,
        **MINUTES,
        placements=(("layer1",), ("layer2",), ("layer4",), ("layer2", "layer3")),
        others=(
            (replace(DIGITS, backbone="vgg16", blocks=(1, 1, 1, 1, 1)), ("block3",)),
            (replace(DIGITS, backbone="wideresnet34", width=1, blocks=(1, 1, 1)), ("block3",)),
        ),
        all_seeds=CONTROLS,
        limits={"autoattack": 100, "queries": 100, "audit": 100},
    ),
    Profile(
        name="mini",
        base=MINI,
        others=(
            (replace(MINI, backbone="vgg16"), ()),
            (replace(MINI, backbone="wideresnet34", width=1, blocks=(2, 2, 2)), ()),
        ),
        images=2000,
        limits={"autoattack": 500, "queries": 100, "sweep": 500, "streams": 2000, "audit": 500},
        audit_budget="quick",
        all_seeds=("recalibration without L_sep", *CONTROLS),
        trainings={"epochs": (5, 10, 20), "precision": ("float32",)},
    ),
    Profile(name="headline", base=WHOLE[0], scope="pair", limits={"sweep": 1000}),
    # A schedule of the same shape in two fifths of the time. The EMA weights are reported: they are the better ones,
    # and the first that AutoAttack was run on.
    Profile(
        name="headline40",
        base=replace(WHOLE[0], epochs=40),
        scope="pair",
        limits={"sweep": 1000, "streams": 2000},
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
        limits={"autoattack": 500},
        autoattack_everywhere=False,
        autoattack_seeds=(0,),
    ),
    Profile(
        name="paper",
        base=WHOLE[0],
        other_seeds=(0, 1, 2),
        others=tuple((run, ()) for run in WHOLE[1:]),
        limits={"audit": None},
    ),
)
PROFILES = {profile.name: profile for profile in ALL}


def profile_of(name: str) -> Profile:
    """The profile of this name; an unknown one raises UsageError with the choices."""
    if name not in PROFILES:
        meant = did_you_mean(name, PROFILES)
        raise UsageError(f"unknown profile {name!r}{meant}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
