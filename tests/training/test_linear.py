"""The linear map in closed form, against formulas and against small changes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg

from training.linear import _folds, query_map, shared_map


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(2, 12, 5)).astype(np.float32)
    return queries, items, rng.uniform(0.5, 2.0, 12).astype(np.float32)


def test_query_map_is_the_minimum(data: tuple[np.ndarray, ...]) -> None:
    queries, items, weights = data

    def loss(w: np.ndarray) -> float:
        errors = ((queries @ w - items) ** 2).sum(axis=1)
        share = weights / weights.sum()
        return float((share * errors).sum() + 0.3 * ((w - np.eye(5)) ** 2).sum())

    best = query_map(queries, items, weights, 0.3)
    rng = np.random.default_rng(1)
    for _ in range(50):
        assert loss(best + rng.normal(scale=1e-2, size=(5, 5))) > loss(best)


def test_shared_map_by_the_formula(data: tuple[np.ndarray, ...]) -> None:
    queries, items, weights = data
    share = weights / weights.sum()
    spread = sum(s * np.outer(q - d, q - d) for s, q, d in zip(share, queries, items, strict=True))
    expected = scipy.linalg.inv(scipy.linalg.sqrtm(np.eye(5) + spread / 0.2))
    np.testing.assert_allclose(shared_map(queries, items, weights, 0.2), expected, atol=1e-5)


@pytest.mark.parametrize("make", [query_map, shared_map])
def test_strength_leads_to_the_identity(
    make: Callable[..., np.ndarray], data: tuple[np.ndarray, ...]
) -> None:
    np.testing.assert_allclose(make(*data, math.inf), np.eye(5), atol=1e-12)
    distance = [np.abs(make(*data, s) - np.eye(5)).max() for s in (0.01, 1.0, 100.0, 1e6)]
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < 1e-5


def test_weights_are_repetitions(data: tuple[np.ndarray, ...]) -> None:
    queries, items, _ = data
    twice = np.concatenate([queries, queries[:4]]), np.concatenate([items, items[:4]])
    weights = np.ones(12)
    weights[:4] = 2
    for make in (query_map, shared_map):
        np.testing.assert_allclose(
            make(queries, items, weights, 0.1), make(*twice, np.ones(16), 0.1), atol=1e-6
        )


def test_folds_are_a_partition_whatever_the_order() -> None:
    queries = [f"query {n}" for n in range(13)]
    folds = _folds(queries, seed=3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(13))
    shuffled = queries[::-1]
    others = _folds(shuffled, seed=3)
    for a, b in zip(folds, others, strict=True):
        assert {queries[row] for row in a} == {shuffled[row] for row in b}
    assert len(_folds(["one", "two"], 0)) == 2
