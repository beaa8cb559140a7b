"""Encoding many texts by the `encode_item` signature of a SavedModel: neither Keras nor weights."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from serving.loading import load_export
from towers.errors import InputError

SIGNATURE = "encode_item"

# As many as the graph tokenises at a time: the widest of them decides how far all are padded.
_BATCH_TEXTS = 256
# One batch's operations that do not spread over cores run beside another's that do.
_BATCHES_AT_ONCE = 2


class SavedEncoder:
    """The item tower of a SavedModel.

    Args:
        folder: an export's version folder, or what `serving.item_encoder` wrote.

    Raises:
        InputError: the folder holds no SavedModel, or one that does not encode items.
    """

    def __init__(self, folder: str | Path) -> None:
        self._model = load_export(folder)
        if SIGNATURE not in self._model.signatures:
            raise InputError(f"{folder} has no signature {SIGNATURE!r}: not an export of ours")
        self._encode = self._model.signatures[SIGNATURE]
        self.embedding_dim = int(self._encode.structured_outputs["embedding"].shape[-1])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts, longest first, in batches of texts of like length.

        Args:
            texts: item texts; as many as can be kept in memory with their vectors.

        Returns:
            float32 ``[len(texts), d]``, in the order of the texts.
        """
        import tensorflow as tf

        encoded = [text.encode() for text in texts]
        order = np.argsort([-len(text) for text in encoded], kind="stable")
        vectors = np.empty((len(texts), self.embedding_dim), np.float32)

        def embed(rows: np.ndarray) -> None:
            batch = tf.constant([encoded[row] for row in rows], tf.string)
            vectors[rows] = self._encode(text=batch)["embedding"].numpy()

        batches = [order[x : x + _BATCH_TEXTS] for x in range(0, len(order), _BATCH_TEXTS)]
        with ThreadPoolExecutor(_BATCHES_AT_ONCE) as workers:
            for _ in workers.map(embed, batches):
                pass
        return vectors
