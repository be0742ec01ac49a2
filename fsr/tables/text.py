"""Numbers as text: percent with intervals, fixed digits, a true minus sign."""

import math

import pandas as pd

NOT_RUN = "not run"
MINUS = "\N{MINUS SIGN}"


def missing(value) -> bool:
    """None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: float, *, digits: int = 1, sign: bool = False) -> str:
    """Fixed digits, never -0.0, half away from zero: 1.5, −0.3, with sign also +0.2."""
    value += math.copysign(1e-9, value)  # a tie, 5.45, is stored a little below or above itself
    if float(f"{value:.{digits}f}") == 0:
        value = 0.0
    return (f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}").replace("-", MINUS)


def span(low: float, high: float, *, digits: int = 1, sign: bool = False) -> str:
    """An interval in brackets."""
    return f"[{number(low, digits=digits, sign=sign)}, {number(high, digits=digits, sign=sign)}]"


def percent(value: float, low: float | None = None, high: float | None = None, *, digits: int = 1) -> str:
    """A fraction as percent, with its interval if there is one; not run when it is missing."""
    if missing(value):
        return NOT_RUN
    text = number(100 * value, digits=digits)
    return text if low is None or high is None else f"{text} {span(100 * low, 100 * high, digits=digits)}"


def quantity(value, *, digits: int = 1, unit: str = "") -> str:
    """A count (with thousands separators) or a float with fixed digits and its unit; not run when missing."""
    if missing(value):
        return NOT_RUN
    text = f"{int(value):,}" if float(value).is_integer() and digits == 0 else number(float(value), digits=digits)
    return f"{text} {unit}".strip()


def measured(cell, usual_n: float) -> str:
    """One cell of T1 to T6: `74.2 ± 0.8 [70.2, 77.9]`, then what is unusual about it: another n, missing seeds.

    cell: value, low, high, sd as fractions, n, seeds, planned, kind; status is what it says without a value.
    """
    if missing(cell.value):
        return NOT_RUN if missing(cell.status) else cell.status
    sign = cell.kind in ("gain", "difference")
    digits = 2 if cell.kind in ("paper", "rerun", "anchor", "difference") or cell.n >= 5000 else 1
    text = number(100 * cell.value, digits=digits, sign=sign)
    if not missing(cell.sd):
        text += f" ± {100 * cell.sd:.{digits}f}"
    if not missing(cell.low):
        text += " " + span(100 * cell.low, 100 * cell.high, digits=digits, sign=sign)
    if not pd.isna(cell.n) and cell.n != usual_n:
        text += f" n={cell.n:.0f}"
    if cell.kind in ("ours", "gain") and cell.seeds < cell.planned:
        text += f" ({cell.seeds:.0f} of {cell.planned:.0f} seeds)"
    return text
