"""The towers as graph operations, for export: strings in, vectors out."""

from __future__ import annotations

import tensorflow as tf

from towers.attribute_fusion import AttributeFusion
from towers.attribute_reader import AttributeReader
from towers.item_text import SEPARATOR
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.traced import traced_once

_TEXTS = tf.TensorSpec([None], tf.string)
_BLOCK_ROWS = 256  # texts tokenised at a time

# Tokens, padding included, that one pass through the encoder is given. From 7 to 64 rows oneDNN
# multiplies by weights in one layout and otherwise in another (float32, AVX-512): a server that has
# it keep weights in the layout they were first used in (`serving.server.tensorflow_runtime`) must
# not mix the two. Larger passes would be no quicker a token: weights stay in the cache meanwhile.
_MIN_TOKENS = 8
_MAX_TOKENS = 64


class TextGraph(tf.Module):
    """A retriever's towers with their weights as they are now, for use in a `tf.function`.

    Args:
        retriever: the towers; later changes to their weights change nothing here.
    """

    def __init__(self, retriever: Retriever) -> None:
        super().__init__(name="text_graph")
        model = retriever.model
        self._text = retriever.text
        self._tokenizer = retriever.tokenizer
        self._dim = retriever.embedding_dim
        self._review_max_length = retriever.review_max_length
        self._query_tower = _FrozenTower(model.query_tower)
        self._item_tower = self._query_tower if model.shared else _FrozenTower(model.item_tower)
        self._fusion = None if model.fusion is None else _FrozenFusion(model.fusion)
        self._pieces = traced_once(self._tokenizer.tokenize, _TEXTS)
        self._embed_reviews = traced_once(self._reviews_in_blocks, _TEXTS)

    def embed_queries(self, texts: tf.Tensor) -> tf.Tensor:
        """Query vectors: string ``[N]`` to float32 ``[N, d]``."""
        texts = self._prefixed(texts)
        return self._in_blocks(self._query_tower, texts, self._text.query_max_length)

    def embed_reviews(self, texts: tf.Tensor) -> tf.Tensor:
        """Vectors of reviews, by the query tower: string ``[N]`` to float32 ``[N, d]``."""
        return self._embed_reviews(texts)

    def _reviews_in_blocks(self, texts: tf.Tensor) -> tf.Tensor:
        return self._in_blocks(self._query_tower, self._prefixed(texts), self._review_max_length)

    def tokenize_queries(self, texts: tf.Tensor) -> tf.Tensor:
        """Token ids of queries, as `embed_queries` has them: string ``[N]`` to int ``[N, T]``."""
        return self._tokens(self._prefixed(texts), self._text.query_max_length)["token_ids"]

    def _tokens(self, texts: tf.Tensor, max_length: int) -> dict[str, tf.Tensor]:
        return self._tokenizer.padded(self._pieces(texts), max_length)

    def embed_items(self, texts: tf.Tensor) -> tf.Tensor:
        """Vectors of item texts, the template filled in: string ``[N]`` to float32 ``[N, d]``."""
        if self._fusion is None:
            return self._in_blocks(self._item_tower, texts, self._text.item_max_length)
        alone = tf.strings.split(texts, SEPARATOR).to_tensor("", shape=[None, 1])[:, 0]
        vectors = self._in_blocks(self._item_tower, alone, self._text.item_max_length)
        return self._fusion.fuse(vectors, texts)

    def _prefixed(self, texts: tf.Tensor) -> tf.Tensor:
        prefix = self._text.query_prefix
        return tf.strings.join([prefix, texts]) if prefix else texts

    def _in_blocks(self, tower: _FrozenTower, texts: tf.Tensor, max_length: int) -> tf.Tensor:
        """Encodes some texts after the other: the memory for a request does not grow with it."""

        def more(start: tf.Tensor, vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            tokens = self._tokens(texts[start : start + _BLOCK_ROWS], max_length)
            return start + _BLOCK_ROWS, tf.concat([vectors, self._in_parts(tower, tokens)], axis=0)

        _, vectors = tf.while_loop(
            lambda start, _: start < tf.shape(texts)[0],
            more,
            (tf.constant(0), tf.zeros([0, self._dim])),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, self._dim])),
            parallel_iterations=1,
        )
        return vectors

    def _in_parts(self, tower: _FrozenTower, tokens: dict[str, tf.Tensor]) -> tf.Tensor:
        """Encodes a batch, ``[N, T]`` with N at least 1, in parts of equal size, side by side."""
        count, width = tf.unstack(tf.shape(tokens["token_ids"]))
        wider = tf.maximum(width, min(_MIN_TOKENS, tower.positions))
        most = tf.maximum(_MAX_TOKENS // wider, 1)  # texts a part
        parts = (count + most - 1) // most
        size = (count + parts - 1) // parts

        def split(rows: tf.Tensor) -> tf.Tensor:
            rows = tf.pad(rows, [[0, -count % size], [0, wider - width]])  # masked
            return tf.reshape(rows, [parts, size, wider])

        vectors = tf.map_fn(
            tower.embed,
            tf.nest.map_structure(split, tokens),
            fn_output_signature=tf.TensorSpec([None, self._dim]),
        )  # [parts, size, d]
        return tf.reshape(vectors, [-1, self._dim])[:count]


class _FrozenTower(tf.Module):
    """One tower on a copy of its weights, laid out as its forward pass takes them."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(name="tower")
        self._weights = tf.nest.map_structure(
            lambda weight: tf.Variable(weight, trainable=False), encoder.read_weights()
        )
        self._encoder_embed = encoder.embed
        self.positions = int(encoder.backbone.max_sequence_length)
        ids = tf.TensorSpec([None, None], tf.int32)
        self.embed = traced_once(self._embed, {"token_ids": ids, "padding_mask": ids})

    def _embed(self, tokens: dict[str, tf.Tensor]) -> tf.Tensor:
        """Token ids to vectors, as `towers.TextEncoder`."""
        return self._encoder_embed(
            tf.nest.map_structure(tf.convert_to_tensor, self._weights), tokens
        )


class _FrozenFusion(tf.Module):
    """A fusion of attributes on a copy of its weights."""

    def __init__(self, fusion: AttributeFusion) -> None:
        super().__init__(name="fusion")
        self._weights = tf.nest.map_structure(
            lambda weight: tf.Variable(weight, trainable=False), fusion.read_weights()
        )
        self._reader = AttributeReader(fusion.attributes)
        self._fuse = fusion.fuse

    def fuse(self, vectors: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Vectors of texts, float32 ``[N, d]``, moved by the attributes behind them."""
        weights = tf.nest.map_structure(tf.convert_to_tensor, self._weights)
        return self._fuse(weights, vectors, self._reader(items))
