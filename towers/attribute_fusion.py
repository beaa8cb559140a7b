"""Item attributes fused into the vector of an item's text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from towers.attributes import Attribute


class FusionWeights(NamedTuple):
    """Weights of an `AttributeFusion`.

    Attributes:
        kernel: ``[F, d]``, of numbers and vectors.
        table: ``[categories, d]``.
    """

    kernel: Any
    table: Any


@keras.saving.register_keras_serializable(package="towers")
class AttributeFusion(keras.layers.Layer):
    """Moves the vector of an item's text by what its attributes say.

    ``item = unit(text + values @ kernel + sum of the table's rows of its categories)``

    Both weights start at zero. Then, and for an item without attributes at any time, the result is
    the text's vector to the bit: `1 / |text + move|` is computed as ``(1 + 2 text . move +
    |move|^2)^-1/2`` of a unit ``text``. A linear move is all that tens of pairs can teach; each row
    of the table learns from the queries that wanted an item of its category.

    Args:
        attributes: see `towers.learn_attributes`.
        dim: width of the vectors.

    Call arguments:
        vectors: unit vectors of texts, float32 ``[N, d]``.
        features: ``values`` float ``[N, F]`` and ``categories`` int ``[N, C]``, as
            `towers.AttributeReader` makes them.

    Returns:
        Unit vectors, float32 ``[N, d]``.

    Example:
        >>> template = ItemTemplate("{title}{price:number}{brand:category}")
        >>> items = template.render({"title": titles, "price": prices, "brand": brands})
        >>> fusion = AttributeFusion(learn_attributes(template, items), dim=384)
        >>> model = TwoTower(TextEncoder.from_preset("all-MiniLM-L6-v2"), fusion=fusion)
        >>> features = AttributeReader(fusion.attributes).read(items)  # a batch's "item_attributes"
    """

    def __init__(
        self, attributes: Sequence[Attribute | Mapping[str, Any]], dim: int, **kwargs: Any
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.attributes = tuple(_attribute(one) for one in attributes)
        self.dim = dim
        rows = sum(attribute.category_count for attribute in self.attributes)
        width = sum(attribute.value_count for attribute in self.attributes)
        # A row more than there are: no backend is asked for a weight of size zero.
        self.kernel = self.add_weight(
            name="kernel", shape=(max(1, width), dim), initializer="zeros", autocast=False
        )
        self.table = self.add_weight(
            name="table", shape=(max(1, rows), dim), initializer="zeros", autocast=False
        )
        self.value_count = width
        self.built = True

    def call(self, vectors: Any, features: dict[str, Any]) -> Any:
        """Fuses; see the class."""
        return self.fuse(self.read_weights(), vectors, features)

    def read_weights(self) -> FusionWeights:
        """The weights as `fuse` takes them."""
        return FusionWeights(ops.convert_to_tensor(self.kernel), ops.convert_to_tensor(self.table))

    def fuse(self, weights: FusionWeights, vectors: Any, features: dict[str, Any]) -> Any:
        """Fuses as `call` does, with weights that have been read before: a pure function."""
        moves = self.moves(weights, features)
        product = ops.sum(vectors * moves, axis=1, keepdims=True)
        square = 1.0 + 2.0 * product + ops.sum(ops.square(moves), axis=1, keepdims=True)
        return (vectors + moves) / ops.sqrt(ops.maximum(square, 1e-12))

    def moves(self, weights: FusionWeights, features: dict[str, Any]) -> Any:
        """What is added to the texts' vectors, float32 ``[N, d]``."""
        values = ops.cast(features["values"], "float32")
        rows = ops.cast(features["categories"], "int32")
        known = ops.cast(rows >= 0, "float32")[:, :, None]
        of_categories = ops.take(weights.table, ops.maximum(rows, 0), axis=0) * known  # [N, C, d]
        of_values = ops.matmul(values, weights.kernel[: self.value_count])
        return of_values + ops.sum(of_categories, axis=1)

    def compute_output_spec(self, vectors: Any, features: dict[str, Any]) -> Any:
        """Shape and dtype of the output, for symbolic calls."""
        return keras.KerasTensor((vectors.shape[0], self.dim), dtype="float32")

    def copy(self) -> AttributeFusion:
        """A layer with equal weights of its own."""
        twin = type(self).from_config(self.get_config())
        twin.set_weights(self.get_weights())
        return twin

    def mapped(self, matrix: np.ndarray) -> AttributeFusion:
        """A copy for vectors of texts that are multiplied by a matrix ``[d, out]``."""
        twin = type(self).from_config({**self.get_config(), "dim": int(matrix.shape[1])})
        twin.set_weights([weight @ matrix for weight in self.get_weights()])
        return twin

    def digest(self) -> str:
        """SHA-256 of all that decides the layer's results."""
        digest = hashlib.sha256(repr(self.attributes).encode())
        several = [one.most for one in self.attributes if one.most > 1]
        if several:  # exports from before there could be several values stay what they were
            digest.update(repr(several).encode())
        for weight in self.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "attributes": [asdict(attribute) for attribute in self.attributes],
            "dim": self.dim,
        }


def _attribute(given: Attribute | Mapping[str, Any]) -> Attribute:
    """An attribute as it is, or as a configuration has it, whose tuples have become lists."""
    if isinstance(given, Attribute):
        return given
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    return Attribute(**fields)
