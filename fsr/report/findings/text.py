"""Sentences that state numbers: made from records each time they are shown, never typed."""

from fsr import experiments, statistics
from fsr.config import Run
from fsr.reference import MIN_SEEDS
from fsr.tables import labels as words
from fsr.tables.formatting import MINUS, missing, number, percent, span

__all__ = ["MINUS", "Prose", "accuracy_text", "budget", "difference", "missing", "number", "percent", "points"]


class Prose(str):
    """Markdown that a notebook renders."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)

    @classmethod
    def of(cls, *paragraphs: str | None) -> "Prose":
        """Paragraphs in order; empty ones vanish."""
        return cls("\n\n".join(text for text in paragraphs if text))


def points(fraction: float) -> str:
    """A difference in points with its sign: +1.2 points."""
    return f"{number(100 * fraction, sign=True)} points"


def accuracy_text(cell) -> str:
    """`75.6 % (72.1 to 78.8)`, or `not run`; cell: value, low and high as fractions."""
    if missing(cell.value):
        return "not run"
    return f"{number(100 * cell.value)} % ({number(100 * cell.low)} to {number(100 * cell.high)})"


def difference(cell: dict) -> str:
    """A paired difference with its interval over images, that over seeds (Student's t), and what they exclude.

    cell: value, low, high as fractions, per_seed and p_first_seed, as `tables.cells.gain` gives them. Of one seed
    McNemar's exact test decides as well: a bootstrap of few differing images is too sure.
    """
    low, high = cell["low"], cell["high"]
    text = (
        f"**{points(cell['value'])}** (95 % interval {number(100 * low, sign=True)} to {number(100 * high, sign=True)}"
    )
    seeds = cell.get("per_seed", [])
    if len(seeds) > 1:
        ends = [number(100 * end, sign=True) for end in (min(seeds), max(seeds))]
        text += f"; {len(seeds)} seeds, from {ends[0]} to {ends[1]}"
    else:
        text += "; one seed"
    beyond = True
    found = statistics.seed_summary(seeds) if len(seeds) >= MIN_SEEDS else None  # fewer would look like certainty
    if found and not found.sd:
        text += ": no interval over seeds"
    elif found:
        spread = (found.low or 0.0, found.high or 0.0)
        text += f", over seeds {span(100 * spread[0], 100 * spread[1], sign=True)}"
        beyond = spread[0] > 0 or spread[1] < 0
    unsure = len(seeds) == 1 and cell.get("p_first_seed", 0.0) > 0.05
    if low <= 0 <= high or unsure:
        return f"{text}), no difference shown"
    text += "), better for these networks" if low > 0 else "), worse for these networks"
    return text if beyond else f"{text}, but no more than seeds differ"


def _unlike(run: Run) -> str:
    """What of a run at the authors' size is not theirs: number format and held-out images."""
    bf16 = "crafting and updates in bf16" if run.precision == "bf16" else ""
    held = f"{run.holdout:,} of the training images held out" if run.holdout else ""
    return " and ".join(part for part in (bf16, held) if part)


def budget(profile: str) -> str:
    """What every sentence of this profile holds for, and how far that is from the paper's setting."""
    run = experiments.profile_of(profile).base
    whole = run.width is None and run.blocks is None and run.train_size is None and run.dataset == "cifar10"
    text = f"This is {words.dataset(run.dataset)}, {words.network(run)}, {run.epochs} epochs"
    but = f", but with {_unlike(run)}" if _unlike(run) else ""
    if whole and run.epochs == 100:
        return f"{text}: the setting of the authors' code{but}."
    if whole:
        text += f": the authors' network and data{but}, on a shorter schedule of the same shape; theirs has 100 epochs."
    else:
        text += ": far from the paper's setting. It shows that the code works and what happens *here*, nothing more."
    if run.dataset != "digits" and run.epochs < 100:
        text += (
            " A third party's log of the authors' code shows FSR near chance for its first two epochs (it has no run "
            "without FSR to compare), and whether more epochs would change the gap was not tested, so this neither "
            "confirms nor refutes the paper."
        )
    return text
