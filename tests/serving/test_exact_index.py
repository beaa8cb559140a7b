"""Exact index against NumPy, and the contract that every index keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.index.exhaustive
from serving.index.exact import ExactIndex
from serving.index.item_index import EMPTY_ID, FLOOR_SCORE, ItemIndex
from serving.index.scann import ScannIndex
from towers.errors import InputError

tfrs = pytest.importorskip("tensorflow_recommenders")

INDEXES = [ExactIndex, ScannIndex]
_REPOSITORY = Path(__file__).parents[2]


def _vectors(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _ids(count: int) -> list[str]:
    return [f"item {row}" for row in range(count)]


def _answer(index: ItemIndex, queries: np.ndarray, **kwargs: Any) -> tuple[np.ndarray, list]:
    scores, ids = index(tf.constant(queries), **kwargs)
    return scores.numpy(), [[item.decode() for item in row] for row in ids.numpy()]


@settings(deadline=None, max_examples=40)
@given(
    items=st.integers(1, 40),
    queries=st.integers(0, 5),
    k=st.integers(1, 60),
    held=st.sampled_from([1, 14, 1000]),
)
def test_equals_a_stable_sort(items: int, queries: int, k: int, held: int) -> None:
    # Small integers: products are exact in any order of summation, and ties are many.
    rng = np.random.default_rng(items * 1000 + queries * 100 + k)
    embeddings = rng.integers(-2, 3, size=(items, 4)).astype(np.float32)
    asked = rng.integers(-2, 3, size=(queries, 4)).astype(np.float32)
    expected = asked @ embeddings.T
    order = np.argsort(-expected, axis=1, kind="stable")[:, :k]  # ties: the lower row first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.index.exhaustive, "_MAX_SCORES", held)
        scores, ids = _answer(ExactIndex(k).index(embeddings, _ids(items)), asked)
    width = min(k, items)
    assert scores.shape == (queries, k)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores[:, :width], np.take_along_axis(expected, order, axis=1))
    assert [row[:width] for row in ids] == [[f"item {i}" for i in row] for row in order]
    assert np.all(scores[:, width:] == FLOOR_SCORE)
    assert all(item == EMPTY_ID for row in ids for item in row[width:])


_PEAK = """
import resource
import numpy as np
import tensorflow as tf
from serving.index.exact import ExactIndex

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB

