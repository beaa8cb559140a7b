"""What every method of adaptation has in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from towers.bert import BertWeights


class Adaptation(keras.layers.Layer):
    """A parameter-efficient way to train a `towers.TextEncoder`.

    An adaptation is attached to one encoder, as its argument. It freezes the backbone but for what
    `trained` names, has weights of its own, and changes the backbone's weights on their way into
    the forward pass: `adapt` is a function from nests of tensors to nests of tensors. Until it is
    trained, the encoder computes what it computes without.

    A subclass overrides what it needs of `trained`, `make_weights`, `adapt`, `merge` and `scale`,
    and keeps the arguments of its constructor for `get_config`.

    Class attributes:
        mergeable: whether `merge` can write all that was learned into a plain backbone.
    """

    mergeable = True

    def attach(self, backbone: keras.Model) -> None:
        """Freezes the backbone but for `trained` and makes the own weights."""
        for weight in backbone.weights:
            weight.trainable = False
        for weight in self.trained(backbone):
            weight.trainable = True
        self.make_weights(backbone)
        self.built = True

    def trained(self, backbone: keras.Model) -> Iterable[keras.Variable]:
        """The weights of the backbone that are trained; none unless overridden."""
        return ()

    def frozen_layers(self, backbone: keras.Model) -> int:
        """How many of the lowest layers stay as they are, and the embeddings with them.

        0 unless overridden; what the others make can be kept from one step to the next.
        """
        return 0

    def make_weights(self, backbone: keras.Model) -> None:
        """Makes the own weights; there are none unless overridden."""

    def adapt(self, weights: BertWeights) -> BertWeights:
        """What the forward pass shall use in place of the backbone's weights."""
        return weights

    def merge(self, backbone: keras.Model) -> None:
        """Changes a backbone, equal to the own one, so that it needs no adaptation any more."""

    def scale(self, factor: float) -> None:
        """Multiplies what the own weights add to the backbone's function by a factor.

        0 gives the function without them back. Weights of the backbone are not touched.
        """

    def own_weight(
        self,
        name: str,
        shape: Sequence[int],
        initializer: Any = "zeros",
        regularizer: Any = None,
    ) -> keras.Variable:
        """A trainable float32 weight, whatever the compute dtype."""
        return self.add_weight(
            name=name,
            shape=tuple(shape),
            initializer=initializer,
            regularizer=regularizer,
            dtype="float32",
            autocast=False,
        )


def multiply(weights: Iterable[keras.Variable], factor: float) -> None:
    """Multiplies weights by a factor, in place."""
    for weight in weights:
        weight.assign(np.float32(factor) * keras.ops.convert_to_numpy(weight))
