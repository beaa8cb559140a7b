"""What reviews say of a user: how pleased each was, and which way all of them point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
        """Sentiments.

        Args:
            vectors: float32 `[reviews, d]`, of the review texts.
            ratings: float `[reviews]`; 0 or NaN for none; what lies outside of 1 to 5 counts as
                the nearer end.

        Returns:
            float32 `[reviews]`.
        """
        given = rated(ratings)
        by_rating = np.clip((np.where(given, ratings, 3.0) - 3.0) / 2.0, -1.0, 1.0)
        predicted = np.tanh((vectors @ self.kernel + self.bias) / 2.0)
        sentiment = np.where(given, by_rating, predicted).astype(np.float32)
        return np.where(sentiment < 0, np.float32(DISLIKE) * sentiment, sentiment)

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
        users = np.zeros((len(vectors), len(self.kernel)), np.float32)
        for user, (of_user, given) in enumerate(zip(vectors, ratings, strict=True)):
            sentiment = self(of_user, np.asarray(given, np.float32))
            if total := float(np.abs(sentiment).sum()):
                users[user] = sentiment @ of_user / total
        return users


def rated(ratings: np.ndarray) -> np.ndarray:
    """Where a rating is given: neither 0 nor NaN."""
    return ~np.isnan(ratings) & (ratings != 0)
