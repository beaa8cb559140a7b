"""Recommenders without training, to compare with: popularity, neighbours, EASE, item text.

All are `training.recommendation.scorer.Scorer`. Those that count who took what take an item once a
user, and know nothing of order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from scipy import sparse

from towers.errors import InputError
from training.recommendation.popularity import item_counts
from training.recommendation.scorer import Scorer


def taken(histories: Sequence[np.ndarray], n_items: int) -> sparse.csr_array:
    """Returns who took what, float32 ``[users, n_items]`` of zeros and ones."""
    rows = [np.unique(items) for items in histories]
    lengths = [len(items) for items in rows]
    return sparse.csr_array(
        (
            np.ones(sum(lengths), np.float32),
            np.concatenate([*rows, np.zeros(0, np.int64)]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ),
        shape=(len(rows), n_items),
    )


class Popularity:
    """Scores an item by the number of users who took it, the same for everyone.

    Args:
        histories: of the users to learn from, rows of the catalogue.
        n_items: items of the catalogue.
    """

    def __init__(self, histories: Sequence[np.ndarray], n_items: int) -> None:
        self.counts = item_counts(histories, n_items)

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`."""
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))


class ItemNeighbours:
    """Item-based nearest neighbours: an item's score is its similarity to what a user took, summed.

    The similarity of items ``i`` and ``j`` is the cosine of who took them, shrunk towards 0 where
    few did: ``n_ij / (sqrt(n_i n_j) + shrinkage)``.

    References: Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms";
    Bell & Koren 2007 for the shrinkage.

    Args:
        histories: of the users to learn from, rows of the catalogue.
        n_items: items of the catalogue.
        shrinkage: 0 or more.
        neighbours: for each item, how many of the items most similar to it may add to its score;
            all if None.
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        n_items: int,
        *,
        shrinkage: float = 10.0,
        neighbours: int | None = None,
    ) -> None:
        if shrinkage < 0:
            raise InputError(f"shrinkage is {shrinkage}, expected 0 or more")
        if neighbours is not None and neighbours < 1:
            raise InputError(f"the number of neighbours is {neighbours}, expected 1 or more")
        who = taken(histories, n_items)
        together = (who.T @ who).tocoo()
        counts = who.sum(axis=0)
        row, column = together.coords
        apart = row != column
        row, column, both = row[apart], column[apart], together.data[apart]
        similarity = both / (np.sqrt(counts[row] * counts[column]) + shrinkage)
        if neighbours is not None:
            order = np.lexsort((row, -similarity, column))
            place = np.arange(len(order)) - np.searchsorted(column[order], column[order])
            nearest = order[place < neighbours]
            row, column, similarity = row[nearest], column[nearest], similarity[nearest]
        self.similarity = sparse.csr_array(
            (similarity.astype(np.float32), (row, column)), shape=(n_items, n_items)
        )

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`."""
        return (taken(histories, self.similarity.shape[0]) @ self.similarity).toarray()


class Ease:
    """EASE: the linear map from what users took to itself, with zeros on its diagonal, solved.

    ``B = I - P diag(1 / diag(P))`` with ``P = (X'X + l2 I)^-1``. Needs the inverse of a matrix as
    wide as the catalogue: seconds for 3,000 items, not for 100,000.

    Reference: Steck 2019, "Embarrassingly shallow autoencoders for sparse data".

    Args:
        histories: of the users to learn from, rows of the catalogue.
        n_items: items of the catalogue.
        l2: strength of the regularisation, above 0; more for more users.
    """

    def __init__(self, histories: Sequence[np.ndarray], n_items: int, *, l2: float = 20.0) -> None:
        if l2 <= 0:
            raise InputError(f"l2 is {l2}, expected a number above 0")
        who = taken(histories, n_items)
        gram = (who.T @ who).toarray().astype(np.float64)
        gram[np.diag_indices(n_items)] += l2
        # By Cholesky, which needs half the work of an inverse; it leaves one triangle out.
        root, _ = scipy.linalg.lapack.dpotrf(gram, lower=True, overwrite_a=True)
        inverse, _ = scipy.linalg.lapack.dpotri(root, lower=True, overwrite_c=True)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        weights = inverse / -np.diag(inverse)
        weights[np.diag_indices(n_items)] = 0
        self.weights = weights.astype(np.float32)  # [items taken, items scored]

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`."""
        return taken(histories, len(self.weights)) @ self.weights


class RecentText:
    """Scores items by the cosine to the mean vector of what a user took, the latest counting most.

    Nothing is learned from users. The weight of an event is ``decay ** (events after it)``; an item
    taken several times counts several times.

    Args:
        items: floating ``[n_items, d]``, the items' vectors, of length one.
        decay: from 0, the latest alone, to 1, the plain mean.
    """

    def __init__(self, items: np.ndarray, *, decay: float = 0.8) -> None:
        if not 0 <= decay <= 1:
            raise InputError(f"decay is {decay}, expected a number from 0 to 1")
        self.items = np.asarray(items, np.float32)
        self.decay = decay

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`; without a history all are 0."""
        means = np.zeros((len(histories), self.items.shape[1]), np.float32)
        for user, rows in enumerate(histories):
            weights = np.power(self.decay, np.arange(len(rows))[::-1], dtype=np.float32)
            means[user] = weights @ self.items[rows]
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return means @ self.items.T


class Blend:
    """The weighted sum of several scorers, each brought to one scale first.

    A user's scores by one scorer are centred and divided by their standard deviation over the
    catalogue; a scorer that says the same of every item says nothing.

    Args:
        parts: scorers with their weights.
    """

    def __init__(self, *parts: tuple[Scorer, float]) -> None:
        self.parts = parts

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`."""
        parts = [
            np.float32(weight) * standardised(scorer(histories)) for scorer, weight in self.parts
        ]
        return np.sum(parts, axis=0)


class Fallback:
    """A scorer, and another one for users of whom the first knows nothing.

    Of these users the first scorer says the same of every item, as of those without a history.

    Args:
        scorer: asked first.
        otherwise: asked for the users left.
    """

    def __init__(self, scorer: Scorer, otherwise: Scorer) -> None:
        self.scorer = scorer
        self.otherwise = otherwise

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`."""
        scores = np.array(self.scorer(histories))
        left = np.flatnonzero(np.ptp(scores, axis=1) == 0).tolist()
        if left:
            scores[left] = self.otherwise([histories[user] for user in left])
        return scores


def standardised(scores: np.ndarray) -> np.ndarray:
    """Centres and scales each user's scores, float32 ``[users, items]``; equal ones become 0."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9)
