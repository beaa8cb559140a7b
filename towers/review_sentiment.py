"""What reviews say of a user: how pleased each was, and which way all of them point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

Tensor = Any

# tanh(bias / 2) = .5: nothing can be said of a review's tone, and more people praise than complain.
_MILDLY_LIKED = float(np.log(3.0))


DISLIKE = 0.25
"""What a complaint counts beside as much praise. Two reviews have most in common in what they are
about, and what somebody complains of they shop for: pushed away whole, it takes much of what they
like along (docs/recommendations.md)."""


@dataclass(frozen=True)
class ReviewSentiment:
    """Sentiments of reviews, in [-.25, 1], and the vector of a user that they make.

    Where a rating from 1 to 5 is given, the sentiment is `(rating - 3) / 2`. Else a linear head
    over the review's vector `v` predicts it: the probability that the review is one of praise less
    that of complaint, `tanh((<kernel, v> + bias) / 2)`. What is below 0 counts a quarter.

    Attributes:
        kernel: float32 `[d]`.
        bias: of the logit of praise.
    """

    kernel: np.ndarray
    bias: float

    @classmethod
    def unlearned(cls, embedding_dim: int) -> ReviewSentiment:
        """Takes every review without a rating as mildly liked: a sentiment of .5."""
        return cls(np.zeros(embedding_dim, np.float32), _MILDLY_LIKED)

    def __call__(self, vectors: np.ndarray, ratings: np.ndarray) -> np.ndarray:
        """`sentiments` with the kernel and bias, float32 `[reviews]`."""
        found = sentiments(self.kernel, self.bias, vectors, np.asarray(ratings, np.float32))
        return ops.convert_to_numpy(found)

    def user_vectors(
        self, vectors: Sequence[np.ndarray], ratings: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The mean of each user's review vectors, weighted by sentiment.

            user = sum_r s_r v_r / sum_r |s_r|

        Its dot product with an item is high for what is like the liked and low for what is like
        the disliked. A review of rating 3 says neither.

        Args:
            vectors: for each user float32 `[reviews, d]`, unit vectors; `[0, d]` for none.
            ratings: for each user float `[reviews]`; see `__call__`.

        Returns:
            float32 `[users, d]`; zeros for a user whose reviews say nothing.
        """
        user = np.repeat(np.arange(len(vectors)), [len(of_user) for of_user in vectors])
        none = np.zeros((0, len(self.kernel)), np.float32)
        found = embed_reviewers(
            self.kernel,
            self.bias,
            np.concatenate([none, *vectors]),
            np.concatenate([none[:, 0], *(np.asarray(given, np.float32) for given in ratings)]),
            user,
            len(vectors),
        )
        return ops.convert_to_numpy(found)


def sentiments(kernel: Tensor, bias: float, vectors: Tensor, ratings: Tensor) -> Tensor:
    """Sentiments of reviews; see `ReviewSentiment`.

    Args:
        kernel: float32 `[d]`.
        bias: of the logit of praise.
        vectors: float32 `[reviews, d]`, of the review texts.
        ratings: float32 `[reviews]`; 0 or NaN for none; what lies outside of 1 to 5 counts as the
            nearer end.

    Returns:
        float32 `[reviews]`.
    """
    given = ops.logical_and(ops.not_equal(ratings, 0.0), ops.logical_not(ops.isnan(ratings)))
    by_rating = ops.clip((ratings - 3.0) / 2.0, -1.0, 1.0)
    predicted = ops.tanh((ops.matmul(vectors, kernel) + bias) / 2.0)
    sentiment = ops.where(given, by_rating, predicted)
    return ops.where(sentiment < 0, DISLIKE * sentiment, sentiment)


def embed_reviewers(
    kernel: Tensor, bias: float, vectors: Tensor, ratings: Tensor, user: Tensor, users: Any
) -> Tensor:
    """`ReviewSentiment.user_vectors` of a flat batch, for use in an exported graph as well.

    Args:
        kernel: see `sentiments`.
        bias: see `sentiments`.
        vectors: float32 `[reviews, d]`, of the reviews of all users.
        ratings: float32 `[reviews]`; see `sentiments`.
        user: int `[reviews]`, whose review it is.
        users: number of users.

    Returns:
        float32 `[users, d]`; zeros for a user whose reviews say nothing.
    """
    sentiment = sentiments(kernel, bias, vectors, ratings)
    sums = ops.segment_sum(sentiment[:, None] * vectors, user, users)
    total = ops.segment_sum(ops.abs(sentiment), user, users)[:, None]
    return sums / ops.where(total > 0, total, 1.0)


def rated(ratings: np.ndarray) -> np.ndarray:
    """Where a rating is given: neither 0 nor NaN."""
    return ~np.isnan(ratings) & (ratings != 0)
