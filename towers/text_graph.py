"""The towers as graph operations, for export: strings in, vectors out."""

from __future__ import annotations

import tensorflow as tf

from towers.retriever import Retriever
from towers.text_encoder import TextEncoder

_BLOCK_ROWS = 256  # texts encoded at a time


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
        self._query_tower = _FrozenTower(model.query_tower)
        self._item_tower = self._query_tower if model.shared else _FrozenTower(model.item_tower)

    def embed_queries(self, texts: tf.Tensor) -> tf.Tensor:
        """Query vectors: string ``[N]`` to float32 ``[N, d]``."""
        if self._text.query_prefix:
            texts = tf.strings.join([self._text.query_prefix, texts])
        return self._in_blocks(self._query_tower, texts, self._text.query_max_length)

    def embed_items(self, texts: tf.Tensor) -> tf.Tensor:
        """Vectors of item texts, the template filled in: string ``[N]`` to float32 ``[N, d]``."""
        return self._in_blocks(self._item_tower, texts, self._text.item_max_length)

    def _in_blocks(self, tower: _FrozenTower, texts: tf.Tensor, max_length: int) -> tf.Tensor:
        """Encodes some texts after the other: the memory for a request does not grow with it."""

        def more(start: tf.Tensor, vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            tokens = self._tokenizer(texts[start : start + _BLOCK_ROWS], max_length)
            return start + _BLOCK_ROWS, tf.concat([vectors, tower.embed(tokens)], axis=0)

        _, vectors = tf.while_loop(
            lambda start, _: start < tf.shape(texts)[0],
            more,
            (tf.constant(0), tf.zeros([0, self._dim])),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, self._dim])),
            parallel_iterations=1,
        )
        return vectors


class _FrozenTower(tf.Module):
    """One tower on a copy of its weights, laid out as its forward pass takes them."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(name="tower")
        self._weights = tf.nest.map_structure(
            lambda weight: tf.Variable(weight, trainable=False), encoder.read_weights()
        )
        self._encoder_embed = encoder.embed

    def embed(self, tokens: dict[str, tf.Tensor]) -> tf.Tensor:
        """Token ids to vectors, as `towers.TextEncoder`."""
        return self._encoder_embed(
            tf.nest.map_structure(tf.convert_to_tensor, self._weights), tokens
        )
