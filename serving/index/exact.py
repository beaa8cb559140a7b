"""Exact search: every item is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from serving.index.exhaustive import best_items
from serving.index.item_index import ItemIndex
from towers.even_columns import even_columns


class ExactIndex(ItemIndex):
    """Matrix product and top-k, made of TensorFlow's own ops: an unmodified TF Serving loads it.

    Of items with equal scores the one indexed first comes first. Queries are taken some at a time,
    so that a large batch over a large catalogue never needs the whole score matrix.

    Embeddings are stored in columns, ``[d, N]`` and a few of zeros: for the one query of a request
    the product takes less than half of the time that it takes with items in rows
    (docs/benchmarks.md).

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
        return tf.transpose(tf.gather(tf.convert_to_tensor(self._embeddings), rows, axis=1))

    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """See `ItemIndex`."""
        scores = tf.matmul(queries, tf.convert_to_tensor(self._embeddings))
        return scores[:, : self.item_count]

    def _build(self, embeddings: np.ndarray) -> None:
        columns = even_columns(embeddings)  # [d, M]
        self._embeddings = tf.Variable(columns, trainable=False, name="item_embeddings")

    def _search(self, queries: tf.Tensor, k: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return best_items(
            lambda part: self.scores(queries[part]),
            query_count=tf.shape(queries)[0],
            item_count=self.item_count,
            k=k,
        )
