"""What tells one encoder from another."""

from __future__ import annotations

import hashlib

import keras
import numpy as np

from towers.text_encoder import TextEncoder
from towers.tokenizer import Tokenizer


def fingerprint(
    encoder: TextEncoder, tokenizer: Tokenizer, *settings: object, projection: bool = True
) -> str:
    """SHA-256 of a tower's weights and vocabulary, and of settings that decide its vectors too.

    Args:
        encoder: the tower.
        tokenizer: its tokenizer.
        *settings: see above.
        projection: whether the weights of a projection count.
    """
    digest = hashlib.sha256()
    whole = (
        *settings,
        tokenizer.lowercase,
        tokenizer.vocabulary,
        encoder.pooling.mode,
        encoder.backbone.num_heads,  # the one width that no weight shows
    )
    digest.update(repr(whole).encode())
    left_out = set[int]()
    if encoder.projection is not None and not projection:
        left_out = {id(weight) for weight in encoder.projection.weights}
    for weight in encoder.weights:
        if id(weight) not in left_out:
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return digest.hexdigest()
