"""The item tower alone as a SavedModel: what encodes a catalogue that is not exported yet."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from towers.retriever import Retriever
from towers.text_graph import TextGraph


class ItemEncoderModule(tf.Module):
    """Item texts in, vectors out.

    Args:
        retriever: the towers, in float32.
    """

    def __init__(self, retriever: Retriever) -> None:
        super().__init__(name="item_encoder")
        self._text = TextGraph(retriever)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")], autograph=False)
    def encode_item(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """As the signature of the same name of an export: ``embedding`` float32 ``[N, d]``."""
        return {"embedding": self._text.embed_items(text)}


def save_item_encoder(retriever: Retriever, folder: Path) -> None:
    """Writes the item tower of a retriever, computing in float32."""
    module = ItemEncoderModule(retriever.as_float32())
    tf.saved_model.save(module, str(folder), signatures={"encode_item": module.encode_item})
