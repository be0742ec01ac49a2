"""Every place where this code differs from the authors' code, and why; DEVIATIONS.md is made of this list."""

from typing import NamedTuple


class Deviation(NamedTuple):
    """Theirs, ours and the reason; effect: does it change a number (none, small, yes)?"""

    part: str
    theirs: str
    ours: str
    why: str
    effect: str


_MODEL = (
    Deviation(
        "What a model returns",
        "logits and three lists, from every forward pass",
        "logits; the streams come from `trace`",
        "attack libraries work unchanged, and no caller can unpack the wrong thing",
        "none",
    ),
    Deviation(
        "When the mask is noisy",
        "an argument `is_eval` of every call, noise ON by default",
        "noise follows `training`",
        "two public forks evaluate with the noise on or inverted; the authors' own protocol is reproduced exactly",
        "none",
    ),
    Deviation(
        "Noise",
        "two Gumbel draws, 1e-8 inside each logarithm",
        "one Logistic draw, which is their difference",
        "the same distribution, half the random numbers; tests that compare draw for draw use both",
        "none",
    ),
    Deviation(
        "Hidden width of S and R",
        "64 channels",
        "max(8, round(64 C / 512)), for WideResNet C / 640, C the channels at the module's place: 64 at the authors' "
        "place and full width, 8 to 32 after earlier stages",
        "64 channels would more than double a network of width 8 and confound every narrow result",
        "none at full width, but in T6, whose places differ in capacity too",
    ),
    Deviation(
        "WideResNet's `sub_block1`",
        "2,102,112 parameters that nothing uses",
        "left out; accepted and dropped when an authors' checkpoint is imported",
        "dead parameters would flatter the overhead",
        "parameter counts only",
    ),
    Deviation(
        "WideResNet's pooling",
        "a fixed 8x8 window",
        "adaptive average pooling",
        "theirs breaks at 64x64; at 32x32 both are the same",
        "none",
    ),
    Deviation(
        "VGG's linear layers in narrow networks",
        "N(0, 0.01)",
        "the same at full width; kaiming-normal below 512 inputs",
        "with 0.01 a narrow VGG never leaves chance under AT, and FSR's auxiliary losses would look like robustness",
        "only below full width, and where FSR or CIFS sits on fewer than 512 channels (FSR before its usual place)",
    ),
    Deviation(
        "VGG's pooling",
        "floor mode, each pool closes its stage",
        "`ceil_mode=True`, each pool opens the next stage",
        "FSR sits before the pool, and 8x8 images survive five pools; identical at 32x32 and 64x64",
        "none",
    ),
    Deviation(
        "Masks, losses and places of T4 to T6, peers of T2",
        "not in the released code",
        "written here from the descriptions of their authors; FD's 1x1 convolution is followed by a BatchNorm that "
        "begins at zero; CAS and CIFS sit in the last two blocks, in `ci` and `demo` the last of `layer3` and `layer4`",
        "needed for the tables; their settings are in fsr/experiments/rows.py and in T4 to T6",
        "they have no counterpart",
    ),
)

