"""Numbers as text: fixed digits, intervals in brackets, a true minus sign."""

import math

import pandas as pd

NOT_RUN = "not run"
MINUS = "\N{MINUS SIGN}"


def missing(value) -> bool:
    """None or NaN."""
    return bool(pd.isna(value))


def number(value: float, *, digits: int = 1, sign: bool = False) -> str:
    """Fixed digits, half away from zero, never -0.0: 1.5, −0.3, with sign also +0.2."""
    value += math.copysign(1e-9, value)  # a tie, 5.45, is stored a little below or above itself
    if float(f"{value:.{digits}f}") == 0:
        value = 0.0
    return (f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}").replace("-", MINUS)


def span(low: float, high: float, *, digits: int = 1, sign: bool = False) -> str:
    """An interval in brackets."""
    return f"[{number(low, digits=digits, sign=sign)}, {number(high, digits=digits, sign=sign)}]"


def percent(value: float, low: float | None = None, high: float | None = None, *, digits: int = 1) -> str:
    """A fraction as percent, with its interval if there is one; `not run` when it is missing."""
    if missing(value):
        return NOT_RUN
    text = number(100 * value, digits=digits)
    return text if low is None or high is None else f"{text} {span(100 * low, 100 * high, digits=digits)}"


def quantity(value, *, digits: int = 1) -> str:
    """A count with thousands separators (digits 0), or a float with fixed digits; `not run` when it is missing."""
    if missing(value):
        return NOT_RUN
    return f"{value:,.0f}" if digits == 0 else number(float(value), digits=digits)
