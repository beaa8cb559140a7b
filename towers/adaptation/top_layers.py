"""Training the uppermost layers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from towers.adaptation.base import Adaptation
from towers.errors import InputError


@keras.saving.register_keras_serializable(package="towers")
class TopLayers(Adaptation):
    """Trains all weights of the uppermost layers; gradients end below them.

    With ``n`` layers of width ``h`` and inner width ``m``: ``n (4h^2 + 2hm + 9h + m)`` weights.

    Args:
        layers: number of layers, from 1.

    Raises:
        InputError: when attached, if the backbone has fewer layers.
    """

    def __init__(self, layers: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = layers

    def trained(self, backbone: keras.Model) -> Iterator[keras.Variable]:
        """All weights of the layers."""
        have = len(backbone.transformer_layers)
        if not 1 <= self.layers <= have:
            raise InputError(f"{self.layers} top layers to train; the encoder has {have}")
        for layer in backbone.transformer_layers[-self.layers :]:
            yield from layer.weights

    def frozen_layers(self, backbone: keras.Model) -> int:
        """The layers below."""
        return len(backbone.transformer_layers) - self.layers

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "layers": self.layers}
