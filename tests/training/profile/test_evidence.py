"""Shrunk lifts and log-odds against their formulas and SciPy's distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from training.profile.evidence import log_odds, shrunk_lift


def test_the_lift_is_that_of_the_gamma_distribution_after_the_counts():
    counts, expected = np.array([0, 1, 3, 40]), np.array([2.0, 0.25, 0.5, 10.0])
    lift, low = shrunk_lift(counts, expected)
    after = [stats.gamma(1 + k, scale=1 / (1 + e)) for k, e in zip(counts, expected, strict=True)]
    np.testing.assert_allclose(lift, [1 / 3, 2 / 1.25, 4 / 1.5, 41 / 11])
    np.testing.assert_allclose(lift, [one.mean() for one in after])
    np.testing.assert_allclose(low, [one.ppf(0.05) for one in after])


def test_one_or_two_events_are_never_evidence_and_three_can_be():
    counts = np.array([1, 2, 3])
    _, low = shrunk_lift(counts, np.zeros(3))  # of a value that nothing else has
    np.testing.assert_array_equal(low > 1, [False, False, True])


def test_more_events_at_the_same_rate_are_more_evidence():
    counts = np.arange(1, 60)
    lift, low = shrunk_lift(counts, counts / 4)
    assert (np.diff(lift) > 0).all()
    assert (np.diff(low) > 0).all()
    assert lift[-1] < 4  # shrunk towards 1


def test_log_odds_by_hand():
    # Two words, a prior of one each and two of other words: a0 = 4.
    found = log_odds(np.array([3.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0]), 4.0)
    # n = 3 and 1; of the first word (3 + 1) / (3 + 4 - 3 - 1) and (0 + 1) / (1 + 4 - 0 - 1).
    first = math.log(4 / 3) - math.log(1 / 4)
    second = math.log(1 / 6) - math.log(2 / 3)
    assert found[0] == pytest.approx(first / math.sqrt(1 / 4 + 1))
    assert found[1] == pytest.approx(second / math.sqrt(1 + 1 / 2))


def test_log_odds_of_the_sides_exchanged_are_the_opposite():
    rng = np.random.default_rng(0)
    liked, disliked = rng.integers(0, 5, (2, 12)).astype(float)
    prior = rng.uniform(0.1, 2, 12)
    there = log_odds(liked, disliked, prior, 30.0)
    np.testing.assert_allclose(there, -log_odds(disliked, liked, prior, 30.0))
    np.testing.assert_allclose(log_odds(liked, liked, prior, 30.0), 0, atol=1e-12)


def test_a_vocabulary_of_one_word_is_finite():
    assert np.isfinite(log_odds(np.ones(1), np.zeros(1), np.ones(1), 1.0)).all()
