"""What a shard of a catalogue answers, so that the answers of all shards can be merged exactly.

A search of shards has two rounds. In the first one shard encodes the queries, and, where words
count, each tells the best BM25 score of its items; the second is the search, with that vector and
the best of those scores. So the encoder runs once, all shards compare with the same vector, and
words are weighed against the best match of the whole catalogue, as in one index. Each answer says
which export and which shard it is of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from serving.exported_module import ExportedModule
from serving.index.item_index import EMPTY_ID, FLOOR_SCORE, ItemIndex
from serving.item_columns import ItemColumns
from serving.lexical import HybridSearch
from serving.shards import Shard
from towers.retriever import Retriever

Outputs = dict[str, tf.Tensor]

_SIGNED = ("export_id", "shard", "places")
_UNKNOWN = np.int64(-1)

_SIGNATURES = (
    "shard_encode",
    "shard_best",
    "shard_search",
    "shard_search_filtered",
    "shard_item",
    "shard_similar",
)


class ExportedShard(ExportedModule):
    """An `ExportedModule` of the items of one shard, with signatures for `serving.fan_out`.

    Its own `search` and `search_filtered` see the items of the shard alone.

    Args:
        shard: which shard it is.
        retriever: the towers, in float32.
        index: the built index of the shard's items.
        hybrid: see `ExportedModule`; its words are counted over the whole catalogue.
        columns: columns of the shard's items.
    """

    def __init__(
        self,
        shard: Shard,
        retriever: Retriever,
        index: ItemIndex,
        hybrid: HybridSearch | None = None,
        columns: ItemColumns | None = None,
    ) -> None:
        super().__init__(retriever, index, hybrid, columns)
        self._number, self._export_id = shard.number, shard.export_id
        places = shard.places if len(shard.places) else [_UNKNOWN]  # an empty index has one row
        self._places = tf.Variable(places, trainable=False, dtype=tf.int32)
        query = tf.TensorSpec([None], tf.string, "query")
        item_id = tf.TensorSpec([None], tf.string, "item_id")
        embedding = tf.TensorSpec([None, index.embedding_dim], tf.float32, "embedding")
        best = [] if hybrid is None else [tf.TensorSpec([None], tf.float32, "best")]
        taken: dict[str, tuple[Callable[..., Outputs], list[tf.TensorSpec]]] = {
            "shard_encode": (self._encode, [query]),
            "shard_search": (self._search_shard, [query, embedding, *best]),
            "shard_item": (self._item, [item_id]),
            "shard_similar": (self._similar, [item_id, embedding]),
        }
        if hybrid is not None:
            taken["shard_best"] = (self._best, [query])
        if columns is not None:
            exclude = tf.TensorSpec([None, None], tf.string, "exclude")
            filters = columns.inputs.values()
            taken["shard_search_filtered"] = (
                self._search_shard_filtered,
                [query, embedding, *best, exclude, *filters],
            )
        for name, (function, specs) in taken.items():
            traced = tf.function(function, input_signature=specs, autograph=False)
            setattr(self, name, traced)

    @property
    def signatures(self) -> dict[str, Callable[..., Outputs]]:
        """Signature name to function."""
        own = {name: getattr(self, name) for name in _SIGNATURES if hasattr(self, name)}
        return super().signatures | own

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")], autograph=False)
    def search(self, query: tf.Tensor) -> Outputs:
        """See `ExportedModule`; of the shard's items alone."""
        return _unsigned(self.shard_search(query, *self._first_round(query)))

    def _search_filtered(
        self, query: tf.Tensor, exclude: tf.Tensor, *filters: tf.Tensor
    ) -> Outputs:
        """See `ExportedModule`; of the shard's items alone."""
        first = self._first_round(query)
        return _unsigned(self.shard_search_filtered(query, *first, exclude, *filters))

    def _first_round(self, query: tf.Tensor) -> list[tf.Tensor]:
        """What a shard's own search takes from no other shard."""
        embedding = self.shard_encode(query)["embedding"]
        return [embedding] if self._hybrid is None else [embedding, self.shard_best(query)["best"]]

    def _encode(self, query: tf.Tensor) -> Outputs:
        """Query embeddings: ``embedding`` float32 ``[N, d]``."""
        return self._signed(self.encode_query(query))

    def _best(self, query: tf.Tensor) -> Outputs:
        """The highest BM25 of any item of the shard: ``best`` float32 ``[N]``."""
        assert self._hybrid is not None
        return self._signed({"best": self._hybrid.lexical_best(query)})

    def _search_shard(
        self, query: tf.Tensor, embedding: tf.Tensor, best: tf.Tensor | None = None
    ) -> Outputs:
        """The k best items of the shard.

        Args:
            query: string ``[N]``.
            embedding: theirs, float32 ``[N, d]``.
            best: float32 ``[N]``, the highest BM25 of any item of any shard.

        Returns:
            ``item_ids`` string, ``scores`` float32, ``places`` int32, ``[N, k]``.
        """
        if self._hybrid is None:
            scores, item_ids = self._nearest(embedding)
        else:
            scores, item_ids = self._hybrid(query, embedding, best)
        return self._placed({"item_ids": item_ids, "scores": scores})

    def _search_shard_filtered(
        self, query: tf.Tensor, embedding: tf.Tensor, *others: tf.Tensor
    ) -> Outputs:
        """As `_search_shard` and `search_filtered`: ``best`` where words count, then filters."""
        best, filters = (None, others) if self._hybrid is None else (others[0], others[1:])
        return self._placed(self._filtered(query, embedding, best, *filters))

    def _item(self, item_id: tf.Tensor) -> Outputs:
        """Item embeddings: ``embedding`` float32 ``[N, d]``, zeros where ``known`` is 0.

        ``known`` is int32 ``[N]``: 1 where the item is the shard's.
        """
        rows = self._rows_of(item_id)
        known = rows >= 0
        embedding = self._embeddings_at(tf.maximum(rows, 0))
        return self._signed(
            {
                "embedding": tf.where(known[:, None], embedding, 0.0),
                "known": tf.cast(known, tf.int32),
            }
        )

    def _similar(self, item_id: tf.Tensor, embedding: tf.Tensor) -> Outputs:
        """The k items of the shard nearest to each item's embedding, itself left out."""
        scores, item_ids = self._nearest_without(embedding, item_id[:, None])
        return self._placed({"item_ids": item_ids, "scores": scores})

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "item_id")], autograph=False)
    def similar(self, item_id: tf.Tensor) -> Outputs:
        """See `ExportedModule`; of the shard's items alone."""
        item = self.shard_item(item_id)
        found = self.shard_similar(item_id, item["embedding"])
        known = item["known"][:, None] > 0
        return {
            "item_ids": tf.where(known, found["item_ids"], EMPTY_ID),
            "scores": tf.where(known, found["scores"], FLOOR_SCORE),
        }

    def _placed(self, answer: Outputs) -> Outputs:
        rows = self._rows_of(answer["item_ids"])
        places = tf.gather(tf.convert_to_tensor(self._places), tf.maximum(rows, 0))
        return self._signed(answer | {"places": tf.where(rows >= 0, places, -1)})

    def _rows_of(self, item_ids: tf.Tensor) -> tf.Tensor:
        """Rows of items, int64, of the same shape; -1 for none."""
        return tf.where(item_ids == EMPTY_ID, _UNKNOWN, self._rows.lookup(item_ids))

    def _signed(self, answer: Outputs) -> Outputs:
        """Adds ``export_id`` string and ``shard`` int32, ``[N]``."""
        count = tf.shape(next(iter(answer.values())))[:1]
        return answer | {
            "export_id": tf.fill(count, self._export_id),
            "shard": tf.fill(count, self._number),
        }


def _unsigned(answer: Outputs) -> Outputs:
    """An answer without what `serving.fan_out` merges it by."""
    return {name: x for name, x in answer.items() if name not in _SIGNED}
