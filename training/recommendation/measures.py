"""What is said of recommendations: are they right, and what do they do to a catalogue.

Whether they are right is measured as for any run, with `training.metrics`. Names: `U` users, `k`
ranks (best first), -1 where a list is shorter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training import metrics


def recall(rows: np.ndarray, targets: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Share of a user's targets among the first `k` recommendations.

    Args:
        rows: int ``[U, n]``, recommended rows of the catalogue.
        targets: for each user distinct rows.
        k: cutoff.

    Returns:
        float64 ``[U]``.
    """
    lengths = np.array([len(target) for target in targets])
    return metrics.recall_at_k(_relevant(rows, targets), lengths, k)


def ndcg(rows: np.ndarray, targets: Sequence[np.ndarray], k: int) -> np.ndarray:
    """nDCG with a gain of 1 for a target: as `recall`, float64 ``[U]``."""
    lengths = np.array([len(target) for target in targets])
    users = np.repeat(np.arange(len(targets)), lengths)
    ideal = metrics.ideal_dcg_at_k(users, np.ones(len(users)), len(targets), k)
    return metrics.ndcg_at_k(_relevant(rows, targets).astype(np.float64), ideal, k)


def _relevant(rows: np.ndarray, targets: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([np.isin(row, target) for row, target in zip(rows, targets, strict=True)])


def gini(rows: np.ndarray, n_items: int) -> float:
    """Gini coefficient of how often the items of a catalogue are recommended.

    0 where each comes as often as any other, towards 1 where a few come all the time. Items never
    recommended count.

    Args:
        rows: int ``[U, k]``.
        n_items: items of the catalogue.
    """
    shown = np.sort(np.bincount(rows[rows >= 0], minlength=n_items))
    if not shown[-1]:
        return 0.0
    place = np.arange(1, n_items + 1)
    return float(((2 * place - n_items - 1) * shown).sum() / (n_items * shown.sum()))


def average_popularity(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean popularity of what is recommended to a user (Yin et al. 2012, "ARP").

    Args:
        rows: int ``[U, k]``.
        counts: int ``[items]``, how many users took each item before.

    Returns:
        float64 ``[U]``, NaN for a user without recommendations.
    """
    return _mean_over_list(rows, counts)


def novelty(rows: np.ndarray, counts: np.ndarray, n_users: int) -> np.ndarray:
    """Mean self-information of what is recommended to a user, in bits (Vargas & Castells 2011).

    That of an item is ``-log2 p`` with ``p = (count + 1) / (n_users + 1)``, the share of users who
    took it, in which an item nobody took counts as one that the next user takes.

    Args:
        rows: int ``[U, k]``.
        counts: int ``[items]``, how many of `n_users` took each item before.
        n_users: users behind the counts.

    Returns:
        float64 ``[U]``, NaN for a user without recommendations.
    """
    return _mean_over_list(rows, -np.log2((counts + 1) / (n_users + 1)))


def _mean_over_list(rows: np.ndarray, value: np.ndarray) -> np.ndarray:
    there = rows >= 0
    total = np.where(there, value[rows], 0).sum(axis=1, dtype=np.float64)
    length = there.sum(axis=1)
    return np.divide(total, length, out=np.full(len(rows), np.nan), where=length > 0)


def intra_list_diversity(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Mean distance, 1 - cosine, of two items recommended to one user (Ziegler et al. 2005).

    Args:
        rows: int ``[U, k]``.
        items: floating ``[n, d]``, the items' vectors, of length one.

    Returns:
        float64 ``[U]``, NaN for a user with fewer than two recommendations.
    """
    diversity = np.full(len(rows), np.nan)
    for user, row in enumerate(rows):
        vectors = items[row[row >= 0]].astype(np.float64)  # [k, d]
        if (n := len(vectors)) > 1:
            # All pairs at once: |sum of x|^2 is the sum of all products, n of them x with itself.
            total, own = np.square(vectors.sum(axis=0)).sum(), np.square(vectors).sum()
            diversity[user] = 1 - (total - own) / (n * (n - 1))
    return diversity
