"""What the retrieval score says of a pair, in numbers that mean the same for every query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from towers.encoding import Progress
from training.lexical_weight import LexicalScorer, fused
from training.query_parts import query_parts


def score_features(
    queries: Sequence[str],
    query_vectors: np.ndarray,
    item_vectors: np.ndarray,
    query_row: np.ndarray,
    item_row: np.ndarray,
    *,
    lexical: LexicalScorer | None = None,
    lexical_weight: float = 0.0,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Features of pairs; none of them depends on how many items stand above.

    Args:
        queries: ``Q`` of them.
        query_vectors: float32 ``[Q, d]``, theirs.
        item_vectors: float32 ``[items, d]``, of the whole catalogue.
        query_row: int ``[n]``, the query of each pair.
        item_row: int ``[n]``, the item of each pair.
        lexical: the lexical score of the whole catalogue; without one there is no such feature.
        lexical_weight: of the lexical score in the final one.
        progress: told (queries done, queries in all).

    Returns:
        float32 ``[n]`` each: ``cosine``; ``lexical``, divided by the query's best; ``gap``, by how
        much the final score is below that of the query's best item.
    """
    cosine, words, gap = np.zeros((3, len(query_row)), np.float32)
    order = np.argsort(query_row, kind="stable")
    for part in query_parts(len(queries)):
        first, last = np.searchsorted(query_row[order], [part.start, part.stop])
        pairs = order[first:last]
        at = query_row[pairs] - part.start, item_row[pairs]
        scores = query_vectors[part] @ item_vectors.T  # [queries here, items]
        cosine[pairs] = scores[at]
        if lexical is not None:
            by_words = lexical(queries[part])
            words[pairs] = by_words[at]
            scores = fused(scores, by_words, lexical_weight)
        gap[pairs] = scores.max(axis=1)[at[0]] - scores[at]
        if progress is not None:
            progress(part.stop, len(queries))
    features = {"cosine": cosine, "lexical": words, "gap": gap}
    if lexical is None:
        del features["lexical"]
    return features