index = ExactIndex(10).index(np.ones((60_000, 2), np.float32))
search = tf.function(index.call)
search(tf.ones([1, 2]))
before = peak()
search(tf.ones([5_000, 2]))
print(peak() - before)
"""


def test_many_queries_do_not_take_memory_for_all_their_scores() -> None:
    # All scores of 5,000 queries and 60,000 items are 1,144 MiB.
    run = subprocess.run(
        [sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True, cwd=_REPOSITORY
    )
    assert float(run.stdout) < 300


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("count", [1, 3, 100])
def test_fixed_width_whatever_the_catalogue(kind: type[ItemIndex], count: int) -> None:
    index = kind(10).index(_vectors(count), _ids(count))
    assert index.item_count == count
    assert index.embedding_dim == 8
    assert index.k == 10
    for batch in (0, 1, 5):
        scores, ids = _answer(index, _vectors(batch, seed=1))
        assert scores.shape == (batch, 10)
        assert [len(row) for row in ids] == [10] * batch
        for row_scores, row in zip(scores, ids, strict=True):
            found = min(count, 10)
            assert len(set(row[:found])) == found
            assert EMPTY_ID not in row[:found]
            assert row[found:] == [EMPTY_ID] * (10 - found)
            assert np.all(np.diff(row_scores) <= 0)
            assert np.all(np.isfinite(row_scores))
            assert np.all(row_scores[found:] == FLOOR_SCORE)


@pytest.mark.parametrize("kind", INDEXES)
def test_k_of_the_call_wins(kind: type[ItemIndex]) -> None:
    index = kind(3).index(_vectors(50), _ids(50))
    wide, ids = _answer(index, _vectors(2, seed=1), k=60)
    narrow, narrow_ids = _answer(index, _vectors(2, seed=1))
    assert wide.shape == (2, 60)
    np.testing.assert_allclose(wide[:, :3], narrow, rtol=1e-6)
    assert [row[:3] for row in ids] == narrow_ids


@pytest.mark.parametrize("kind", INDEXES)
def test_static_shapes_in_a_graph(kind: type[ItemIndex]) -> None:
    index = kind(4).index(_vectors(9), _ids(9))
    search = tf.function(index.call, input_signature=[tf.TensorSpec([None, 8], tf.float32)])
    scores, ids = search.get_concrete_function().structured_outputs
    assert scores.shape.as_list() == ids.shape.as_list() == [None, 4]


@pytest.mark.parametrize("kind", INDEXES)
def test_exclusions_leave_the_rest_in_order(kind: type[ItemIndex]) -> None:
    embeddings, queries = _vectors(12), _vectors(3, seed=1)
    index = kind(10).index(embeddings, _ids(12))
    order = np.argsort(-(queries @ embeddings.T), axis=1, kind="stable")
    excluded = [[f"item {row[0]}", f"item {row[4]}", "unknown", ""] for row in order]
    expected = [[f"item {i}" for i in np.delete(row, [0, 4])] for row in order]
    scores, ids = index.query_with_exclusions(tf.constant(queries), tf.constant(excluded))
    assert [[item.decode() for item in row] for row in ids.numpy()] == expected
    assert np.all(np.diff(scores.numpy()) <= 0)


@pytest.mark.parametrize("kind", INDEXES)
def test_an_excluded_item_never_comes_back(kind: type[ItemIndex]) -> None:
    index = kind(3).index(_vectors(3), _ids(3))
    scores, ids = index.query_with_exclusions(
        tf.constant(_vectors(1, seed=1)), tf.constant([["item 0", "item 2"]])
    )
    assert ids.numpy().tolist() == [[b"item 1", b"", b""]]
    assert scores.numpy()[0, 1:].tolist() == [FLOOR_SCORE, FLOOR_SCORE]


@pytest.mark.parametrize("kind", INDEXES)
def test_plugs_into_the_tfrs_metric(kind: type[ItemIndex]) -> None:
    embeddings = _vectors(40)
    index = kind(5).index(embeddings, _ids(40))
    metric = tfrs.metrics.FactorizedTopK(index, ks=(1, 5))
    metric.update_state(embeddings[:4], embeddings[:4], tf.constant(_ids(4)))
    assert [float(value) for value in metric.result()] == [1.0, 1.0]


def test_tfrs_scores_without_ids_need_an_exact_index() -> None:
    embeddings = _vectors(40)
    metric = tfrs.metrics.FactorizedTopK(ExactIndex(5).index(embeddings), ks=(5,))
    metric.update_state(embeddings[:4], embeddings[:4])
    assert float(metric.result()[0]) == 1.0


def test_index_from_a_dataset_and_a_query_model() -> None:
    data = tf.data.Dataset.from_tensor_slices((_ids(20), _vectors(20))).batch(7)
    index = ExactIndex(1, query_model=lambda rows: tf.gather(_vectors(20), rows))
    index.index_from_dataset(data)
    assert _answer(index, np.array([3, 11]))[1] == [["item 3"], ["item 11"]]


@pytest.mark.parametrize("kind", INDEXES)
def test_rows_are_the_ids_where_none_are_given(kind: type[ItemIndex]) -> None:
    index = kind(1).index(_vectors(5))
    assert _answer(index, _vectors(5))[1] == [["0"], ["1"], ["2"], ["3"], ["4"]]


@pytest.mark.parametrize("kind", INDEXES)
def test_indexing_again_drops_what_was_there(kind: type[ItemIndex]) -> None:
    index = kind(2).index(_vectors(50), _ids(50))
    _answer(index, _vectors(1))
    index.index(_vectors(2, seed=3), ["a", "b"])
    scores, ids = _answer(index, _vectors(2, seed=3))
    assert [set(row) for row in ids] == [{"a", "b"}, {"a", "b"}]
    np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-6)


@pytest.mark.parametrize("kind", INDEXES)
def test_embeddings_at_rows(kind: type[ItemIndex]) -> None:
    index = kind(2).index(_vectors(50), _ids(50))
    np.testing.assert_array_equal(index.embeddings_at(tf.constant([4, 0])), _vectors(50)[[4, 0]])


def _with(value: float) -> np.ndarray:
    embeddings = _vectors(3)
    embeddings[1, 2] = value
    return embeddings


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize(
    ("embeddings", "ids", "message"),
    [
        (_vectors(0), [], "nothing to index"),
        (_vectors(3)[0], ["a", "b", "c"], "matrix"),
        (np.array([["x"]]), ["a"], "matrix"),
        (_with(np.nan), ["a", "b", "c"], "first in row 1"),
        (_with(-np.inf), ["a", "b", "c"], "first in row 1"),
        (_vectors(3), ["a", "b"], "shape"),
        (_vectors(3), ["a", "b", "a"], "'a' appears twice"),
        (_vectors(3), ["a", "", "c"], "row 1 is empty"),
        (_vectors(3), [1, 2, 3], "strings"),
    ],
)
def test_bad_items(kind: type[ItemIndex], embeddings: np.ndarray, ids: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(10).index(embeddings, ids)


@pytest.mark.parametrize("k", [0, -1, 2.5, "10", True])
def test_bad_k(k: Any) -> None:
    with pytest.raises(InputError, match="positive integer"):
        ExactIndex(k)


def test_bad_queries() -> None:
    index = ExactIndex()
    with pytest.raises(ValueError, match="call `index` first"):
        index.call(_vectors(1))
    index.index(_vectors(3))
    with pytest.raises(InputError, match="query embeddings"):
        index.call(_vectors(1)[0])


def test_a_nan_query_gets_an_empty_answer() -> None:
    index = ExactIndex(2).index(_vectors(3))
    scores, ids = _answer(index, np.full((1, 8), np.nan, np.float32))
    assert scores.tolist() == [[FLOOR_SCORE] * 2]
    assert ids == [["", ""]]
