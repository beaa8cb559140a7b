"""Blockwise search against the whole score matrix, sorted."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.search import Run, top_k


def by_sorting(
    queries: np.ndarray, items: np.ndarray, k: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts all (score, row) pairs of each query as Python tuples."""
    scores, rows = [], []
    for i, query in enumerate(queries.astype(float)):
        banned = set() if exclude is None else set(exclude[i].tolist())
        pairs = [(-float(query @ item), j) for j, item in enumerate(items.astype(float))]
        best = sorted(pair for pair in pairs if pair[1] not in banned)[:k]
        best += [(np.inf, -1)] * (min(k, len(items)) - len(best))
        scores.append([-score for score, _ in best])
        rows.append([row for _, row in best])
    return np.array(scores), np.array(rows)


def small_integers(rng: np.random.Generator, n: int, d: int = 3) -> np.ndarray:
    """Embeddings whose dot products are exact in float32 and often equal."""
    return rng.integers(-2, 3, (n, d)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n_queries=st.integers(1, 5),
    n_items=st.integers(1, 60),
    k=st.integers(1, 70),
    block=st.integers(1, 70),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_equals_sorting_with_many_ties(
    seed: int, n_queries: int, n_items: int, k: int, block: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    queries, items = small_integers(rng, n_queries), small_integers(rng, n_items).astype(dtype)
    scores, rows = top_k(queries, items, k, block_items=block)
    expected_scores, expected_rows = by_sorting(queries, items, k)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 25), block=st.integers(1, 25))
def test_excluded_items_are_not_found(seed: int, k: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    queries, items = small_integers(rng, 4), small_integers(rng, 20)
    exclude = rng.integers(-1, 20, (4, 18))
    scores, rows = top_k(queries, items, k, block_items=block, exclude=exclude)
    expected_scores, expected_rows = by_sorting(queries, items, k, exclude)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_random_unit_vectors_in_several_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.search._SCORES", 1000)  # 3 queries at a time
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(20, 16)), rng.normal(size=(1000, 16))
    scores, rows = top_k(queries, items, 10, block_items=300)
    whole = queries @ items.T
    np.testing.assert_array_equal(rows, np.argsort(-whole, axis=1)[:, :10])
    np.testing.assert_allclose(scores, -np.sort(-whole, axis=1)[:, :10], rtol=1e-5)


def test_every_item_the_same() -> None:
    _, rows = top_k(np.ones((2, 4), np.float32), np.ones((500, 4), np.float32), 7, block_items=64)
    np.testing.assert_array_equal(rows, [range(7)] * 2)


@pytest.mark.parametrize("n_queries", [1, 2, 7, 64])
def test_duplicate_items_tie_whatever_the_blocks(n_queries: int) -> None:
    rng = np.random.default_rng(3)
    items = rng.normal(size=(1000, 384)).astype(np.float32)
    copies = np.sort(rng.choice(1000, 200, replace=False))
    items[copies] = items[copies[0]]
    queries = items[copies[:1]] + rng.normal(scale=0.1, size=(n_queries, 384))
    scores, rows = top_k(queries, items, 200, block_items=997)
    np.testing.assert_array_equal(rows, [copies] * n_queries)
    assert (scores == scores[:, :1]).all()


def test_each_block_better_than_the_last() -> None:
    items = np.arange(1000, dtype=np.float32)[:, None]
    _, rows = top_k(np.array([[1.0], [-1.0]]), items, 3, block_items=100)
    np.testing.assert_array_equal(rows, [[999, 998, 997], [0, 1, 2]])


def test_memory_map_and_progress(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = rng.normal(size=(300, 8)).astype(np.float16)
    np.save(tmp_path / "items.npy", items)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    told: list[tuple[int, int]] = []
    mapped = np.load(tmp_path / "items.npy", mmap_mode="r")
    found = top_k(
        queries, mapped, 4, block_items=128, progress=lambda done, total: told.append((done, total))
    )
    for ours, expected in zip(found, top_k(queries, items, 4), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert told == [(500, 1500), (1000, 1500), (1500, 1500)]


def test_the_score_matrix_is_never_whole() -> None:
    """400 queries x 200,000 items are 320 MB of scores; the search may take half of that."""
    rng = np.random.default_rng(2)
    queries = rng.normal(size=(400, 8)).astype(np.float32)
    items = rng.normal(size=(200_000, 8)).astype(np.float16)
    tracemalloc.start()
    try:
        top_k(queries, items, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160e6


def test_nothing_to_search() -> None:
    scores, rows = top_k(np.zeros((3, 4), np.float32), np.zeros((0, 4), np.float32), 5)
    assert scores.shape == rows.shape == (3, 0)
    scores, rows = top_k(np.zeros((0, 4), np.float32), np.zeros((9, 4), np.float32), 5)
    assert scores.shape == rows.shape == (0, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_embeddings_are_refused(value: float) -> None:
    good, bad = np.ones((40, 4), np.float32), np.ones((40, 4), np.float32)
    bad[33, 2] = value
    with pytest.raises(InputError, match="item row 33"):
        top_k(good, bad, 5, block_items=10)
    with pytest.raises(InputError, match="query row 33"):
        top_k(bad, good, 5)


def test_too_large_for_float32_is_refused() -> None:
    with pytest.raises(InputError, match="item row 1"), np.errstate(over="ignore"):
        top_k(np.ones((1, 1)), np.array([[1.0], [1e60]]), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"items": np.ones((5, 3))}, "4 dimensions, items 3"),
        ({"items": np.ones((5, 4), int)}, "int64"),
        ({"queries": np.ones(4)}, r"queries is float64\[4\]"),
        ({"exclude": np.zeros((3, 1), int)}, "exclude"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"queries": np.ones((2, 4)), "items": np.ones((5, 4)), "k": 2}
    with pytest.raises(InputError, match=message):
        top_k(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_rows": np.zeros((1, 2), int)}, "item_rows has shape"),
        ({"scores": np.zeros((2, 3), np.float32)}, "scores has shape"),
        ({"queries": ["a", "a"]}, "'a' is 2 times"),
        ({"item_rows": np.array([[0, 1], [2, 2]])}, "'b' has an item twice"),
        ({"item_rows": np.array([[0, -1], [1, 2]])}, "'a' has an item without a score"),
        ({"scores": np.array([[1, 0], [0, 1]], np.float32)}, "'b' has a better score after"),
        ({"scores": np.array([[1, 0], [np.nan, 0]], np.float32)}, "'b' has an item without"),
    ],
)
def test_a_run_that_cannot_be(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "queries": ["a", "b"],
        "item_rows": np.array([[0, 1], [2, 0]]),
        "scores": np.array([[1, 0.5], [1, 1]], np.float32),
    }
    Run(**good)
    with pytest.raises(InputError, match=message):
        Run(**{**good, **change})
