"""How sure a number is: intervals, paired tests, spread over seeds.

Accuracies and differences are fractions. Paired arrays are per image, in the same order: outcomes (bool), or fractions
where outcomes were averaged over seeds. What makes no sense raises ValueError. No torch.
"""

import math
from collections import namedtuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # scipy.stats would slow the start of every process

LEVEL = 0.95
# of values over seeds: the sample standard deviation and the t interval are None for one seed
Summary = namedtuple("Summary", "mean sd low high n")


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % interval of a binomial fraction (Wilson 1927); correct: a count, or a mean of counts over seeds."""
    if not 0 <= correct <= n < math.inf or n == 0:
        raise ValueError(f"{correct} of {n} is no count of outcomes")
    share, z = correct / n, float(special.ndtri((1 + LEVEL) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else max(0.0, centre - half)), (1.0 if correct == n else min(1.0, centre + half))


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_2d(np.asarray(b, dtype=float))
    if a.ndim != 2 or a.shape != b.shape or a.size == 0 or not np.isfinite([a, b]).all():
        raise ValueError(f"paired values must be finite and of the same images, not {a.shape} and {b.shape}")
    return a, b


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p that two classifiers err equally often (McNemar 1947, exact); a, b: (n,) bool of the same images."""
    a, b = _pair(a, b)
    if len(a) > 1 or not np.isin([a, b], (0, 1)).all():
        raise ValueError("McNemar's test needs outcomes of one run each, not means over seeds")
    fewer, differ = min(int((a > b).sum()), int((a < b).sum())), int((a != b).sum())
    return min(1.0, 2 * float(special.betainc(differ - fewer, fewer + 1, 0.5))) if differ else 1.0


def paired_bootstrap(a: ArrayLike, b: ArrayLike, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of mean(b) - mean(a), of the same images (n,), or (seeds, n), resampled in pairs.

    Seeds and images are resampled together (Owen 2007, the pigeonhole bootstrap); with one seed that is the paired
    bootstrap over images (Efron & Tibshirani 1993). Images of equal changes are drawn as one multinomial class.
    """
    a, b = _pair(a, b)
    (seeds, images), rng = a.shape, np.random.default_rng(seed)
    distinct, counts = np.unique(b - a, axis=1, return_counts=True)
    means = rng.multinomial(images, counts / images, size=draws) @ distinct.T / images
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    low, high = np.quantile((weights * means).sum(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def seed_summary(values: ArrayLike, level: float = LEVEL) -> Summary:
    """Mean, standard deviation (n - 1; 0 where only rounding differs) and Student's t interval of a number per seed."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"need at least one finite number, not {values.tolist()}")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Summary(mean, None, None, None, 1)
    equal = np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max()))
    sd = 0.0 if equal else float(values.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)
    return Summary(mean, sd, mean - half, mean + half, n)
