"""How sure a number is: intervals, paired tests, spread over seeds, equivalence.

Accuracies and differences are fractions. Paired arrays are per image, in the same order: outcomes (bool), or fractions
where outcomes were averaged over seeds. What makes no sense raises ValueError. No torch.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Summary(NamedTuple):
    """Values over seeds: mean, sample standard deviation and t interval; the last three are None for one seed."""

    mean: float
    sd: float | None
    low: float | Any
    high: float | Any
    n: int


class Equivalence(NamedTuple):
    """Two one-sided tests: mean difference, its 1 - 2 * alpha interval, p, and whether it lies within the margin."""

    mean: float
    low: float
    high: float
    p: float
    equivalent: bool


def wilson(correct: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of a binomial fraction, inside [0, 1] also at 0 and n (Wilson 1927).

    correct: a count in [0, n]; a mean of counts over seeds may be broken.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is no count of outcomes")
    share, z = correct / n, float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else max(0.0, centre - half)), (1.0 if correct == n else min(1.0, centre + half))


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"paired values must be two arrays (n,) of the same images, not {a.shape} and {b.shape}")
    return a, b


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p that two classifiers err equally often, from the images where only one errs (McNemar 1947, exact).

    a, b: (n,) bool, right or wrong on the same images. 1.0 when they never differ.
    """
    a, b = _pair(a, b)
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("McNemar's test needs outcomes of one run each, not means over seeds")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _resampled_sums(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Sums of `draws` resamples of values (n,) with replacement, (draws,).

    Counts how often each distinct value is drawn, a multinomial: the same distribution as drawing n indices, without
    n * draws of them.
    """
    distinct, counts = np.unique(values, return_counts=True)
    return rng.multinomial(len(values), counts / len(values), size=draws) @ distinct


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Interval (low, high) of mean(b) - mean(a), images resampled in pairs (Efron & Tibshirani 1993, percentile)."""
    a, b = _pair(a, b)
    sums = _resampled_sums(b - a, draws, np.random.default_rng(seed))
    return _percentiles(sums / len(a), level)


def crossed_bootstrap(
    before: ArrayLike, after: ArrayLike, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Interval (low, high) of mean(after) - mean(before), seeds and images resampled together, pairs kept (percentile).

    before, after: (seeds, images), the same seeds and images in the same order; at least two seeds. Images with the
    same differences in every seed are drawn as one multinomial class. Source: Owen 2007, the pigeonhole bootstrap.
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if before.ndim != 2 or before.shape != after.shape or min(before.shape) == 0 or len(before) < 2:
        raise ValueError(f"need two arrays (seeds >= 2, images), not {before.shape} and {after.shape}")
    (seeds, images), rng = before.shape, np.random.default_rng(seed)
    distinct, counts = np.unique(after - before, axis=1, return_counts=True)
    per_seed = rng.multinomial(images, counts / images, size=draws) @ distinct.T / images
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    return _percentiles((weights * per_seed).sum(axis=1), level)


def seed_summary(values: ArrayLike, level: float = 0.95) -> Summary:
    """Mean, standard deviation (n - 1) and Student's t interval of one number per seed.

    Values that differ by rounding alone are equal: sd is 0 then, and says that there is no interval to speak of.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"need at least one finite number, not {values.tolist()}")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Summary(mean, None, None, None, 1)
    if np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return Summary(mean, 0.0, mean, mean, n)
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(mean, sd, mean - half, mean + half, n)


def tost(differences: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Is the mean difference inside (-margin, margin)?  Two one-sided t tests (Schuirmann 1987).

    differences: (n,), one per seed or per image, n >= 2; margin: a fraction > 0, chosen before the run. Equivalent when
    both tests reject at alpha, which is when the 1 - 2 * alpha interval lies inside the margin.
    """
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    found = seed_summary(differences, level=1 - 2 * alpha)
    if found.sd is None or found.low is None or found.high is None:
        raise ValueError("equivalence needs at least two differences")
    if found.sd == 0:
        p = 0.0 if abs(found.mean) < margin else 1.0
    else:
        error = found.sd / math.sqrt(found.n)
        p = float(stats.t.sf((margin - abs(found.mean)) / error, found.n - 1))
    return Equivalence(found.mean, found.low, found.high, p, p < alpha)
