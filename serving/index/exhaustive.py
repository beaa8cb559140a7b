"""Search that scores every item, with bounds on the memory it takes."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_MAX_SCORES = 1 << 24  # held at a time: 64 MiB a matrix


def best_items(
    scores_of: Callable[[slice], tf.Tensor],
    *,
    query_count: int | tf.Tensor,
    item_count: int,
    k: int | tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k items with the best scores, however many queries there are.

    Queries are taken some at a time, so that a large batch over a large catalogue never needs the
    whole score matrix. Of items with equal scores the one with the lower row comes first.

    Args:
        scores_of: from a slice of the queries, ``n`` of them, to their scores, float32
            ``[n, items]``.
        query_count: number of queries, N.
        item_count: number of items.
        k: results for each query.

    Returns:
        Scores float32 and rows int32, ``[N, min(k, items)]``, best first.
    """
    width = tf.minimum(k, item_count)
    step = max(1, _MAX_SCORES // item_count)

    def more(
        start: tf.Tensor, scores: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        found = tf.math.top_k(scores_of(slice(start, start + step)), width)  # keeps the order
        scores = tf.concat([scores, found.values], axis=0)
        return start + step, scores, tf.concat([rows, found.indices], axis=0)

    grows = tf.TensorShape([None, min(k, item_count) if isinstance(k, int) else None])
    _, scores, rows = tf.while_loop(
        lambda start, *_: start < query_count,
        more,
        (tf.constant(0), tf.zeros([0, width]), tf.zeros([0, width], tf.int32)),
        shape_invariants=(tf.TensorShape([]), grows, grows),
        parallel_iterations=1,  # more would hold more scores
    )
    return scores, rows
