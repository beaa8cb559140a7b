"""Measures by hand and against loops over Python lists; test_evaluation.py has ir-measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import metrics

# Two queries, four ranks. Query 0 finds at ranks 2 and 4 of its 3 relevant items, query 1 nothing.
RELEVANT = np.array([[False, True, False, True], [False, False, False, False]])
N_RELEVANT = np.array([3, 0])


def test_binary_measures_by_hand() -> None:
    np.testing.assert_allclose(metrics.recall_at_k(RELEVANT, N_RELEVANT, 3), [1 / 3, 0])
    np.testing.assert_allclose(metrics.recall_at_k(RELEVANT, N_RELEVANT, 9), [2 / 3, 0])
    np.testing.assert_allclose(metrics.precision_at_k(RELEVANT, 2), [1 / 2, 0])
    np.testing.assert_allclose(metrics.precision_at_k(RELEVANT, 10), [2 / 10, 0])
    np.testing.assert_allclose(metrics.hit_rate(RELEVANT, 1), [0, 0])
    np.testing.assert_allclose(metrics.hit_rate(RELEVANT, 2), [1, 0])
    np.testing.assert_allclose(metrics.reciprocal_rank(RELEVANT), [1 / 2, 0])
    np.testing.assert_allclose(metrics.reciprocal_rank(RELEVANT, 1), [0, 0])
    np.testing.assert_allclose(
        metrics.average_precision(RELEVANT, N_RELEVANT), [(1 / 2 + 2 / 4) / 3, 0]
    )
    np.testing.assert_allclose(metrics.average_precision(RELEVANT, N_RELEVANT, 3), [1 / 2 / 3, 0])


def test_ndcg_by_hand() -> None:
    """Gains 3, 0, 1 found in that order; 3, 2, 1 judged; and a query judged 0 only."""
    query_rows = np.array([0, 1, 0, 0, 0])
    judged = np.array([1.0, 0, 3, 0, 2])
    ranked = np.array([[3.0, 0, 1], [0, 0, 0]])
    ideal = metrics.ideal_dcg_at_k(query_rows, judged, 2)
    np.testing.assert_allclose(ideal, [3 + 2 / math.log2(3) + 1 / 2, 0])
    np.testing.assert_allclose(metrics.ndcg_at_k(ranked, ideal), [(3 + 1 / 2) / ideal[0], 0])
    ideal_at_2 = metrics.ideal_dcg_at_k(query_rows, judged, 2, 2)
    np.testing.assert_allclose(ideal_at_2, [3 + 2 / math.log2(3), 0])
    np.testing.assert_allclose(metrics.ndcg_at_k(ranked, ideal_at_2, 2), [3 / ideal_at_2[0], 0])


def test_coverage_by_hand() -> None:
    rows = np.array([[0, 1, 2], [1, 3, -1]])
    assert metrics.coverage(rows, 8, 1) == 2 / 8
    assert metrics.coverage(rows, 8, 2) == 3 / 8
    assert metrics.coverage(rows, 8, 50) == 4 / 8
    assert metrics.coverage(np.zeros((0, 3), int), 8, 2) == 0


def test_a_run_without_ranks() -> None:
    nothing = np.zeros((2, 0), bool)
    for values in (
        metrics.recall_at_k(nothing, N_RELEVANT, 5),
        metrics.precision_at_k(nothing, 5),
        metrics.hit_rate(nothing, 5),
        metrics.reciprocal_rank(nothing),
        metrics.average_precision(nothing, N_RELEVANT),
        metrics.ndcg_at_k(np.zeros((2, 0)), np.array([1.0, 0.0])),
    ):
        np.testing.assert_array_equal(values, [0, 0])


@settings(max_examples=50, deadline=None)
@given(
    ranked=st.lists(st.sampled_from([0.0, 1.0, 10.0, 100.0]), max_size=12),
    missed=st.lists(st.sampled_from([0.0, 1.0, 10.0, 100.0]), max_size=6),
    k=st.none() | st.integers(1, 15),
)
def test_ndcg_equals_a_loop(ranked: list[float], missed: list[float], k: int | None) -> None:
    def dcg(gains: list[float]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:k], 1))

    best = dcg(sorted(ranked + missed, reverse=True))
    expected = dcg(ranked) / best if best else 0.0
    judged = np.array(ranked + missed)
    ideal = metrics.ideal_dcg_at_k(np.zeros(len(judged), int), judged, 1, k)
    assert metrics.ndcg_at_k(np.array([ranked]), ideal, k)[0] == pytest.approx(expected)
    assert 0 <= expected <= 1 + 1e-12
