"""How popular items are: counts, deciles, and the long tail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from towers.errors import InputError

_LEAST = 1e-6  # what was taken is told from what was not, however long ago


def item_counts(histories: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """Counts the users who took each item; a user counts once an item, however often they took it.

    Args:
        histories: for each user rows of the catalogue, int ``[events]``.
        n_items: items of the catalogue.

    Returns:
        int64 ``[n_items]``.
    """
    rows = [np.unique(items) for items in histories]
    return np.bincount(np.concatenate([*rows, np.zeros(0, np.int64)]), minlength=n_items)


def recent_counts(
    histories: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    n_items: int,
    half_life: np.timedelta64,
) -> np.ndarray:
    """Counts the users who took each item, one who did so long ago for less.

    Args:
        histories: for each user rows of the catalogue, int ``[events]``, oldest first.
        times: when that was, datetime64[s] ``[events]`` each.
        n_items: items of the catalogue.
        half_life: the age, from the latest of all events, at which a user counts for a half. It is
            that of the user's latest event with the item.

    Returns:
        float64 ``[n_items]``; above 0 for every item that was taken.
    """
    now = max((when[-1] for when in times if len(when)), default=None)
    counts = np.zeros(n_items)
    for rows, when in zip(histories, times, strict=True):
        _, latest = np.unique(rows[::-1], return_index=True)
        place = len(rows) - 1 - latest
        np.add.at(counts, rows[place], 0.5 ** ((now - when[place]) / half_life))
    counts[item_counts(histories, n_items) > 0] += _LEAST
    return counts


def popularity_deciles(counts: np.ndarray) -> np.ndarray:
    """Sorts items into tenths of the catalogue by popularity.

    Items of equal count share a decile, that of their mean rank, so that deciles differ in size
    where many items are equally popular, and some may be empty.

    Args:
        counts: int ``[items]``, see `item_counts`.

    Returns:
        int64 ``[items]``, from 1 for the least to 10 for the most popular.
    """
    rank = stats.rankdata(counts, method="average")  # from 1 for the least popular
    return np.ceil(10 * rank / len(counts)).astype(np.int64)


def long_tail(counts: np.ndarray, head: float = 0.2) -> np.ndarray:
    """Tells the long tail from the short head: all but the most popular fifth of the catalogue.

    An item as popular as the last one of the head is in the head, too.

    Args:
        counts: int ``[items]``, see `item_counts`.
        head: share of the catalogue in the head, above 0 and below 1.

    Returns:
        bool ``[items]``, true in the tail.

    Raises:
        InputError: the share is not between 0 and 1.
    """
    if not 0 < head < 1:
        raise InputError(f"the head's share is {head}, expected a number between 0 and 1")
    last = np.sort(counts)[::-1][max(1, int(head * len(counts))) - 1]
    return counts < last
