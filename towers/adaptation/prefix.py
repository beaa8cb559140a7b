"""Prefix tuning: learned keys and values beside those of the text."""

from __future__ import annotations

from typing import Any

import keras

from towers.adaptation.base import Adaptation, multiply
from towers.bert import BertWeights, Prefix


@keras.saving.register_keras_serializable(package="towers")
class PrefixTuning(Adaptation):
    """Every layer's attention also sees a few learned keys and values.

    In the first paper the prefix stands in one softmax with the text, so that any prefix, an
    untrained one too, takes weight from the text. Here it has a softmax of its own, and what it
    finds is added times a learned gate, one a head, that starts at zero (the second paper): before
    training, the encoder computes exactly what it computes without. With ``L`` layers of width
    ``h``, ``a`` heads and prefixes of length ``p``: ``L (2hp + a)`` weights. They stay in the saved
    and exported model.

    References:
        - Li & Liang 2021, "Prefix-Tuning", https://arxiv.org/abs/2101.00190
        - Zhang et al. 2023, "LLaMA-Adapter", https://arxiv.org/abs/2303.16199, section 3.2

    Args:
        length: learned keys and values a layer.
    """

    mergeable = False

    def __init__(self, length: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = length

    def make_weights(self, backbone: keras.Model) -> None:
        """Makes keys, values and gates of all layers."""
        layers, heads = len(backbone.transformer_layers), int(backbone.num_heads)
        shape = (layers, heads, self.length, int(backbone.hidden_dim) // heads)
        # As large as the keys and values of text are, about: a gate's gradient grows with them.
        start = keras.initializers.RandomNormal(stddev=1.0)
        self.keys = self.own_weight("keys", shape, start)
        self.values = self.own_weight("values", shape, start)
        self.gate = self.own_weight("gate", (layers, heads, 1, 1))

    def adapt(self, weights: BertWeights) -> BertWeights:
        """Puts the prefixes into the layers."""
        layers = tuple(
            layer._replace(prefix=Prefix(self.keys[number], self.values[number], self.gate[number]))
            for number, layer in enumerate(weights.layers)
        )
        return weights._replace(layers=layers)

    def scale(self, factor: float) -> None:
        """Scales what attention to the prefix adds."""
        multiply([self.gate], factor)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "length": self.length}
