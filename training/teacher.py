"""The teacher of a distillation: words and untrained towers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from towers.encoding import Progress, fast_dtype
from towers.retriever import Retriever
from training.lexical_weight import LexicalScorer, fused
from training.query_parts import query_parts


@dataclass(frozen=True)
class Teacher:
    """Scores of items for queries, and the items worth a closer look.

    Attributes:
        rows: int64 ``[items]``, catalogue rows that are scored, ascending.
        scores: float16 ``[queries, items]``.
        near: int32 ``[queries, 2, depth]``, columns of `scores`: the best items by these scores,
            and those by the cosine alone.
    """

    rows: np.ndarray
    scores: np.ndarray
    near: np.ndarray


def make_teacher(
    retriever: Retriever,
    queries: Sequence[str],
    item_texts: Sequence[str],
    rows: np.ndarray,
    lexical: LexicalScorer | None,
    weight: float,
    *,
    depth: int = 30,
    progress: Progress | None = None,
) -> Teacher:
    """Scores items for queries by ``(1 - weight) * cosine + weight * lexical``.

    Args:
        retriever: the untrained towers.
        queries: texts.
        item_texts: item text of every catalogue row.
        rows: int64 ``[items]``, catalogue rows to score, ascending.
        lexical: the lexical score; None for cosines alone.
        weight: of the lexical score.
        depth: see `Teacher.near`; fewer where there are fewer items.
        progress: told about encoding the items.
    """
    if lexical is None:
        weight = 0.0
    texts = [item_texts[row] for row in rows.tolist()]
    items = retriever.encode_items(texts, dtype=fast_dtype(), progress=progress)
    vectors = retriever.encode_queries(queries)
    depth = min(depth, len(rows))
    scores = np.empty((len(queries), len(rows)), np.float16)
    near = np.empty((len(queries), 2, depth), np.int32)
    for part in query_parts(len(queries)):
        cosine = vectors[part] @ items.T  # [queries of the part, items]
        both = cosine
        if lexical is not None and weight:
            both = fused(cosine, lexical(queries[part])[:, rows], weight)
        scores[part] = both
        for place, ranking in enumerate((both, cosine)):
            near[part, place] = tf.math.top_k(ranking, depth).indices.numpy()
    return Teacher(rows, scores, near)
