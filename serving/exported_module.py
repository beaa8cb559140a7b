"""What a served model answers: the functions behind the signatures of an export."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from serving.index.exhaustive import best_items
from serving.index.item_index import EMPTY_ID, FLOOR_SCORE, ItemIndex
from serving.index.scann import ScannIndex
from serving.item_columns import ItemColumns
from serving.lexical import HybridSearch
from serving.recommend import RecommendGraph, Users
from towers.recommender import CatalogRecommender
from towers.retriever import Retriever
from towers.text_graph import TextGraph

_UNKNOWN = -1


class ExportedModule(tf.Module):
    """Towers, tokenizer and index in one graph: strings in, item ids and scores out.

    Every input is a vector, string ``[N]``, N from 0; every answer a dict of named tensors.

    Args:
        retriever: the towers, in float32.
        index: the built index.
        hybrid: what `search` asks in place of the index alone.
        columns: columns of the items; with them there is `search_filtered`.
        recommender: over the index's items; with it there are `recommend` and `score`, and both
            with reviews; with reviews and contexts where it knows of any.
    """

    def __init__(
        self,
        retriever: Retriever,
        index: ItemIndex,
        hybrid: HybridSearch | None = None,
        columns: ItemColumns | None = None,
        recommender: CatalogRecommender | None = None,
    ) -> None:
        super().__init__(name="retriever")
        # What is assigned here is saved. The index's tensors, and not the index: a Keras layer
        # would bring functions of its own, the query model's among them.
        self._text = TextGraph(retriever)
        self._index_tensors = index.trackables
        self._nearest = index.call
        self._hybrid = hybrid
        self._nearest_without = index.query_with_exclusions
        self._embeddings_at = index.embeddings_at
        self._rows = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                index.item_ids, tf.range(index.item_count, dtype=tf.int64)
            ),
            default_value=_UNKNOWN,
        )
        self._scores_of_all, self._answers = index.scores, index.answers
        self._item_count, self._k = index.item_count, index.k
        self._columns = columns
        if columns is not None:
            self.search_filtered = tf.function(
                self._search_filtered,
                input_signature=[
                    tf.TensorSpec([None], tf.string, "query"),
                    tf.TensorSpec([None, None], tf.string, "exclude"),
                    *columns.inputs.values(),
                ],
                autograph=False,
            )
        self._recommender: RecommendGraph | None = None
        if recommender is not None:
            self._recommender = RecommendGraph(
                recommender,
                index.scores,
                index.embeddings_at,
                self._scores_of_queries,
                self._text.embed_reviews,
            )
            histories = [
                tf.TensorSpec([None, None], tf.string, "history"),
                tf.TensorSpec([None], tf.string, "query"),
            ]
            asked = [*histories, tf.TensorSpec([None, None], tf.string, "item_ids")]
            reviews = [
                tf.TensorSpec([None, None], tf.string, "reviews"),
                tf.TensorSpec([None, None], tf.float32, "ratings"),
            ]
            context = [tf.TensorSpec([None, None], tf.string, "context")]
            # Apart, because the inputs of a signature are all required.
            functions = [
                ("recommend", self._recommend, histories),
                ("recommend_reviews", self._recommend, [*histories, *reviews]),
                ("score", self._score, asked),
                ("score_reviews", self._score, [*asked, *reviews]),
            ]
            if self._recommender.knows_contexts:
                functions += [
                    ("recommend_context", self._recommend, [*histories, *reviews, *context]),
                    ("score_context", self._score, [*asked, *reviews, *context]),
                ]
            self._of_users = {
                name: tf.function(function, input_signature=inputs, autograph=False)
                for name, function, inputs in functions
            }
        if isinstance(index, ScannIndex):
            self.release = index.release  # for `serving.loading`

    @property
    def signatures(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
        """Signature name to function."""
        signatures = {
            "serving_default": self.search,
            "search": self.search,
            "encode_query": self.encode_query,
            "encode_item": self.encode_item,
            "similar": self.similar,
        }
        if self._columns is not None:
            signatures["search_filtered"] = self.search_filtered
        if self._recommender is not None:
            signatures |= self._of_users
        return signatures

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")], autograph=False)
    def search(self, query: tf.Tensor) -> dict[str, tf.Tensor]:
        """The k best items for each query: ``item_ids`` string, ``scores`` float32, ``[N, k]``."""
        embedding = self.encode_query(query)["embedding"]
        if self._hybrid is None:
            scores, item_ids = self._nearest(embedding)
        else:
            scores, item_ids = self._hybrid(query, embedding)
        return {"item_ids": item_ids, "scores": scores}

    def _search_filtered(
        self, query: tf.Tensor, exclude: tf.Tensor, *filters: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The k best of the items that a request allows, and their columns.

        Every item is scored, whatever the index: what is left over by a filter may lie anywhere.

        Args:
            query: string ``[N]``.
            exclude: ids of items that are not wanted, string ``[N, E]``; unknown and empty ones do
                no harm.
            *filters: for each column what it allows; see `ItemColumns`.

        Returns:
            As `search`, and for each column its values, ``[N, k]``.
        """
        embedding = self.encode_query(query)["embedding"]
        return self._filtered(query, embedding, None, exclude, *filters)

    def _filtered(
        self,
        query: tf.Tensor,
        embedding: tf.Tensor,
        best: tf.Tensor | None,
        exclude: tf.Tensor,
        *filters: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """As `_search_filtered`, of queries that are encoded already; for `best` see `_scores`."""
        columns = self._columns
        assert columns is not None
        wanted = dict(zip(columns.kinds, filters, strict=True))

        def scores_of(part: slice) -> tf.Tensor:
            of_part = None if best is None else best[part]
            scores = self._scores(query[part], embedding[part], of_part)
            allowed = columns.allowed({name: values[part] for name, values in wanted.items()})
            return tf.where(allowed & ~self._named(exclude[part]), scores, -np.inf)

        scores, rows = best_items(
            scores_of,
            query_count=tf.shape(query)[0],
            item_count=self._item_count,
            k=self._k,
        )
        rows = tf.where(tf.math.is_finite(scores), rows, -1)
        missing = [[0, 0], [0, max(0, self._k - self._item_count)]]
        values = columns.values_at(tf.pad(rows, missing, constant_values=-1))
        scores, item_ids = self._answers(scores, rows, self._k)
        return {"item_ids": item_ids, "scores": scores} | values

    def _scores_of_queries(self, query: tf.Tensor) -> tf.Tensor:
        """What `search` scores: string ``[n]`` to float32 ``[n, items]``."""
        return self._scores(query, self.encode_query(query)["embedding"])

    def _scores(
        self, query: tf.Tensor, embedding: tf.Tensor, best: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Likewise, of queries encoded already, ``[n, d]``; for `best` see `HybridSearch`."""
        if self._hybrid is None:
            return self._scores_of_all(embedding)
        return self._hybrid.scores(query, embedding, best)

    def _recommend(
        self,
        history: tf.Tensor,
        query: tf.Tensor,
        reviews: tf.Tensor | None = None,
        ratings: tf.Tensor | None = None,
        context: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The k best items for each user, the items of the history left out.

        An empty history falls back to the query, and without one to the most popular items.

        Args:
            history: item ids, oldest first, string ``[N, h]``; empty places may stand anywhere.
            query: what the user asks for now, string ``[N]``; empty for nothing.
            reviews: what the user wrote about items, string ``[N, r]``; empty for nothing.
            ratings: how they rated what they wrote about, float32 ``[N, r]``, 1 to 5; 0 or NaN for
                no rating, and then the text tells.
            context: what else is known of the user or the moment, ``column=value``, string
                ``[N, c]``; empty for nothing, and what the run has not learned adds nothing.

        Returns:
            ``item_ids`` string and ``scores`` float32, ``[N, k]``; ``unknown`` int32 ``[N]``, how
            many ids of the history are not in the catalogue: they are passed over.
        """
        assert self._recommender is not None
        users, unknown = self._users(history, query, reviews, ratings, context)
        scores, found = self._recommender.best(
            users, lambda part: self._named(history[part]), self._k
        )
        scores, item_ids = self._answers(scores, found, self._k)
        return {"item_ids": item_ids, "scores": scores, "unknown": unknown}

    def _score(
        self,
        history: tf.Tensor,
        query: tf.Tensor,
        item_ids: tf.Tensor,
        reviews: tf.Tensor | None = None,
        ratings: tf.Tensor | None = None,
        context: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """How likely items are the next that a user takes.

        Args:
            history: see `_recommend`.
            query: see `_recommend`.
            item_ids: the items asked about, string ``[N, m]``.
            reviews: see `_recommend`.
            ratings: see `_recommend`.
            context: see `_recommend`.

        Returns:
            ``probability`` float32 ``[N, m]``, 0 for an unknown item; ``unknown`` as `_recommend`.
        """
        assert self._recommender is not None
        users, unknown = self._users(history, query, reviews, ratings, context)
        seen, asked = self._named(history), self._rows.lookup(item_ids)
        probability = self._recommender.probabilities(users, seen, asked)
        return {"probability": probability, "unknown": unknown}

    def _users(
        self,
        history: tf.Tensor,
        query: tf.Tensor,
        reviews: tf.Tensor | None,
        ratings: tf.Tensor | None,
        context: tf.Tensor | None,
    ) -> tuple[Users, tf.Tensor]:
        """Users with the rows of their items, and the number of unknown ids, ``[N]``."""
        if reviews is not None:
            count, shape = tf.shape(history)[:1], tf.shape(reviews)
            alike = "reviews and ratings must be of one shape, [users, reviews]"
            checks = [
                tf.debugging.assert_equal(shape, tf.shape(ratings), alike),
                tf.debugging.assert_equal(
                    shape[:1], count, "history and reviews: not as many users"
                ),
            ]
            with tf.control_dependencies(checks):
                reviews = tf.identity(reviews)
        if context is not None:
            count, shape = tf.shape(history)[:1], tf.shape(context)[:1]
            alike = "history and context: not as many users"
            with tf.control_dependencies([tf.debugging.assert_equal(shape, count, alike)]):
                context = tf.identity(context)
        rows = self._rows.lookup(history)
        unknown = tf.cast((rows == _UNKNOWN) & (history != EMPTY_ID), tf.int32)
        return Users(rows, query, reviews, ratings, context), tf.reduce_sum(unknown, axis=1)

    def _named(self, item_ids: tf.Tensor) -> tf.Tensor:
        """Which items are named: string ``[n, E]`` to bool ``[n, items]``."""
        rows = self._rows.lookup(item_ids)  # [n, E], -1 for unknown: hits no column
        count = tf.shape(rows)[0]
        places = tf.stack(
            [tf.repeat(tf.range(count, dtype=tf.int64), tf.shape(rows)[1]), tf.reshape(rows, [-1])],
            axis=1,
        )
        places = tf.boolean_mask(places, places[:, 1] >= 0)
        hits = tf.ones(tf.shape(places)[:1], tf.int32)
        shape = tf.stack([tf.cast(count, tf.int64), self._item_count])
        return tf.scatter_nd(places, hits, shape) > 0

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")], autograph=False)
    def encode_query(self, query: tf.Tensor) -> dict[str, tf.Tensor]:
        """Query embeddings: ``embedding`` float32 ``[N, d]``."""
        return {"embedding": self._text.embed_queries(query)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")], autograph=False)
    def tokenize_query(self, query: tf.Tensor) -> tf.Tensor:
        """Token ids of queries, int ``[N, T]``; no signature, but what `search` begins with.

        The server times it by itself: see `serving.server.stages`.
        """
        return self._text.tokenize_queries(query)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")], autograph=False)
    def encode_item(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Embeddings of item texts, the template filled in: ``embedding`` float32 ``[N, d]``."""
        return {"embedding": self._text.embed_items(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "item_id")], autograph=False)
    def similar(self, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
        """The k items most like each item, itself left out; same outputs as `search`.

        An id that is not in the catalogue gets a row of empty places, not an error: one stale id
        must not fail the rest of a batch.
        """
        rows = self._rows.lookup(item_id)
        embeddings = self._embeddings_at(tf.maximum(rows, 0))  # [N, d]
        scores, item_ids = self._nearest_without(embeddings, item_id[:, None])
        known = (rows != _UNKNOWN)[:, None]
        return {
            "item_ids": tf.where(known, item_ids, EMPTY_ID),
            "scores": tf.where(known, scores, FLOOR_SCORE),
        }
