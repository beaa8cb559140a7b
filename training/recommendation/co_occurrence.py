"""What histories say of items that the same users take, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from towers.item_neighbours import ItemNeighbours

NEIGHBOURS = 100
MAX_ITEMS = 8_000
"""Items that take part, the most taken first: the closed form inverts a matrix of this size."""
_MAX_USERS = 20_000


def fit_co_occurrence(
    histories: Sequence[np.ndarray],
    item_count: int,
    *,
    strength: float = 20.0,
    neighbours: int = NEIGHBOURS,
    max_items: int = MAX_ITEMS,
) -> ItemNeighbours:
    """The item-item weights that best predict each item of a user from the user's others.

    EASE (Steck 2019, Embarrassingly Shallow Autoencoders for Sparse Data, WWW):
    `B = argmin |X - X B|^2 + strength |B|^2` with a zero diagonal, `X` the binary matrix of users
    and items, is `B[i, j] = -P[i, j] / P[j, j]` with `P = (X'X + strength I)^-1`. Where users are
    fewer than items, `P` comes from the matrix of users (Woodbury's identity), which is smaller.

    Args:
        histories: rows of items of each user.
        item_count: number of items.
        strength: of the penalty.
        neighbours: weights that are kept of each item, those farthest from 0: what speaks against
            another item is worth keeping too.
        max_items: at most so many items take part, the most taken first.

    Returns:
        `B` with the past item as row and the next one as column; nothing for an item that no
        history holds together with another.
    """
    together = [np.unique(history) for history in histories]
    together = [rows for rows in together if len(rows) > 1][-_MAX_USERS:]
    if not together:
        return ItemNeighbours.none(item_count)
    columns = np.concatenate(together)
    taken = np.bincount(columns, minlength=item_count)
    items = np.sort(np.argsort(-taken, kind="stable")[: min(max_items, np.count_nonzero(taken))])
    place = np.full(item_count, -1)
    place[items] = np.arange(len(items))
    user = np.repeat(np.arange(len(together)), [len(rows) for rows in together])
    kept = place[columns] >= 0
    ones = np.ones(np.count_nonzero(kept))
    users_items = sp.csr_matrix(
        (ones, (user[kept], place[columns[kept]])), shape=(len(together), len(items))
    )
    precision = _precision(users_items, strength)
    weights = -precision / np.diag(precision)  # [from, to]
    found = ItemNeighbours.of_dense(weights, neighbours)
    return found if len(items) == item_count else found.moved(items, item_count)


def _precision(x: sp.csr_matrix, strength: float) -> np.ndarray:
    """`(x'x + strength I)^-1`, float64 `[items, items]`."""
    users, items = x.shape
    if items <= users:
        gram = (x.T @ x).toarray()
        gram[np.diag_indices(items)] += strength
        return scipy.linalg.inv(gram, overwrite_a=True, check_finite=False, assume_a="pos")
    gram = (x @ x.T).toarray()
    gram[np.diag_indices(users)] += strength
    factor = scipy.linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
    inner = scipy.linalg.cho_solve(factor, x.toarray(), check_finite=False)  # [users, items]
    precision = -(x.T @ inner) / strength
    precision[np.diag_indices(items)] += 1.0 / strength
    return precision
