"""Statistics against textbook values, enumeration and slow re-derivations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fsr import statistics as s


def test_wilson_is_scipys_for_whole_counts():
    for correct, n in ((0, 10), (7, 10), (10, 10), (5197, 10_000)):
        exact = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
        assert s.wilson(correct, n) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert s.wilson(0, 10)[0] == 0 and s.wilson(10, 10)[1] == 1


def test_wilson_of_a_mean_over_three_seeds_inverts_the_score_test():
    """Its ends are the fractions that the observed count, which is not rounded, rejects at exactly 5 %."""
    for end in s.wilson(79 + 1 / 3, 80):
        z = ((79 + 1 / 3) / 80 - end) / math.sqrt(end * (1 - end) / 80)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), abs=1e-6)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (3, 0), (1, 6), (5, 5), (2, 9), (7, 1)])
def test_mcnemar_is_the_exact_binomial_by_enumeration(only_a, only_b):
    n = only_a + only_b
    observed = abs(only_a - n / 2)
    extreme = sum(abs(sum(signs) - n / 2) >= observed for signs in itertools.product((0, 1), repeat=n))
    a, b = np.repeat([[1, 1, 0, 0], [1, 0, 1, 0]], [20, only_a, only_b, 9], axis=1).astype(bool)
    assert s.mcnemar_exact(a, b) == s.mcnemar_exact(b, a) == pytest.approx(extreme / 2**n)


def test_bootstrap_equals_drawing_seeds_and_images_and_has_its_sign_and_seed():
    rng = np.random.default_rng(5)
    before = rng.random((3, 120)) < 0.5
    after = rng.random((3, 120)) < np.array([[0.5], [0.6], [0.7]])
    change = after.astype(float) - before
    draws = [np.ix_(rng.integers(0, 3, 3), rng.integers(0, 120, 120)) for _ in range(20_000)]
    for row, drawn in ((slice(None), [change[draw] for draw in draws]), (1, [change[1, i] for _, (i,) in draws])):
        expected = np.quantile([part.mean() for part in drawn], [0.025, 0.975])
        low, high = s.paired_bootstrap(before[row], after[row])
        assert (low, high) == pytest.approx(expected, abs=0.01)
        assert s.paired_bootstrap(after[row], before[row])[0] == pytest.approx(-high, abs=0.02)
        assert s.paired_bootstrap(before[row], after[row]) == (low, high)
        assert s.paired_bootstrap(before[row], after[row], seed=1) != (low, high)
    assert s.paired_bootstrap([0, 0], [0, 1]) == (0.0, 1.0)


def test_seed_summary_by_hand():
    summary = s.seed_summary([0.50, 0.52, 0.54])
    assert summary.mean == pytest.approx(0.52) and summary.sd == pytest.approx(0.02) and summary.n == 3
    half = 4.302652729749464 * 0.02 / math.sqrt(3)  # Student's t, 2 degrees of freedom, from any table
    assert (summary.low, summary.high) == pytest.approx((0.52 - half, 0.52 + half))
    assert s.seed_summary([0.5]) == (0.5, None, None, None, 1)


@pytest.mark.parametrize("values", [[0.1] * 3, [(c + 1) / 100 - c / 100 for c in (80, 78, 56)]])
def test_values_that_differ_by_rounding_alone_are_equal(values):
    assert np.std(values, ddof=1) > 0  # numpy sees a difference
    summary = s.seed_summary(values)
    assert summary.sd == 0.0 and summary.low == summary.mean == summary.high


WRONG = [("no count", s.wilson, [(1, 0), (0, 0), (-1, 5), (6, 5), (3, math.inf), (math.nan, 5)])]
WRONG += [("one run each", s.mcnemar_exact, [([0.5, 1], [0, 1])])]
WRONG += [("finite", s.seed_summary, [([],), ([[1.0]],), ([float("nan")],)])]
PAIRS = [([], []), ([1], [1, 0]), ([[[1]]], [[[0]]]), ([0, math.nan], [1, 1])]


@pytest.mark.parametrize("message, function, wrong", [*WRONG, ("must be", s.paired_bootstrap, PAIRS)])
def test_what_makes_no_sense_is_refused(message, function, wrong):
    for arguments in wrong:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
