"""What tells one encoder from another."""

from __future__ import annotations

import hashlib

import numpy as np

from towers.text_encoder import TextEncoder
from towers.tokenizer import Tokenizer


def fingerprint(encoder: TextEncoder, tokenizer: Tokenizer, *settings: object) -> str:
    """SHA-256 of a tower's weights and vocabulary, and of settings that decide its vectors too."""
    digest = hashlib.sha256()
    whole = (
        *settings,
        tokenizer.lowercase,
        tokenizer.vocabulary,
        encoder.pooling.mode,
        encoder.backbone.num_heads,  # the one width that no weight shows
    )
    digest.update(repr(whole).encode())
    for weight in encoder.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()
