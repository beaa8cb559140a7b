"""One score from two: the towers' cosine and BM25."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from serving.index.exhaustive import best_items

DEFAULT_WEIGHT = 0.6
"""Of the lexical score where queries repeat the words of titles; see docs/lexical.md."""


def fuse(
    dense: tf.Tensor,
    lexical: tf.Tensor,
    weight: float | tf.Tensor,
    best: tf.Tensor | None = None,
) -> tf.Tensor:
    """Weighted sum of cosine and BM25, BM25 divided by the query's best.

    ``(1 - weight) * dense + weight * lexical / max(lexical)``: scores of both kinds end at 1,
    stay comparable between queries, and are finite whatever the query. Where no word of a query
    is known, the dense order remains.

    Args:
        dense: float32 ``[N, items]``, cosines.
        lexical: float32 ``[N, items]``, 0 or more.
        weight: from 0 (the dense scores, bit for bit) to 1 (lexical alone).
        best: see `normalised`.

    Returns:
        float32 ``[N, items]``.
    """
    return (1.0 - weight) * dense + weight * normalised(lexical, best)


def normalised(lexical: tf.Tensor, best: tf.Tensor | None = None) -> tf.Tensor:
    """BM25 divided by the query's best, 0 where no item has a score.

    Args:
        lexical: float32 ``[N, items]``, 0 or more.
        best: float32 ``[N]``, where the items are a part of a catalogue: the best of all of it.

    Returns:
        float32 ``[N, items]``.
    """
    if best is None:
        best = tf.reduce_max(lexical, axis=1)  # [N]
    return tf.math.divide_no_nan(lexical, best[:, None])


def fused_top_k(
    queries: tf.Tensor,
    embeddings: tf.Tensor,
    *,
    dense_scores: Callable[[tf.Tensor], tf.Tensor],
    lexical_scores: Callable[[tf.Tensor], tf.Tensor],
    item_count: int,
    weight: float | tf.Tensor,
    k: int,
    best: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k items with the best fused scores, however many queries there are; see `best_items`.

    Args:
        queries: string ``[N]``.
        embeddings: float32 ``[N, d]``, theirs.
        dense_scores: from embeddings ``[n, d]`` to cosines with all items, float32 ``[n, items]``.
        lexical_scores: from queries ``[n]`` to `LexicalIndex.scores`.
        item_count: number of items.
        weight: see `fuse`.
        k: results for each query.
        best: float32 ``[N]``; see `normalised`.

    Returns:
        Scores float32 and rows int32, ``[N, min(k, items)]``, best first.
    """
    return best_items(
        lambda part: fuse(
            dense_scores(embeddings[part]),
            lexical_scores(queries[part]),
            weight,
            None if best is None else best[part],
        ),
        query_count=tf.shape(queries)[0],
        item_count=item_count,
        k=k,
    )
