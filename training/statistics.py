"""What can be said from few draws and few hundred queries: intervals, paired tests, Holm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

Interval = tuple[float, float]

_RESAMPLES = 9_999
# Signs drawn at a time: at most 64 MiB of float64.
_SIGNS_AT_A_TIME = 1 << 23
# nDCG of one query moves by far more than this when any item moves.
_TIE = 1e-9


class Comparison(BaseModel):
    """A system against a baseline on the same queries.

    Attributes:
        difference: mean of the system's value minus the baseline's.
        interval_95: of that mean over queries, by Student's t; None for a single query.
        p_t: two-sided paired t test.
        p_randomisation: two-sided paired randomisation test (Smucker, Allan and Carterette 2007).
        wins: queries where the system is better.
        ties: queries where neither is.
        losses: queries where the baseline is better.
    """

    model_config = ConfigDict(frozen=True)

    difference: float
    interval_95: Interval | None
    p_t: float
    p_randomisation: float
    wins: int
    ties: int
    losses: int


def mean_interval(
    values: np.ndarray | Sequence[float], confidence: float = 0.95
) -> Interval | None:
    """Interval of a mean by Student's t.

    Args:
        values: floating ``[n]``, independent of each other.
        confidence: coverage.

    Returns:
        Lower and upper end, or None where a single value says nothing of its spread.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    error = values.std(ddof=1) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error)
    mean = float(values.mean())
    return mean - reach, mean + reach


def compare(system: np.ndarray, baseline: np.ndarray, *, seed: int = 0) -> Comparison:
    """Compares two systems query by query.

    Args:
        system: floating ``[Q]``, a value a query, at least one.
        baseline: floating ``[Q]``, of the same queries.
        seed: decides the signs that the randomisation test draws.
    """
    difference = np.where(np.abs(system - baseline) > _TIE, system - baseline, 0.0)
    p_t = p_randomisation = 1.0
    if len(difference) > 1 and difference.any():
        p_t = float(stats.ttest_1samp(difference, 0.0).pvalue)
        p_randomisation = float(
            # One sample: the signs are drawn, which is to swap system and baseline of a query.
            stats.permutation_test(
                (difference,),
                lambda x, axis: x.mean(axis=axis),
                permutation_type="samples",
                vectorized=True,
                n_resamples=_RESAMPLES,
                batch=max(1, _SIGNS_AT_A_TIME // len(difference)),
                rng=np.random.default_rng(seed),
            ).pvalue
        )
    return Comparison(
        difference=float(difference.mean()),
        interval_95=mean_interval(difference),
        p_t=p_t,
        p_randomisation=p_randomisation,
        wins=int((difference > 0).sum()),
        ties=int((difference == 0).sum()),
        losses=int((difference < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several tests (Holm 1979).

    Calling those of the corrected values below ``a`` significant finds a difference that is none
    with a probability of at most ``a``, however many tests there are and however they depend on
    each other.

    Args:
        p_values: any number of p-values.

    Returns:
        Corrected ones, in the same order.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)  # the least one times n, the next one times n - 1, ...
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected.tolist()
