"""From token vectors to one vector a text."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

POOLINGS = ("mean", "cls", "max")


@keras.saving.register_keras_serializable(package="towers")
class Pooling(keras.layers.Layer):
    """Pools token vectors, padding left out.

    Args:
        mode: ``mean`` (Reimers & Gurevych 2019, Sentence-BERT), ``cls`` (the first token) or
            ``max`` (element by element).

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, mode: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if mode not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {mode!r}")
        self.mode = mode

    def call(self, tokens: Any, padding_mask: Any) -> Any:
        """Pools; see `pool`."""
        return pool(tokens, padding_mask, self.mode)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "mode": self.mode}


def pool(tokens: Any, padding_mask: Any, mode: str) -> Any:
    """Pools token vectors.

    Args:
        tokens: float ``[N, T, d]``.
        padding_mask: int or bool ``[N, T]``, 1 for tokens.
        mode: see `Pooling`.

    Returns:
        float32 ``[N, d]``.
    """
    tokens = ops.cast(tokens, "float32")
    if mode == "cls":
        return tokens[:, 0]
    mask = ops.cast(padding_mask, "float32")[:, :, None]  # [N, T, 1]
    if mode == "max":
        # Finite, so that a text of padding alone does not turn into NaN further on.
        return ops.max(ops.where(mask > 0, tokens, -1e9), axis=1)
    return ops.sum(tokens * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1.0)
