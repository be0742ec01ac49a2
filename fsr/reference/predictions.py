"""Predictions, each committed before the first run that can decide it.

Intervals are two-sided 95 % crossed-bootstrap intervals: seeds and test images are resampled together, pairs stay
paired. Gains are in points of Ensemble, of C23 to C25 of AutoAttack.
"""

from fsr.reference.claim import Claim

STUDY = "this project, predicted before the runs"
_OVERFIT = (
    Claim(
        id="C18",
        text="where AT overfits, AT + FSR beats AT at `last`",
        kind="prediction",
        source=STUDY,
        rule="study_gain_last",
        checkpoint="last",
        metric="ensemble",
        test="profile overfit, five seeds, 2,000 test images: the interval of the gain at last lies above 0",
        profiles=("overfit",),
        min_seeds=5,
    ),
    Claim(
        id="C19",
        text="where AT overfits, AT + FSR does not beat AT at `best` and at EMA",
        kind="prediction",
        source=STUDY,
        rule="study_gain_early",
        metric="ensemble",
        tolerance=1.0,
        test="profile overfit, five seeds, 2,000 test images: not supported if the interval of the gain at best or at "
        "ema lies above 0; supported if both intervals end below the tolerance; else undecided",
        profiles=("overfit",),
        min_seeds=5,
    ),
    Claim(
        id="C20",
        text="the training accuracy of AT + FSR under attack stays below that of AT at every epoch",
        kind="prediction",
        source=STUDY,
        rule="study_training",
        metric="train_adv_acc",
        test="profile overfit: mean over five seeds of history.csv's train_adv_acc, AT + FSR minus AT, is negative at "
        "each of the 100 epochs",
        profiles=("overfit",),
        min_seeds=5,
    ),
    Claim(
        id="C21",
        text="the gain at `last` needs L_sep: without it, with the residual and with the heads alone it is smaller",
        kind="prediction",
        source=STUDY,
        rule="study_needs_sep",
        checkpoint="last",
        metric="ensemble",
        test="profile overfit, five seeds, 2,000 test images, last: the intervals of AT + FSR minus each of the three "
        "variants lie above 0; not supported if one of them lies below 0; else undecided",
        profiles=("overfit",),
        min_seeds=5,
    ),
    Claim(
        id="C22",
        text="AT stopped early (`best`) is at least as robust as AT + FSR at `last`",
        kind="prediction",
        source=STUDY,
        rule="study_early_stopping",
        metric="ensemble",
        tolerance=1.0,
        test="profile overfit, five seeds, 2,000 test images: AT at best minus AT + FSR at last: not supported if the "
        "interval lies below 0; supported if it starts above minus the tolerance; else undecided",
        profiles=("overfit",),
        min_seeds=5,
    ),
)
_HUNDRED = (
    Claim(
        id="C23",
        text="slow start: at 100 epochs the gap of FSR in EMA and `best` shrinks to within one point",
        kind="prediction",
        source=STUDY,
        rule="slow_start",
        metric="autoattack",
        tolerance=1.0,
        test="profile headline, AT + FSR minus AT under AutoAttack: both values within the tolerance of 0",
        profiles=("headline",),
        min_seeds=1,
    ),
    Claim(
        id="C24",
        text="overfitting: at 100 epochs the gain at `last` exceeds the gains at `best` and EMA by at least one point",
        kind="prediction",
        source=STUDY,
        rule="overfitting",
        metric="autoattack",
        tolerance=1.0,
        test="profile headline, AutoAttack: gain at last minus the larger of the gains at best and ema is at least the "
        "tolerance",
        profiles=("headline",),
        min_seeds=1,
    ),
    Claim(
        id="C25",
        text="a real deficit: at 100 epochs neither a slow start nor overfitting explains why FSR loses",
        kind="prediction",
        source=STUDY,
        rule="real_deficit",
        metric="autoattack",
        tolerance=1.0,
        test="profile headline: C23 and C24 fail, and the gain in EMA lies below minus the tolerance",
        profiles=("headline",),
        min_seeds=1,
    ),
)
PREDICTIONS: tuple[Claim, ...] = _OVERFIT + _HUNDRED
