from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from serving.index import exhaustive
from serving.lexical.fusion import fuse, fused_top_k


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    dense = rng.uniform(-1, 1, (7, 11)).astype(np.float32)
    lexical = np.maximum(rng.normal(0, 9, (7, 11)), 0).astype(np.float32)
    lexical[2] = 0
    return dense, lexical


def expected(dense: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    best = lexical.max(axis=1, keepdims=True)
    return (1 - weight) * dense + weight * lexical / np.where(best > 0, best, 1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_against_numpy(scores, weight):
    np.testing.assert_allclose(fuse(*scores, weight), expected(*scores, weight), atol=1e-6)


def test_weight_zero_changes_no_bit(scores):
    np.testing.assert_array_equal(fuse(*scores, 0.0), scores[0])


def test_without_a_known_word_the_dense_order_remains(scores):
    fused = fuse(*scores, 0.9).numpy()[2]
    np.testing.assert_array_equal(np.argsort(fused), np.argsort(scores[0][2]))


@pytest.mark.parametrize("queries", [0, 1, 7])
@pytest.mark.parametrize("k", [4, 50])
def test_top_k_in_steps(scores, monkeypatch, queries, k):
    monkeypatch.setattr(exhaustive, "_MAX_SCORES", 33)  # three queries at a time
    dense, lexical = (matrix[:queries] for matrix in scores)
    texts = [str(row) for row in range(queries)]
    values, rows = fused_top_k(
        tf.constant(texts, tf.string, [queries]),
        tf.constant(dense),
        dense_scores=lambda embeddings: embeddings,
        lexical_scores=lambda texts: tf.gather(
            tf.constant(lexical), tf.strings.to_number(texts, tf.int32)
        ),
        item_count=11,
        weight=0.5,
        k=k,
    )
    wanted = expected(dense, lexical, 0.5)
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(values, np.take_along_axis(wanted, order, 1), atol=1e-6)
