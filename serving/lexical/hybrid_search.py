"""Search by meaning and by words at once: exact index and lexical index behind one call."""

from __future__ import annotations

import tensorflow as tf

from serving.index.exact import ExactIndex
from serving.lexical.fusion import fuse, fused_top_k
from serving.lexical.lexical_index import LexicalIndex
from towers.errors import InputError


class HybridSearch(tf.Module):
    """The k items with the best fused scores of a query.

    Every item has both scores, so the index is the exact one; the answers keep its contract: always
    `k` wide, padded with empty ids, ties to the item indexed first.

    Args:
        index: the items' embeddings and ids.
        lexical: the words of the same items, in the same order.
        weight: of the lexical score, above 0 and at most 1; see `fuse`.

    Raises:
        InputError: the two do not hold the same number of items, or a weight out of its range.
    """

    def __init__(self, index: ExactIndex, lexical: LexicalIndex, weight: float) -> None:
        super().__init__(name="hybrid_search")
        if lexical.item_count != index.item_count:
            raise InputError(
                f"the lexical index holds {lexical.item_count} items, the exact one "
                f"{index.item_count}"
            )
        if not 0 < weight <= 1:
            raise InputError(f"the lexical weight must be above 0 and at most 1, not {weight}")
        self._lexical = lexical
        self._weight = weight
        # As functions: the index is a Keras layer, which would be saved with functions of its own.
        self._dense_scores, self._answers = index.scores, index.answers
        self._item_count, self._k = index.item_count, index.k

    def scores(
        self, queries: tf.Tensor, embeddings: tf.Tensor, best: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Fused scores of all items: string ``[N]`` and float32 ``[N, d]`` to ``[N, items]``."""
        words = self._lexical.scores(queries)
        return fuse(self._dense_scores(embeddings), words, self._weight, best)

    def lexical_best(self, queries: tf.Tensor) -> tf.Tensor:
        """The highest BM25 of any item for each query: string ``[N]`` to float32 ``[N]``."""
        return self._lexical.best(queries)

    def __call__(
        self, queries: tf.Tensor, embeddings: tf.Tensor, best: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches.

        Args:
            queries: string ``[N]``.
            embeddings: float32 ``[N, d]``, theirs.
            best: float32 ``[N]``, where the items are a part of a catalogue: the highest BM25 of
                any item of it.

        Returns:
            Scores, float32 ``[N, k]``, and item ids, string ``[N, k]``.
        """
        scores, rows = fused_top_k(
            queries,
            embeddings,
            dense_scores=self._dense_scores,
            lexical_scores=self._lexical.scores,
            item_count=self._item_count,
            weight=self._weight,
            k=self._k,
            best=best,
        )
        return self._answers(scores, rows, self._k)
