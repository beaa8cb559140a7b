"""Partitioned search against NumPy: recall, the contract of every index, and its ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.index.item_index import EMPTY_ID, FLOOR_SCORE
from serving.index.partitioned import PartitionedIndex
from towers.errors import InputError


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _clustered(count: int, width: int = 32, seed: int = 0) -> np.ndarray:
    """Like text embeddings: crowded around topics of unequal size."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(60, width))
    share = rng.dirichlet(np.full(60, 0.5))
    return _unit(topics[rng.choice(60, count, p=share)] + 0.7 * rng.normal(size=(count, width)))


def _rows(index: PartitionedIndex, queries: np.ndarray, **options: Any) -> np.ndarray:
    return index(tf.constant(queries), **options)[1].numpy().astype(int)


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    return _clustered(5_000)


@pytest.fixture(scope="module")
def queries(items: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return _unit(items[rng.integers(len(items), size=100)] + 0.1 * rng.normal(size=(100, 32)))


def test_most_of_the_exact_answer_for_a_tenth_of_the_items(
    items: np.ndarray, queries: np.ndarray
) -> None:
    index = PartitionedIndex(10).index(items)
    assert index.parameters == {"partitions": 280, "partitions_to_search": 28}
    exact = queries @ items.T
    best = np.argsort(-exact, axis=1)[:, :10]
    found = _rows(index, queries)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)]) > 0.9
    scores = index(tf.constant(queries))[0].numpy()
    np.testing.assert_allclose(scores, np.take_along_axis(exact, found, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_all_partitions_are_exact_search(items: np.ndarray, queries: np.ndarray) -> None:
    index = PartitionedIndex(10, partitions=50, partitions_to_search=50).index(items)
    best = np.argsort(-(queries @ items.T), axis=1)[:, :10]
    np.testing.assert_array_equal(_rows(index, queries), best)


@settings(deadline=None, max_examples=40)
@given(
    items=st.integers(1, 40),
    queries=st.integers(0, 4),
    k=st.integers(1, 60),
    partitions=st.integers(1, 50),
    searched=st.integers(1, 50),
    values=st.sampled_from([1, 3]),
)
def test_always_k_where_k_exist_and_none_twice(
    items: int, queries: int, k: int, partitions: int, searched: int, values: int
) -> None:
    # Small integers: many items and many scores are equal, some embeddings are zero.
    rng = np.random.default_rng(items * 1000 + queries * 100 + k)
    embeddings = rng.integers(-values, values + 1, size=(items, 3)).astype(np.float32)
    asked = rng.integers(-values, values + 1, size=(queries, 3)).astype(np.float32)
    index = PartitionedIndex(k, partitions=partitions, partitions_to_search=searched)
    scores, ids = index.index(embeddings)(tf.constant(asked))
    width = min(k, items)
    assert scores.shape == ids.shape == (queries, k)
    rows = ids.numpy()[:, :width].astype(int)
    assert all(len(set(row)) == width for row in rows.tolist())
    exact = asked @ embeddings.T
    np.testing.assert_array_equal(
        scores.numpy()[:, :width], np.take_along_axis(exact, rows, axis=1)
    )
    assert (scores.numpy()[:, width:] == FLOOR_SCORE).all()
    assert (ids.numpy()[:, width:] == EMPTY_ID.encode()).all()
    if index.partitions_to_search == index.partitions or k >= items:
        np.testing.assert_array_equal(
            scores.numpy()[:, :width], -np.sort(-exact, axis=1)[:, :width]
        )


def test_equal_items_are_all_found() -> None:
    # 300 copies of one item and one other: k-means finds two partitions at most.
    embeddings = _unit(np.array([[1.0, 0.0]] * 300 + [[0.0, 1.0]]))
    index = PartitionedIndex(5).index(embeddings)
    assert index.partitions <= 2
    rows = _rows(index, embeddings[:1], k=301)[0]
    assert sorted(rows.tolist()) == list(range(301))
    assert rows[-1] == 300


def test_exclusions_and_embeddings(items: np.ndarray, queries: np.ndarray) -> None:
    index = PartitionedIndex(3, partitions_to_search=280).index(items)
    best = np.argsort(-(queries[:2] @ items.T), axis=1)
    _, ids = index.query_with_exclusions(tf.constant(queries[:2]), best[:, [0, 2]].astype(str))
    np.testing.assert_array_equal(ids.numpy().astype(int), best[:, [1, 3, 4]])
    np.testing.assert_array_equal(index.embeddings_at(tf.constant([7, 0])), items[[7, 0]])
    np.testing.assert_allclose(
        index.scores(tf.constant(queries[:3])), queries[:3] @ items.T, atol=1e-5
    )


def test_saved_and_loaded_without_ops_of_others(
    items: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    index = PartitionedIndex(4).index(items)
    module = tf.Module()
    module.tensors = index.trackables
    module.search = tf.function(
        lambda query: dict(zip(("scores", "item_ids"), index.call(query), strict=True)),
        input_signature=[tf.TensorSpec([None, 32], tf.float32, "query")],
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    answer = loaded.search(tf.constant(queries))
    np.testing.assert_array_equal(answer["item_ids"].numpy().astype(int), _rows(index, queries))
    assert loaded.search(tf.zeros([0, 32]))["item_ids"].shape == (0, 4)


def test_the_same_items_give_the_same_index(items: np.ndarray, queries: np.ndarray) -> None:
    answers = [_rows(PartitionedIndex(10).index(items), queries) for _ in range(2)]
    np.testing.assert_array_equal(*answers)


def test_bad_input() -> None:
    index = PartitionedIndex(3)
    with pytest.raises(ValueError, match="call `index` first"):
        index(tf.zeros([1, 2]))
    with pytest.raises(InputError, match="not finite"):
        index.index(np.full((2, 2), np.nan, np.float32))
