"""What reviews add to the score, learned without looking ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from towers.review_sentiment import ReviewSentiment, rated
from training.heads.logistic import fit_logistic
from training.histories import Histories
from training.reviews import Reviews

EncodeReviews = Callable[[Sequence[str]], np.ndarray]
"""From texts to unit vectors of the query tower, float32 `[len(texts), d]`."""

MIN_OF_A_KIND = 8
"""Rated reviews of praise, and of complaint, that a head for their tone needs at least."""
_MAX_RATED = 1_000
_NEUTRAL = 3.0


@dataclass(frozen=True)
class UserReviews:
    """The reviews of users with histories, and which of them were known when.

    Attributes:
        reviews: all reviews, those of other people included: their ratings teach as well.
        of_user: for each user rows of the reviews, in file order.
        event_times: for each user datetime64[s] `[events]`; None where the histories are lists.
    """

    reviews: Reviews
    of_user: list[np.ndarray] = field(repr=False)
    event_times: list[np.ndarray] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, reviews: Reviews, histories: Histories) -> UserReviews:
        """Joins reviews to the users of histories."""
        rows: dict[str, list[int]] = {user: [] for user in histories.users}
        for row, user in enumerate(reviews.users):
            if user in rows:
                rows[user].append(row)
        of_user = [np.array(rows[user], np.int64) for user in histories.users]
        return cls(reviews, of_user, histories.times())

    def known(self, user: int, history: np.ndarray, place: int, target: int) -> np.ndarray:
        """Rows of the reviews that a user had written when `history[place]` came next.

        None is about the target. Where review and event both have a time, the review's is the
        earlier one; else the review is about an item that was taken before.

        Args:
            user: number of the user.
            history: rows of the catalogue, int `[events]`, oldest first.
            place: of the first item that is not known.
            target: row of the item that is to be found, there or later.
        """
        rows = self.of_user[user]
        items = self.reviews.item_row[rows]
        before = np.isin(items, history[:place])
        if self.event_times is not None and self.reviews.timestamp is not None:
            time = self.reviews.timestamp[rows]
            before = np.where(np.isnat(time), before, time < self.event_times[user][place])
        return rows[before & (items != target)]


class ReviewPart:
    """Vectors of the reviews that a fit looks at, encoded once.

    Args:
        reviews: the reviews.
        users: numbers of the users that are asked about, int `[users]`.
        encode: the query tower.
        seed: decides which ratings are learned from, of more than 1,000.
    """

    def __init__(
        self, reviews: UserReviews, users: np.ndarray, encode: EncodeReviews, *, seed: int = 0
    ) -> None:
        self._reviews = reviews
        self.rating = reviews.reviews.rating
        of_kind = np.flatnonzero(rated(self.rating) & (self.rating != _NEUTRAL))
        self._rated = np.random.default_rng(seed).permutation(of_kind)[:_MAX_RATED]
        asked = [reviews.of_user[user] for user in users]
        rows = np.unique(np.concatenate([self._rated, *asked]).astype(np.int64))
        self._place = np.full(len(self.rating), -1)
        self._place[rows] = np.arange(len(rows))
        self._vectors = encode([reviews.reviews.texts[row] for row in rows])
        self._seed = seed

    def sentiment(self, without: Iterable[int] = ()) -> ReviewSentiment:
        """Fits a head for the tone of reviews.

        Logistic regression of praise (a rating above 3) against complaint (below 3); with fewer
        than `MIN_OF_A_KIND` of either, reviews without a rating are taken as mildly liked.

        Args:
            without: users whose ratings are not learned from.
        """
        unknown = ReviewSentiment.unlearned(self._vectors.shape[1])
        left_out = [self._reviews.of_user[user] for user in without]
        rows = self._rated
        if left_out:
            rows = np.setdiff1d(rows, np.concatenate(left_out))
        praise = (self.rating[rows] > _NEUTRAL).astype(np.int64)
        if np.bincount(praise, minlength=2).min() < MIN_OF_A_KIND:
            return unknown
        head = fit_logistic(
            self._vectors[self._place[rows]], praise, ("complaint", "praise"), seed=self._seed
        )
        kernel, bias = head.kernel[:, 1] - head.kernel[:, 0], head.bias[1] - head.bias[0]
        return ReviewSentiment(np.ascontiguousarray(kernel), float(bias))

    def user_vectors(self, sentiment: ReviewSentiment, reviews: Sequence[np.ndarray]) -> np.ndarray:
        """`ReviewSentiment.user_vectors` of rows of reviews, float32 `[users, d]`."""
        return sentiment.user_vectors(
            [self._vectors[self._place[rows]] for rows in reviews],
            [self.rating[rows] for rows in reviews],
        )
