"""How much counts stand out, where there are few of them."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaincinv

_LOW = 0.05


def shrunk_lift(counts: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed over expected counts, shrunk towards 1.

    Counts are Poisson with the mean `lift * expected`, and the lift is gamma-distributed with shape
    and rate 1 before anything is seen: one count and one expectation of 1 are added. That is the
    gamma-Poisson shrinker (DuMouchel 1999, "Bayesian Data Mining in Large Frequency Tables", The
    American Statistician) with a fixed prior. One or two counts never bring the 5% quantile above
    1, however rare the value; three may.

    Args:
        counts: `[n]`, at least 0.
        expected: `[n]`, at least 0.

    Returns:
        Mean and 5% quantile of the lift, float64 `[n]` each.
    """
    shape, rate = counts + 1.0, expected + 1.0
    return shape / rate, gammaincinv(shape, _LOW) / rate


def log_odds(
    liked: np.ndarray, disliked: np.ndarray, prior: np.ndarray, prior_total: float
) -> np.ndarray:
    """How surely words belong to one of two texts: the log-odds ratio over its standard error.

    Monroe, Colaresi and Quinn 2008, "Fightin' Words", Political Analysis, equations 16, 20 and 22:
    the log-odds ratio with an informative Dirichlet prior.

    Args:
        liked: counts of each word in the one text, `[words]`; every word that has one is there.
        disliked: in the other.
        prior: counts of the words in the prior, `[words]`, above 0.
        prior_total: of all words in the prior, those not asked about too.

    Returns:
        float64 `[words]`; above 0 for words of the liked text. 1.96 is the 5% level.
    """

    def log_of_odds(counts: np.ndarray) -> np.ndarray:
        others = counts.sum() + prior_total - counts - prior
        return np.log(counts + prior) - np.log(np.maximum(others, 1e-9))

    variance = 1.0 / (liked + prior) + 1.0 / (disliked + prior)
    return (log_of_odds(liked) - log_of_odds(disliked)) / np.sqrt(variance)
