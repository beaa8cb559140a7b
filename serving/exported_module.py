"""What a served model answers: the functions behind the signatures of an export."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from serving.index.item_index import EMPTY_ID, FLOOR_SCORE, ItemIndex
from serving.index.scann import ScannIndex
from serving.lexical import HybridSearch
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
    """

    def __init__(
        self, retriever: Retriever, index: ItemIndex, hybrid: HybridSearch | None = None
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
        if isinstance(index, ScannIndex):
            self.release = index.release  # for `serving.loading`

    @property
    def signatures(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
        """Signature name to function."""
        return {
            "serving_default": self.search,
            "search": self.search,
            "encode_query": self.encode_query,
            "encode_item": self.encode_item,
            "similar": self.similar,
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")], autograph=False)
    def search(self, query: tf.Tensor) -> dict[str, tf.Tensor]:
        """The k best items for each query: ``item_ids`` string, ``scores`` float32, ``[N, k]``."""
        embedding = self.encode_query(query)["embedding"]
        if self._hybrid is None:
            scores, item_ids = self._nearest(embedding)
        else:
            scores, item_ids = self._hybrid(query, embedding)
        return {"item_ids": item_ids, "scores": scores}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")], autograph=False)
    def encode_query(self, query: tf.Tensor) -> dict[str, tf.Tensor]:
        """Query embeddings: ``embedding`` float32 ``[N, d]``."""
        return {"embedding": self._text.embed_queries(query)}

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
