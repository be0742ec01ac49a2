"""How sure a number is: intervals, paired tests, spread over seeds, equivalence.

Accuracies and differences are fractions. Paired arrays are per image, in the same order: outcomes (bool), or fractions
where outcomes were averaged over seeds. What makes no sense raises ValueError. No torch.
"""

import math
from collections import namedtuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
# of values over seeds: the sample standard deviation and the t interval are None for one seed
Summary = namedtuple("Summary", "mean sd low high n")
# of two one-sided tests: mean difference, its 1 - 2 * alpha interval, p, and whether it lies within the margin
Equivalence = namedtuple("Equivalence", "mean low high p equivalent")


def wilson(correct: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval (low, high) of a binomial fraction (Wilson 1927); correct: a count, or a mean of counts over seeds."""
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is no count of outcomes")
    share, z = correct / n, float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else max(0.0, centre - half)), (1.0 if correct == n else min(1.0, centre + half))


def _pair(a: ArrayLike, b: ArrayLike, axes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != axes or a.shape != b.shape or a.size == 0:
        raise ValueError(f"paired values must be of the same images, not {a.shape} and {b.shape}")
    return a, b


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p that two classifiers err equally often (McNemar 1947, exact); a, b: (n,) bool of the same images."""
    a, b = _pair(a, b)
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("McNemar's test needs outcomes of one run each, not means over seeds")
    differ = int((a != b).sum())
    return float(stats.binomtest(int((a > b).sum()), differ).pvalue) if differ else 1.0


def paired_bootstrap(a: ArrayLike, b: ArrayLike, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of mean(b) - mean(a), images (n,) resampled in pairs (Efron & Tibshirani 1993, percentile)."""
    a, b = _pair(a, b)
    return _interval((b - a)[None], seed, draws)


def crossed_bootstrap(before: ArrayLike, after: ArrayLike, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of mean(after) - mean(before), both (seeds, images): seeds and images resampled together, in pairs.

    Source: Owen 2007, the pigeonhole bootstrap; percentiles.
    """
    before, after = _pair(before, after, axes=2)
    if len(before) < 2:
        raise ValueError("an interval over seeds needs at least two seeds")
    return _interval(after - before, seed, draws)


def _interval(changes: np.ndarray, seed: int, draws: int) -> tuple[float, float]:
    """Of changes (seeds, images); images with the same changes in every seed are drawn as one multinomial class."""
    (seeds, images), rng = changes.shape, np.random.default_rng(seed)
    distinct, counts = np.unique(changes, axis=1, return_counts=True)
    means = rng.multinomial(images, counts / images, size=draws) @ distinct.T / images
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    low, high = np.quantile((weights * means).sum(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def seed_summary(values: ArrayLike, level: float = LEVEL) -> Summary:
    """Mean, standard deviation (n - 1) and Student's t interval of one number per seed.

    Values that differ by rounding alone are equal: sd is 0 then, and says that there is no interval to speak of.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"need at least one finite number, not {values.tolist()}")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Summary(mean, None, None, None, 1)
    equal = np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max()))
    sd = 0.0 if equal else float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(mean, sd, mean - half, mean + half, n)


def tost(differences: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Is the mean of (n >= 2,) differences inside (-margin, margin)?  Two one-sided t tests (Schuirmann 1987).

    Equivalent when both reject at alpha, which is when the 1 - 2 * alpha interval lies inside the margin.
    """
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    mean, sd, low, high, n = seed_summary(differences, level=1 - 2 * alpha)
    if sd is None:
        raise ValueError("equivalence needs at least two differences")
    room = margin - abs(mean)
    p = float(stats.t.sf(room / (sd / math.sqrt(n)), n - 1)) if sd else float(room <= 0)
    return Equivalence(mean, low, high, p, p < alpha)
