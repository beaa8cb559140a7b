"""Inverted lists in the graph."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class Postings(tf.Module):
    """For each key a list of (column, value) pairs, as a sparse matrix in CSR form.

    Args:
        keys: integer ``[P]``, the key of each entry, from 0.
        columns: integer ``[P]``, the column of each entry, from 0.
        values: float ``[P]``.
        key_count: number of keys.
        column_count: number of columns.
    """

    def __init__(
        self,
        keys: np.ndarray,
        columns: np.ndarray,
        values: np.ndarray,
        *,
        key_count: int,
        column_count: int,
    ) -> None:
        super().__init__(name="postings")
        self.column_count = column_count
        order = np.lexsort((columns, keys))
        ends = np.cumsum(np.bincount(keys, minlength=key_count))
        self._offsets = _constant(np.concatenate([[0], ends]), np.int32)  # [keys + 1]
        self._columns = _constant(columns[order], np.int32)  # [P]
        self._values = _constant(values[order], np.float32)  # [P]

    def __len__(self) -> int:
        """Returns the number of entries."""
        return int(self._columns.shape[0])

    def weighted_sum(self, keys: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """The lists of some keys, each times its weight, added up by column.

        Args:
            keys: int32 ``[M]``; a key may come more than once.
            weights: float32 ``[M]``.

        Returns:
            float32 ``[column_count]``.
        """
        # Read before gathering: a variable that has been gathered from is copied at every read.
        offsets = tf.convert_to_tensor(self._offsets)
        starts, ends = tf.gather(offsets, keys), tf.gather(offsets, keys + 1)
        places = tf.ragged.range(starts, ends).flat_values  # [entries of all keys]
        values = tf.gather(tf.convert_to_tensor(self._values), places)
        values *= tf.repeat(weights, ends - starts)
        columns = tf.gather(tf.convert_to_tensor(self._columns), places)
        return tf.math.unsorted_segment_sum(values, columns, self.column_count)


def _constant(array: np.ndarray, dtype: type) -> tf.Variable:
    return tf.Variable(array.astype(dtype), trainable=False)