_TRAINING = (
    Deviation(
        "Training images",
        "all 50,000 (SVHN 73,257)",
        "1,000 are held out to select `best`, of digits 100 (`ci` 32); `holdout=0` gives the authors' set, no `best`",
        "a checkpoint must never be selected on test images",
        "small",
    ),
    Deviation(
        "Checkpoints",
        "the last epoch's weights only",
        "last, best and EMA (decay 0.9995 with warm-up), always named. What looks at one kind of "
        "weights takes `last`, in `headline40` EMA: AutoAttack was run on those first, and seed 0's others are gone; "
        "T1, T2 and T4 show all, T10 judges `last`",
        "the choice alone moves robust accuracy by 2 to 8 points",
        "last is comparable",
    ),
    Deviation(
        "Seeds",
        "none set, one run",
        "every run has one; three for a verdict",
        "without a spread no difference can be judged",
        "none",
    ),
    Deviation(
        "Test set during training",
        "scored after every epoch",
        "never touched; the history is of held-out images",
        "the same reason",
        "none",
    ),
    Deviation(
        "Precision",
        "float32",
        "`ci` and `demo` float32; the others craft and update in bf16, with float32 weights, losses and judging; on a "
        "processor without bf16 units in float32, which the records and T1 to T6 say",
        "speed on a GPU; `precision` is a field of every run",
        "none seen; README's comparison, of short trainings, cannot rule out up to about three points",
    ),
    Deviation(
        "Stored weights",
        "float32",
        "`headline40`'s were rounded to float16 after training, before anything was judged; such tables name them",
        "they had to travel, and the stored and the judged network must be one",
        "relative rounding of at most 2^-11 (below 2^-14: 2^-25 at most); its effect on accuracy was not measured",
    ),
    Deviation(
        "AWP",
        "not in the released code",
        "a field of every run (`awp`; gammas in the literature: 0.005 for TRADES, 0.01 for AT and MART), in no table",
        "it is another baseline for both twins; whether FSR adds to it was not run",
        "none",
    ),
    Deviation(
        "Convolutions while crafting, float32 on a CPU",
        "direct",
        "3x3 at stride 1 by Winograd's F(4x4, 3x3) in networks of 16 channels and more (`fsr/winograd.py`)",
        "a quarter of the products",
        "rounding, about ten times that of direct convolutions and far below bf16's; float32 networks judge",
    ),
    Deviation(
        "TRADES and MART",
        "not in the released code",
        "their public formulas, this optimiser and schedule; FSR's terms on the adversarial pass, "
        "one training-mode clean pass first, then one adversarial pass",
        "T1 names them; the same recipe for all compares modules and not recipes",
        "they have no counterpart",
    ),
    Deviation(
        "Inner step of TRADES",
        "0.007 in the TRADES paper",
        "2/255 (SVHN 1/255), as for the other methods",
        "one threat model for every row",
        "small",
    ),
    Deviation(
        "Batch of one",
        "trained on (it never occurs with 50,000 images)",
        "joins the batch before it",
        "BatchNorm cannot train on one 1x1 feature",
        "none at full size",
    ),
    Deviation(
        "Shorter schedules",
        "100 epochs",
        "`headline40` 40, `mini` 10, `demo` 15, `ci` 1 or 2; the rate drops after the same fractions",
        "a processor's budget; such profiles say so and cannot confirm a number",
        "yes, named everywhere",
    ),
    Deviation(
        "Digits",
        "not used",
        "`ci` and `demo` train on 8x8 digits at eps 0.15",
        "embedded and real: the whole project can be run in minutes; 8/255 means nothing there",
        "another data set",
    ),
)

_EVALUATION = (
    Deviation(
        "White-box columns",
        "FGSM, PGD-20, PGD-100, C&W, one run without restart",
        "the same, named the authors' protocol; AutoAttack beside them (`ci` and `demo`: in T1 and T2 alone; "
        "below `paper`: on the main network alone), the adaptive audit of AT and AT + FSR",
        "the protocol is weak by today's standards, and where the mask is saturated its gradient vanishes",
        "none",
    ),
    Deviation(
        "Ensemble",
        "counted while attacking",
        "computed from stored per-sample outcomes",
        "the same number, and paired tests become possible",
        "none",
    ),
    Deviation(
        "AutoAttack",
        "not in the released code",
        "standard version, with its own flags printed",
        "which version the paper used is not known",
        "possibly",
    ),
    Deviation(
        "Part of the test set",
        "all images",
        "fixed and stratified. `mini`: 2,000, of them 500 for AutoAttack, F6 and the audit, 100 for N-Attack and "
        "Square. `demo`: 500, of them 100 for AutoAttack, N-Attack, Square and the audit. `headline`, `headline40` and "
        "`paper`: all, but 1,000 for N-Attack and Square; `headline` and `headline40` also 1,000 for F6 and the audit, "
        "`headline40` 2,000 for the streams",
        "a processor's budget; accuracies and gains carry n and interval",
        "wider intervals",
    ),
    Deviation(
        "Place of the module in `ci` and `demo`",
        "after ResNet's last stage",
        "after `layer3`, which has 2x2 positions; the other places are rows of T6",
        "the last stage has one position on 8x8 digits",
        "T6 measures it",
    ),
)

_TRAPS = (
    Deviation(
        "Device",
        "the random start needs CUDA; `torch.load` ignores the device because of a misplaced bracket",
        "any device",
        "the code must run everywhere",
        "none",
    ),
    Deviation("Graphs", "adversarial images keep their graph", "detached", "memory; the update never used it", "none"),
    Deviation("Sizes", "test-set sizes are literals", "read from the data", "wrong for every other data set", "none"),
    Deviation(
        "Networks", "three are built to use one", "only the one that is asked for", "memory and random numbers", "none"
    ),
)

DEVIATIONS = {"Model": _MODEL, "Training": _TRAINING, "Evaluation": _EVALUATION, "Traps not inherited": _TRAPS}

HEAD = """# Where this code differs from the authors'

Written by `fsr.reference.deviations()`; edit `fsr/reference/deviations.py` and not this file.
*Theirs* is the released code of Kim et al. (CVPR 2023), `github.com/wkim97/FSR`, as it was read. The paper's text was
not available, so what it alone states cannot be listed here. *Effect* says whether a number can change.
"""


def deviations() -> str:
    """DEVIATIONS.md as text: a table per part."""
    lines = [HEAD]
    for part, some in DEVIATIONS.items():
        lines += [f"## {part}", "", "| what | theirs | ours | why | effect |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in some]
        lines.append("")
    return "\n".join(lines)
