"""The profiles: what is trained, how large, and how much of the test set each kind of attack sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fsr.config import Run, for_dataset

BACKBONES = ("resnet18", "vgg16", "wideresnet34")
CONTROLS = ("same-capacity residual, no mask", "auxiliary heads only")  # is it the mask, or only more network?


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A budget for the whole plan.  All images fields: that many fixed test images, None for all of them.

    base: plain AT on the main backbone, seed 0; place: where FSR sits in it, () for the backbone's own
    place; placements: the other places of T6; seeds: of the pair {AT, AT+FSR}; other_seeds: of every
    other row of T1, T2 and T4 (T5 and T6 are sweeps with seed 0); all_seeds: rows of T4 with as many seeds as the pair;
    trainings: a field of Run -> its values, rows of T5 with AT trained the same way; others: plain AT on further
    backbones with FSR's place there; scope: full, pair (only {AT, AT+FSR}), smoke (one of each kind) or study (T11);
    autoattack_seeds: of the pair, on `best` and `ema` too, None for all; report_checkpoint: the weights that tables,
    figures and sentences report.
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
    images: int | None = None  # of the columns of T1
    autoattack: str = "autoattack"
    autoattack_images: int | None = None
    autoattack_everywhere: bool = True  # in T4 to T6 too; ci and demo have only minutes
    autoattack_seeds: tuple[int, ...] | None = None
    query_images: int | None = 1000  # N-Attack and Square
    sweep_images: int | None = None  # F6
    stream_images: int | None = None  # T7, F2, F8
    audit_images: int | None = 1000
    audit_budget: str = "full"
    report_checkpoint: str = "last"


DIGITS = {"holdout": 100, "epochs": 15, "precision": "float32"}
SMALL = {"width": 4, "blocks": (1, 1, 1, 1), "epochs": 2, "batch": 32, "precision": "float32"}
WHOLE = [for_dataset(data, backbone=net) for data in ("cifar10", "svhn", "tinyimagenet") for net in BACKBONES]
ALL = (
    Profile(
        name="ci",
        base=for_dataset("digits", train_size=192, test_size=64, holdout=32, **SMALL),
        place=("layer3",),
        peers_at=("layer3.0", "layer4.0"),
        placements=(("layer2",),),
        seeds=(0, 1),
        scope="smoke",
        autoattack_seeds=(),
        autoattack="autoattack-ci",
        autoattack_images=32,
        autoattack_everywhere=False,
        query_images=4,
        sweep_images=32,
        audit_images=16,
        audit_budget="quick",
    ),
    Profile(
        name="demo",
        base=for_dataset("digits", width=8, blocks=(1, 1, 1, 1), **DIGITS),
        place=("layer3",),  # 2x2 there; layer4 is 1x1
        peers_at=("layer3.0", "layer4.0"),  # the last two blocks, as layer4.0 and layer4.1 are in ResNet-18
        placements=(("layer1",), ("layer2",), ("layer4",), ("layer2", "layer3")),
        others=(
            (for_dataset("digits", backbone="vgg16", width=8, blocks=(1, 1, 1, 1, 1), **DIGITS), ("block3",)),
            (for_dataset("digits", backbone="wideresnet34", width=1, blocks=(1, 1, 1), **DIGITS), ("block3",)),
        ),
        autoattack_images=100,
        all_seeds=CONTROLS,
        autoattack_seeds=(),
        autoattack_everywhere=False,
        query_images=100,
        audit_images=100,
        audit_budget="quick",
    ),
    Profile(
        name="mini",
        base=for_dataset("cifar10", width=16, epochs=10),
        others=(
            (for_dataset("cifar10", backbone="vgg16", width=16, epochs=10), ()),
            (for_dataset("cifar10", backbone="wideresnet34", width=1, blocks=(2, 2, 2), epochs=10), ()),
        ),
        images=2000,
        autoattack_images=500,
        query_images=100,
        sweep_images=500,
        stream_images=2000,
        audit_images=500,
        audit_budget="quick",
        all_seeds=("recalibration without L_sep", *CONTROLS),
        trainings={"epochs": (5, 10, 20), "precision": ("float32",)},
    ),
    Profile(name="headline", base=for_dataset("cifar10"), scope="pair", sweep_images=1000),
    # A schedule of the same shape in two fifths of the time. The EMA weights are reported: they are the better ones,
    # and the first that AutoAttack was run on.
    Profile(
        name="headline40",
        base=for_dataset("cifar10", epochs=40),
        scope="pair",
        sweep_images=1000,
        stream_images=2000,
        audit_budget="quick",
        report_checkpoint="ema",
    ),
    # Does FSR gain where AT overfits?  The authors' recipe on 1,000 training images, five seeds of each row.
    Profile(
        name="overfit",
        base=for_dataset("cifar10", width=32, train_size=1000),
        scope="study",
        seeds=(0, 1, 2, 3, 4),
        other_seeds=(0, 1, 2, 3, 4),
        images=2000,
        autoattack_images=500,
        autoattack_everywhere=False,
        autoattack_seeds=(0,),
    ),
    Profile(
        name="paper",
        base=WHOLE[0],
        other_seeds=(0, 1, 2),
        others=tuple((run, ()) for run in WHOLE[1:]),
        audit_images=None,
    ),
)
PROFILES = {profile.name: profile for profile in ALL}
