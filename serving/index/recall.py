"""How much of the exact answer an approximate index finds."""

from __future__ import annotations

import numpy as np

from serving.index.item_index import FLOOR_SCORE, ItemIndex

_BATCH = 64
_TOLERANCE = 1e-5


def top_scores(index: ItemIndex, queries: np.ndarray) -> np.ndarray:
    """The scores an index gives, float32 ``[Q, k]``, for queries, float32 ``[Q, d]``."""
    batches = range(0, len(queries), _BATCH)
    return np.concatenate([index.call(queries[i : i + _BATCH])[0].numpy() for i in batches])


def recall(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Share of the exact top k that was found, for each query.

    Counted by score, as ann-benchmarks does: whichever of several items with one score came back,
    the answer is as good. That needs true scores in `found`, which both indexes give.

    Args:
        found: scores of the index under test, float ``[Q, k]``, floor score where empty.
        exact: scores of exact search, float ``[Q, k]``, likewise.

    Returns:
        float ``[Q]``, from 0 to 1.
    """
    wanted = exact > FLOOR_SCORE
    worst = np.where(wanted, exact, np.inf).min(axis=1, keepdims=True)  # [Q, 1]
    hits = ((found > FLOOR_SCORE) & (found >= worst - _TOLERANCE)).sum(axis=1)
    return hits / wanted.sum(axis=1)
