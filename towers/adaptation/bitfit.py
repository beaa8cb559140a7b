"""BitFit: training biases alone."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from towers.adaptation.base import Adaptation


@keras.saving.register_keras_serializable(package="towers")
class BitFit(Adaptation):
    """Trains the biases of linear maps and layer norms; nothing is added.

    With ``L`` layers of width ``h`` and inner width ``m``: ``L (7h + m) + h`` weights.

    Reference: Ben Zaken et al. 2022, "BitFit", https://arxiv.org/abs/2106.10199.
    """

    def trained(self, backbone: keras.Model) -> Iterator[keras.Variable]:
        """The biases, and the shifts of layer norms."""
        layers = (backbone.embeddings_layer_norm, *backbone.transformer_layers)
        for layer in layers:
            for weight in layer.weights:
                if weight.name in ("bias", "beta"):
                    yield weight
