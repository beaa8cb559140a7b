"""Exact search: every item is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from serving.index.item_index import ItemIndex

_BLOCK = 65_536  # items
_MAX_SCORES = 1 << 24  # held at a time: 64 MiB


class ExactIndex(ItemIndex):
    """Matrix product and top-k, made of TensorFlow's own ops: an unmodified TF Serving loads it.

    Of items with equal scores the one indexed first comes first. Scores are taken for some queries
    and some items at a time, so that a large batch over a large catalogue never needs the whole
    score matrix.

    Args:
        k: see `ItemIndex`.
        query_model: see `ItemIndex`.
        name: see `ItemIndex`.

    Example:
        >>> index = ExactIndex(k=2).index([[1.0, 0.0], [0.0, 1.0]], ["mug", "rake"])
        >>> index(tf.constant([[0.6, 0.8]]))[1]
        <tf.Tensor: shape=(1, 2), dtype=string, numpy=array([[b'rake', b'mug']], dtype=object)>
    """

    kind = "exact"

    def __init__(self, k: int = 10, **kwargs: Any) -> None:
        super().__init__(k, **kwargs)
        self._embeddings: tf.Variable | None = None

    @property
    def parameters(self) -> dict[str, int]:
        """Nothing: there is nothing to tune."""
        return {}

    def is_exact(self) -> bool:
        """True."""
        return True

    @property
    def trackables(self) -> list[Any]:
        """See `ItemIndex`."""
        return [self._identifiers, self._embeddings]

    def embeddings_at(self, rows: tf.Tensor) -> tf.Tensor:
        """See `ItemIndex`."""
        return tf.gather(tf.convert_to_tensor(self._embeddings), rows)

    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """Dot products with all items: float32 ``[Q, d]`` to ``[Q, N]``."""
        return tf.matmul(queries, tf.convert_to_tensor(self._embeddings), transpose_b=True)

    def _build(self, embeddings: np.ndarray) -> None:
        self._embeddings = tf.Variable(embeddings, trainable=False, name="item_embeddings")

    def _search(self, queries: tf.Tensor, k: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        items = tf.convert_to_tensor(self._embeddings)
        count = int(items.shape[0])
        step = max(1, _MAX_SCORES // min(count, _BLOCK))

        def more(
            start: tf.Tensor, scores: tf.Tensor, rows: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            found = _best(queries[start : start + step], items, k)
            scores = tf.concat([scores, found[0]], axis=0)
            return start + step, scores, tf.concat([rows, found[1]], axis=0)

        total = tf.shape(queries)[0]
        nothing = [0, tf.minimum(k, count)]
        _, scores, rows = _loop(
            lambda start, *_: start < total, more, tf.zeros(nothing), tf.zeros(nothing, tf.int32)
        )
        return scores, rows


def _best(queries: tf.Tensor, items: tf.Tensor, k: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best items of each query: scores float32 and rows int32, ``[Q, min(k, N)]``."""
    count = int(items.shape[0])

    def best_so_far(
        start: tf.Tensor, scores: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        block = items[start : start + _BLOCK]
        block_scores = tf.matmul(queries, block, transpose_b=True)  # [Q, block]
        block_scores, block_rows = tf.math.top_k(block_scores, tf.minimum(k, tf.shape(block)[0]))
        # top_k keeps the order of equal scores, and earlier rows stand first.
        scores = tf.concat([scores, block_scores], axis=1)
        rows = tf.concat([rows, block_rows + start], axis=1)
        scores, places = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
        return start + _BLOCK, scores, tf.gather(rows, places, batch_dims=1)

    nothing = [tf.shape(queries)[0], 0]
    _, scores, rows = _loop(
        lambda start, *_: start < count,
        best_so_far,
        tf.zeros(nothing),
        tf.zeros(nothing, tf.int32),
    )
    return scores, rows


def _loop(
    goes_on: Callable[..., tf.Tensor],
    body: Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]],
    scores: tf.Tensor,
    rows: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A loop from row 0 over scores and rows that grow."""
    return tf.while_loop(
        goes_on,
        body,
        (tf.constant(0), scores, rows),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, None]),
            tf.TensorShape([None, None]),
        ),
        parallel_iterations=1,  # more would hold more than one block's scores
    )
