"""Retrieval measures, one value a query, from what stands at each rank.

Defined as in trec_eval and ir-measures: an item without a judgement is not relevant and has gain
0, and a query with fewer items than the cutoff is not excused. A query without anything to find
gets 0; whether it counts is for the caller to say. `k=None` means the whole run.

Names: `Q` queries, `n` ranks (best first), `R` judgements.
"""

from __future__ import annotations

import numpy as np


def ndcg_at_k(ranked_gains: np.ndarray, ideal: np.ndarray, k: int | None = None) -> np.ndarray:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002).

    Args:
        ranked_gains: floating `[Q, n]`, the gain of the item at each rank.
        ideal: float64 `[Q]`, the best possible, from `ideal_dcg_at_k` with the same `k`.
        k: Cutoff.

    Returns:
        float64 `[Q]`.
    """
    gains = ranked_gains[:, :k]
    return _ratio((gains * _discount(np.arange(gains.shape[1]))).sum(axis=1), ideal)


def ideal_dcg_at_k(
    query_rows: np.ndarray, gains: np.ndarray, n_queries: int, k: int | None = None
) -> np.ndarray:
    """Discounted cumulative gain of the best ranking of all judged items.

    Args:
        query_rows: int `[R]`, the query of each judgement.
        gains: floating `[R]`, 0 or more.
        n_queries: `Q`.
        k: Cutoff.

    Returns:
        float64 `[Q]`.
    """
    order = np.lexsort((-gains, query_rows))
    query_rows, gains = query_rows[order], gains[order]
    rank = np.arange(len(order)) - np.searchsorted(query_rows, query_rows)  # 0 = best of its query
    counted = rank < (len(order) if k is None else k)
    return np.bincount(query_rows, gains * _discount(rank) * counted, minlength=n_queries)


def _discount(rank: np.ndarray) -> np.ndarray:
    return 1.0 / np.log2(rank + 2.0)


def recall_at_k(relevant: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Share of a query's relevant items that stand among its first `k`.

    Args:
        relevant: bool `[Q, n]`, whether the item at each rank is relevant.
        n_relevant: int `[Q]`, the query's relevant items, found or not.
        k: Cutoff.

    Returns:
        float64 `[Q]`.
    """
    return _ratio(relevant[:, :k].sum(axis=1), n_relevant)


def precision_at_k(relevant: np.ndarray, k: int) -> np.ndarray:
    """Share of relevant items in the first `k` ranks: bool `[Q, n]` -> float64 `[Q]`."""
    return relevant[:, :k].sum(axis=1) / k


def hit_rate(relevant: np.ndarray, k: int) -> np.ndarray:
    """1 with a relevant item among the first `k`, else 0: bool `[Q, n]` -> float64 `[Q]`."""
    return np.any(relevant[:, :k], axis=1).astype(np.float64)


def reciprocal_rank(relevant: np.ndarray, k: int | None = None) -> np.ndarray:
    """1 / rank of the first relevant item, 0 without one: bool `[Q, n]` -> float64 `[Q]`."""
    relevant = relevant[:, :k]
    if not relevant.shape[1]:
        return np.zeros(len(relevant))
    return relevant.any(axis=1) / (relevant.argmax(axis=1) + 1.0)


def average_precision(
    relevant: np.ndarray, n_relevant: np.ndarray, k: int | None = None
) -> np.ndarray:
    """Mean, over a query's relevant items, of the precision at their ranks; 0 for one not found.

    Args:
        relevant: bool `[Q, n]`, whether the item at each rank is relevant.
        n_relevant: int `[Q]`, the query's relevant items, found or not.
        k: Cutoff; items below it count as not found.

    Returns:
        float64 `[Q]`.
    """
    relevant = relevant[:, :k]
    precision = relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)  # [Q, k]
    return _ratio((precision * relevant).sum(axis=1), n_relevant)


def coverage(item_rows: np.ndarray, n_items: int, k: int) -> float:
    """Share of the catalogue that some query shows among its first `k`.

    Args:
        item_rows: int `[Q, n]`, the item at each rank, -1 for none.
        n_items: Items in the catalogue, at least 1.
        k: Cutoff.

    Returns:
        Number from 0 to 1; one for all queries together.
    """
    shown = np.unique(item_rows[:, :k])
    return int((shown >= 0).sum()) / n_items


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below in float64, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
