"""How sentences state numbers: percent, points with sign and interval, seeds."""

import numpy as np
import pandas as pd

from fsr.reference import MIN_SEEDS

WORDS = ("no", "one", "two", "three", "four", "five")


def number(fraction: float, sign: bool = False) -> str:
    """Percent or points: 44.6, with sign +1.2 or −1.2; a second decimal where one would hide the sign."""
    digits = 2 if sign and abs(fraction) < 0.0005 and round(fraction, 4) else 1
    return f"{round(100 * fraction, digits) + 0.0:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def interval(cell: dict) -> tuple[float, float]:
    """The 95 % interval of a difference: over seeds and images where three seeds allow it, else over images."""
    both = cell.get("seeds_low", np.nan), cell.get("seeds_high", np.nan)
    return (cell["low"], cell["high"]) if cell["seeds"] < MIN_SEEDS or pd.isna([*both]).any() else both


def bracket(cell: dict, unit: str = "") -> str:
    """A difference with its interval: −2.9 [−3.4, −2.3], with the unit after the value."""
    low, high = (number(end, True) for end in interval(cell))
    return f"{number(cell['value'], True)}{unit} [{low}, {high}]"


def points(cell: dict) -> str:
    """−2.9 points [−3.4, −2.3]."""
    return bracket(cell, " points")


def side(cell: dict) -> int:
    """1 or −1 for an interval above or below zero, 0 for one that includes it (undecided)."""
    low, high = interval(cell)
    return int(low > 0) - int(high < 0)


def seeds(counts) -> str:
    """`one seed`, or `one to three seeds`."""
    ends = [WORDS[int(end)] if end < len(WORDS) else f"{end:.0f}" for end in (min(counts), max(counts))]
    return " to ".join(dict.fromkeys(ends)) + (" seed" if max(counts) == 1 else " seeds")
