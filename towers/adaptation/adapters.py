"""Adapters: small bottlenecks inside frozen layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from towers.adaptation.base import Adaptation, multiply
from towers.bert import Adapter, BertWeights, Dense


@keras.saving.register_keras_serializable(package="towers")
class Adapters(Adaptation):
    """Two bottlenecks a layer, after attention and after the feed-forward part, and the norms.

    Each is ``x + up(gelu(down(x)))`` with ``up`` zero at first, in front of the residual sum. The
    layers' norms are trained too, as in the paper. With ``L`` layers of width ``h`` and bottlenecks
    of width ``w``: ``L (2 (2hw + h + w) + 4h)`` weights. They stay in the saved and exported model:
    a bottleneck is not linear and cannot be merged into kernels.

    Reference: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP",
    https://arxiv.org/abs/1902.00751.

    Args:
        width: of the bottlenecks.
    """

    mergeable = False

    def __init__(self, width: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width

    def trained(self, backbone: keras.Model) -> Iterator[keras.Variable]:
        """The layers' norms."""
        for layer in backbone.transformer_layers:
            yield from layer._self_attention_layer_norm.weights
            yield from layer._feedforward_layer_norm.weights

    def make_weights(self, backbone: keras.Model) -> None:
        """Makes the bottlenecks of all layers."""
        places = (len(backbone.transformer_layers), 2)  # after attention, after feed-forward
        hidden = int(backbone.hidden_dim)
        start = keras.initializers.TruncatedNormal(stddev=0.01)  # section 3.6: at most 0.01
        self.down_kernel = self.own_weight("down_kernel", (*places, hidden, self.width), start)
        self.down_bias = self.own_weight("down_bias", (*places, self.width))
        self.up_kernel = self.own_weight("up_kernel", (*places, self.width, hidden))
        self.up_bias = self.own_weight("up_bias", (*places, hidden))

    def adapt(self, weights: BertWeights) -> BertWeights:
        """Puts the bottlenecks into the layers."""
        layers = tuple(
            layer._replace(
                attention_adapter=self._adapter(number, 0), output_adapter=self._adapter(number, 1)
            )
            for number, layer in enumerate(weights.layers)
        )
        return weights._replace(layers=layers)

    def scale(self, factor: float) -> None:
        """Scales what the bottlenecks add."""
        multiply((self.up_kernel, self.up_bias), factor)

    def _adapter(self, layer: int, place: int) -> Adapter:
        return Adapter(
            Dense(self.down_kernel[layer, place], self.down_bias[layer, place]),
            Dense(self.up_kernel[layer, place], self.up_bias[layer, place]),
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "width": self.width}
