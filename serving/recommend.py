"""Recommendations in an exported graph: histories of item ids in, item ids and scores out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving.index.exhaustive import best_items
from towers.recommender import CatalogRecommender
from towers.review_sentiment import embed_reviewers
from towers.user_tower import embed_users

ScoresOfQueries = Callable[[tf.Tensor], tf.Tensor]
"""From queries, string ``[n]``, to what `search` scores, float32 ``[n, items]``."""


class Users(NamedTuple):
    """Who asks, and what is known of them.

    Attributes:
        rows: int ``[n, h]``, rows of the items of their histories, oldest first; -1 for none,
            anywhere.
        query: string ``[n]``, empty for none.
        reviews: string ``[n, r]``, what they wrote, empty for nothing, anywhere; None where nobody
            can say anything.
        ratings: float32 ``[n, r]``, 1 to 5, of the reviews; 0 or NaN for none.
    """

    rows: tf.Tensor
    query: tf.Tensor
    reviews: tf.Tensor | None = None
    ratings: tf.Tensor | None = None

    def part(self, some: slice) -> Users:
        """Some of the users."""
        return Users(*(None if values is None else values[some] for values in self))


class RecommendGraph(tf.Module):
    """A `CatalogRecommender` made of TensorFlow's own ops.

    Every item is scored for every user. The text encoder runs for those requests alone in which
    somebody asks something or has written a review.

    Args:
        recommender: over the items of the index, in their order.
        item_scores: dot products with all items, float32 ``[n, d]`` to ``[n, items]``: the index's.
        embeddings_at: item embeddings, float32 ``[R, d]``, of rows, int ``[R]``: the index's.
        query_scores: what `search` scores.
        embed_reviews: vectors of review texts, string ``[R]`` to float32 ``[R, d]``.
    """

    def __init__(
        self,
        recommender: CatalogRecommender,
        item_scores: Callable[[tf.Tensor], tf.Tensor],
        embeddings_at: Callable[[tf.Tensor], tf.Tensor],
        query_scores: ScoresOfQueries,
        embed_reviews: Callable[[tf.Tensor], tf.Tensor],
    ) -> None:
        super().__init__(name="recommender")
        learned = recommender.recommender
        self._weights, self._decay = learned.weights, learned.decay
        self._longest = learned.max_history
        self._item_count = len(recommender.item_ids)
        self._item_scores, self._embeddings_at = item_scores, embeddings_at
        self._query_scores, self._embed_reviews = query_scores, embed_reviews
        self._tone = tf.Variable(learned.sentiment.kernel, trainable=False)
        self._tone_bias = learned.sentiment.bias
        self._tower = {
            name: tf.Variable(weight, trainable=False)
            for name, weight in learned.user_tower.weights_by_name().items()
        }
        # An entry without a neighbour has weight 0, and adds it to item 0.
        rows = np.maximum(recommender.neighbours.rows, 0)
        self._neighbours = tf.Variable(rows, trainable=False, dtype=tf.int32)
        self._neighbour_weights = tf.Variable(recommender.neighbours.weights, trainable=False)
        self._prior = tf.Variable(recommender.prior, trainable=False)

    def scores(self, asking: Users) -> tf.Tensor:
        """Scores all items, float32 ``[n, items]``; see `CatalogRecommender.__call__`."""
        query = asking.query
        rows = self._newest(tf.cast(asking.rows, tf.int32))
        known = rows >= 0
        taken = tf.maximum(rows, 0)  # [n, h]
        shape = tf.shape(rows)
        history = self._embeddings_at(tf.reshape(taken, [-1]))
        history = tf.reshape(history, [shape[0], shape[1], self._tower["kernel"].shape[0]])
        weights = {name: tf.convert_to_tensor(value) for name, value in self._tower.items()}
        users = self._weights.text * embed_users(weights, history, known)  # [n, d]
        if asking.reviews is not None:
            users += self._weights.reviews * self._written(asking.reviews, asking.ratings)
        scores = self._item_scores(users) + self._near(taken, known)
        asked = query != ""

        def with_queries() -> tf.Tensor:
            by_query = tf.scatter_nd(
                tf.where(asked),
                self._query_scores(tf.boolean_mask(query, asked)),
                [shape[0], self._item_count],
            )
            return tf.where(asked[:, None], self._weights.query * by_query, self._prior)

        def without() -> tf.Tensor:
            return tf.broadcast_to(self._prior, tf.shape(scores))

        return scores + tf.cond(tf.reduce_any(asked), with_queries, without)

    def _written(self, reviews: tf.Tensor, ratings: tf.Tensor) -> tf.Tensor:
        """Vectors of users by their reviews, ``[n, d]``; see `ReviewSentiment.user_vectors`."""
        written = reviews != ""
        count = tf.shape(reviews)[0]
        tone = tf.convert_to_tensor(self._tone)

        def read() -> tf.Tensor:
            user = tf.where(written)[:, 0]  # [R]
            vectors = self._embed_reviews(tf.boolean_mask(reviews, written))  # [R, d]
            rating = tf.boolean_mask(ratings, written)
            return embed_reviewers(tone, self._tone_bias, vectors, rating, user, count)

        def nothing() -> tf.Tensor:
            return tf.zeros([count, tone.shape[0]])

        return tf.cond(tf.reduce_any(written), read, nothing)

    def _newest(self, rows: tf.Tensor) -> tf.Tensor:
        """The newest known items alone, the others as -1."""
        known = tf.cast(rows >= 0, tf.int32)
        from_end = tf.cumsum(known, axis=1, reverse=True)  # this one counted
        return tf.where(from_end <= self._longest, rows, -1)

    def _near(self, taken: tf.Tensor, known: tf.Tensor) -> tf.Tensor:
        """Sums over past items of their neighbours' weights, newer ones more: ``[n, items]``."""
        counts = tf.cast(known, tf.float32)
        age = tf.cumsum(counts, axis=1, reverse=True, exclusive=True)
        recency = tf.pow(self._decay, age) * counts  # [n, h]
        recency = tf.math.divide_no_nan(recency, tf.reduce_sum(recency, axis=1, keepdims=True))
        rows = tf.gather(tf.convert_to_tensor(self._neighbours), taken)  # [n, h, near]
        weights = tf.gather(tf.convert_to_tensor(self._neighbour_weights), taken)
        weights = weights * recency[:, :, None]
        count = tf.shape(taken)[0]
        places = rows + self._item_count * tf.range(count)[:, None, None]
        sums = tf.math.unsorted_segment_sum(
            tf.reshape(weights, [-1]), tf.reshape(places, [-1]), count * self._item_count
        )
        return tf.reshape(sums, [count, self._item_count])

    def best(
        self, users: Users, seen: Callable[[slice], tf.Tensor], k: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The k best items that were not seen; of all items for a user who has seen all.

        Args:
            users: ``N`` of them.
            seen: from a slice of the users to which items they have seen, bool ``[n, items]``.
            k: items a user.

        Returns:
            Scores float32 and rows int32, ``[N, min(k, items)]``; minus infinity in places for
            which nothing is left.
        """
        return best_items(
            lambda part: tf.where(_left_out(seen(part)), -np.inf, self.scores(users.part(part))),
            query_count=tf.shape(users.query)[0],
            item_count=self._item_count,
            k=k,
        )

    def probabilities(self, users: Users, seen: tf.Tensor, asked: tf.Tensor) -> tf.Tensor:
        """How likely items are the next, as `CatalogRecommender.probabilities` has it.

        Args:
            users: ``n`` of them.
            seen: bool ``[n, items]``.
            asked: int ``[n, m]``, rows of items; -1 for one that is unknown.

        Returns:
            float32 ``[n, m]``; 0 for an unknown item.
        """
        scores = self.scores(users)
        total = tf.reduce_logsumexp(tf.where(_left_out(seen), -1e30, scores), axis=1, keepdims=True)
        at = tf.maximum(asked, 0)
        odds = tf.gather(scores, at, batch_dims=1) - total  # [n, m]
        again = tf.gather(_left_out(seen), at, batch_dims=1)
        chance = tf.where(again, tf.sigmoid(odds), tf.exp(tf.minimum(odds, 0.0)))
        return tf.where(asked >= 0, chance, 0.0)


def _left_out(seen: tf.Tensor) -> tf.Tensor:
    """What is not offered again: all that was seen, nothing where that would be everything."""
    return seen & ~tf.reduce_all(seen, axis=1, keepdims=True)
