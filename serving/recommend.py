"""Recommendations in an exported graph: histories of item ids in, item ids and scores out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving.index.exhaustive import best_items
from towers.context_lifts import NUMBER, ContextLifts
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
        context: string ``[n, c]``, ``column=value``, empty for nothing, anywhere; None where nobody
            can say anything.
    """

    rows: tf.Tensor
    query: tf.Tensor
    reviews: tf.Tensor | None = None
    ratings: tf.Tensor | None = None
    context: tf.Tensor | None = None

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
        self._discount: tf.Variable | None = None
        if recommender.discount.any():
            self._discount = tf.Variable(recommender.discount, trainable=False)
        self._context: ContextGraph | None = None
        if recommender.context.values:
            self._context = ContextGraph(recommender.context)

    @property
    def knows_contexts(self) -> bool:
        """Whether there is a column that a context could name."""
        return self._context is not None

    def scores(self, asking: Users, *, discounted: bool = True) -> tf.Tensor:
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
        if asking.context is not None and self._context is not None:
            alone = ~tf.reduce_any(known, axis=1) & ~asked
            scores += self._context(asking.context, alone)

        prior = tf.convert_to_tensor(self._prior)  # [items] or [n, items]
        if discounted and self._discount is not None:
            has_history = tf.reduce_any(known, axis=1)
            prior -= tf.where(has_history[:, None], self._discount, 0.0)

        def with_queries() -> tf.Tensor:
            by_query = tf.scatter_nd(
                tf.where(asked),
                self._query_scores(tf.boolean_mask(query, asked)),
                [shape[0], self._item_count],
            )
            return tf.where(asked[:, None], self._weights.query * by_query, prior)

        def without() -> tf.Tensor:
            return tf.broadcast_to(prior, tf.shape(scores))

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
        scores = self.scores(users, discounted=False)
        total = tf.reduce_logsumexp(tf.where(_left_out(seen), -1e30, scores), axis=1, keepdims=True)
        at = tf.maximum(asked, 0)
        odds = tf.gather(scores, at, batch_dims=1) - total  # [n, m]
        again = tf.gather(_left_out(seen), at, batch_dims=1)
        chance = tf.where(again, tf.sigmoid(odds), tf.exp(tf.minimum(odds, 0.0)))
        return tf.where(asked >= 0, chance, 0.0)


class ContextGraph(tf.Module):
    """The lifts of contexts over a catalogue, of TensorFlow's own ops.

    Args:
        context: over the items of the index, with a value at least.
    """

    def __init__(self, context: ContextLifts) -> None:
        super().__init__(name="context")
        values = len(context.values)
        self._rows = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(context.values), tf.range(values, dtype=tf.int32)
            ),
            default_value=values,  # a row of nothing
        )
        self._bands = [
            (name, tf.constant(context.columns[name].edges, tf.float64, [edges]), first)
            for name, first in context.first_bands().items()
            for edges in [len(context.columns[name].edges or ())]
        ]
        weights = np.vstack([context.weights, np.zeros((1, 2), np.float32)])
        self._weights = tf.Variable(weights, trainable=False)
        items, lifts = _padded(context)
        self._items = tf.Variable(items, trainable=False)
        self._lifts = tf.Variable(lifts, trainable=False)
        self._item_count = context.lifts.shape[1]

    def __call__(self, texts: tf.Tensor, alone: tf.Tensor) -> tf.Tensor:
        """What contexts add to the scores; see `towers.context_lifts.ContextLifts.user_weights`.

        Args:
            texts: string ``[n, c]``, ``column=value``; what is unknown adds nothing.
            alone: bool ``[n]``, users of whom nothing else is known.

        Returns:
            float32 ``[n, items]``.
        """
        rows = self._rows.lookup(texts)  # [n, c]
        if self._bands:
            name = tf.strings.regex_replace(texts, "(?s)=.*", "")
            value = tf.strings.regex_replace(texts, "(?s)^[^=]*=", "")
            unknown = rows == self._rows.default_value
            number = tf.strings.regex_full_match(value, NUMBER) & unknown
            numbers = tf.strings.to_number(tf.where(number, value, "0"), tf.float64)
            number &= tf.math.is_finite(numbers)
            for column, edges, first in self._bands:
                band = tf.reduce_sum(tf.cast(numbers[:, :, None] >= edges, tf.int32), axis=2)
                rows = tf.where(number & (name == column), first + band, rows)
        pairs = tf.gather(tf.convert_to_tensor(self._weights), rows)  # [n, c, 2]
        weights = tf.where(alone[:, None], pairs[:, :, 1], pairs[:, :, 0])
        lifts = tf.gather(tf.convert_to_tensor(self._lifts), rows) * weights[:, :, None]
        items = tf.gather(tf.convert_to_tensor(self._items), rows)  # [n, c, stand out]
        count = tf.shape(texts)[0]
        places = items + self._item_count * tf.range(count)[:, None, None]
        sums = tf.math.unsorted_segment_sum(
            tf.reshape(lifts, [-1]), tf.reshape(places, [-1]), count * self._item_count
        )
        return tf.reshape(sums, [count, self._item_count])


def _padded(context: ContextLifts) -> tuple[np.ndarray, np.ndarray]:
    """Items and lifts of each value, int32 and float32 ``[V + 1, widest]``; 0 where none is."""
    matrix = context.lifts
    lengths = np.diff(matrix.indptr)
    shape = (len(lengths) + 1, max(1, int(lengths.max(initial=0))))
    items, lifts = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    filled = np.arange(shape[1]) < np.append(lengths, 0)[:, None]
    items[filled], lifts[filled] = matrix.indices, matrix.data
    return items, lifts


def _left_out(seen: tf.Tensor) -> tf.Tensor:
    """What is not offered again: all that was seen, nothing where that would be everything."""
    return seen & ~tf.reduce_all(seen, axis=1, keepdims=True)
