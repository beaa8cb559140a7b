"""What is ScaNN's own: sizes, recall, tuning, determinism, and freeing its searcher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.index.exact import ExactIndex
from serving.index.item_index import FLOOR_SCORE
from serving.index.scann import ScannIndex

WIDTH = 32


def _clustered(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(200, WIDTH))
    x = centres[rng.integers(200, size=count)] + rng.normal(size=(count, WIDTH))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return _clustered(25_000)


@pytest.fixture(scope="module")
def hashed(embeddings: np.ndarray) -> ScannIndex:
    index = ScannIndex(10)
    index.index(embeddings)
    return index


def test_sizes_follow_the_guidance(hashed: ScannIndex) -> None:
    assert hashed.parameters == {
        "leaves": 0,
        "leaves_to_search": 0,
        "reorder": 200,
        "dimensions_per_block": 2,
    }
    small = ScannIndex(10)
    small.index(_clustered(100))
    assert small.parameters == {
        "leaves": 0,
        "leaves_to_search": 0,
        "reorder": 0,
        "dimensions_per_block": 0,
    }
    assert not small.hashed
    assert hashed.hashed


@pytest.mark.parametrize(("count", "leaves"), [(1, 3), (5, 100), (16, 100), (100, 30)])
def test_never_more_leaves_than_items(count: int, leaves: int) -> None:
    index = ScannIndex(3, leaves=leaves, leaves_to_search=leaves)
    index.index(_clustered(count))
    assert index.leaves == (min(count, leaves) if count >= 16 else 0)
    scores, ids = index(tf.constant(_clustered(count)[:1]))
    assert ids[:, 0].numpy().tolist() == [b"0"]
    np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-6)


def test_results_are_nearly_those_of_exact_search(
    hashed: ScannIndex, embeddings: np.ndarray
) -> None:
    queries = _clustered(64, seed=1)
    expected = queries @ embeddings.T  # NumPy
    scores, ids = hashed(tf.constant(queries))
    rows = ids.numpy().astype(int)
    # The scores are true ones, so only membership can differ.
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, axis=1), atol=1e-5)
    best = np.argsort(-expected, axis=1)[:, :10]
    overlap = [len(set(a) & set(b)) / 10 for a, b in zip(rows, best, strict=True)]
    assert np.mean(overlap) >= 0.95


def test_k_above_the_reorder_count_is_not_cut_short(embeddings: np.ndarray) -> None:
    index = ScannIndex(10, reorder=10)
    index.index(embeddings)
    scores, ids = index(tf.constant(embeddings[:3]), k=500)
    assert ids.shape == (3, 500)
    for row in ids.numpy():
        assert len(set(row)) == 500
        assert b"" not in row
    assert np.all(scores.numpy() > FLOOR_SCORE)


def test_short_rows_of_a_batch_hold_no_phantom() -> None:
    # One leaf searched of many: rows of different widths, which ScaNN fills with index 0 and NaN.
    index = ScannIndex(50, leaves=40, leaves_to_search=1)
    index.index(_clustered(1000))
    scores, ids = index(tf.constant(_clustered(30, seed=1)))
    widths = set()
    for row_scores, row in zip(scores.numpy(), ids.numpy().tolist(), strict=True):
        width = sum(item != b"" for item in row)
        widths.add(width)
        assert len(set(row[:width])) == width
        assert row[width:] == [b""] * (50 - width)
        assert np.all(row_scores[:width] > FLOOR_SCORE)
        assert np.all(row_scores[width:] == FLOOR_SCORE)
    assert len(widths) > 1


def test_float64_and_float16_queries(hashed: ScannIndex, embeddings: np.ndarray) -> None:
    expected = hashed.call(embeddings[:2])[1].numpy().tolist()
    for dtype in (np.float64, np.float16):
        assert hashed.call(embeddings[:2].astype(dtype))[1].numpy()[:, 0].tolist() == [
            row[0] for row in expected
        ]


def test_building_twice_gives_the_same_index(hashed: ScannIndex, embeddings: np.ndarray) -> None:
    again = ScannIndex(10)
    again.index(embeddings)
    queries = tf.constant(_clustered(50, seed=2))
    np.testing.assert_array_equal(hashed(queries)[1].numpy(), again(queries)[1].numpy())


def test_two_indexes_in_one_process_do_not_mix() -> None:
    one, other = ScannIndex(1), ScannIndex(1)
    one.index(_clustered(50), [f"one {i}" for i in range(50)])
    other.index(_clustered(50)[::-1], [f"other {i}" for i in range(50)])
    for _ in range(2):
        assert one(tf.constant(_clustered(50)[:1]))[1].numpy().tolist() == [[b"one 0"]]
        assert other(tf.constant(_clustered(50)[:1]))[1].numpy().tolist() == [[b"other 49"]]


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_release_frees_the_searcher_and_search_makes_a_new_one(
    hashed: ScannIndex, embeddings: np.ndarray
) -> None:
    query = tf.constant(embeddings[:1])
    first = hashed(query)[1].numpy()
    held = _resident_mib()
    for _ in range(20):  # a searcher of this size takes 3.5 MiB
        hashed.release()
        np.testing.assert_array_equal(hashed(query)[1].numpy(), first)
    assert _resident_mib() < held + 35


def test_agrees_with_the_exact_index_on_a_small_catalogue() -> None:
    items, queries = _clustered(300), tf.constant(_clustered(20, seed=1))
    exact, scann = ExactIndex(7), ScannIndex(7)
    exact.index(items)
    scann.index(items)
    for got, expected in zip(scann(queries), exact(queries), strict=True):
        if got.dtype == tf.string:
            np.testing.assert_array_equal(got.numpy(), expected.numpy())
        else:
            np.testing.assert_allclose(got, expected, atol=1e-6)
