"""An index without items, for a shard that none fell to."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from serving.index.exact import ExactIndex
from serving.index.item_index import EMPTY_ID


class EmptyIndex(ExactIndex):
    """Finds nothing: every place of every answer is empty.

    It has one row, so that what is made beside it (columns, words) has a shape to go by; its score
    is minus infinity, and its id that of an empty place.

    Args:
        k: see `ItemIndex`.
        embedding_dim: width of an embedding.
    """

    def __init__(self, k: int, embedding_dim: int) -> None:
        super().__init__(k)
        self._identifiers = tf.Variable([EMPTY_ID], trainable=False, name="item_ids")
        self._embedding_dim = embedding_dim
        self._build(np.zeros((1, embedding_dim), np.float32))

    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """See `ItemIndex`."""
        return tf.fill([tf.shape(queries)[0], 1], -np.inf)

    def index(self, candidates: Any, identifiers: Any = None) -> ExactIndex:
        """Raises TypeError: there is nothing to index here."""
        raise TypeError("an EmptyIndex takes no items")
