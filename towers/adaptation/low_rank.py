"""Updates of kernels that are products of two narrow matrices: what LoRA and AdaLoRA share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from towers.adaptation.base import Adaptation
from towers.bert import BertWeights, Dense, LayerWeights, LowRank, dense_layers

QUERY_VALUE = ("query", "value")
ALL_KERNELS = ("query", "key", "value", "attention_output", "intermediate", "output")
_ATTENTION_INPUT = ("query", "key", "value")


class LowRankAdaptation(Adaptation):
    """Adds ``down @ up`` to chosen kernels of every layer.

    A subclass says what ``down`` and ``up`` are; it makes its weights for `shapes`.

    Args:
        rank: inner width.
        kernels: names of the kernels, see `towers.bert.dense_layers`.
    """

    def __init__(
        self, rank: int = 8, *, kernels: Sequence[str] = QUERY_VALUE, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        unknown = set(kernels) - set(ALL_KERNELS)
        if unknown or not kernels:
            raise ValueError(f"kernels must be some of {', '.join(ALL_KERNELS)}; got {kernels}")
        self.rank = rank
        self.kernels = tuple(name for name in ALL_KERNELS if name in kernels)

    def attach(self, backbone: keras.Model) -> None:
        """As in the base class."""
        self._query_scale = (backbone.hidden_dim // backbone.num_heads) ** -0.5
        super().attach(backbone)

    def shapes(self, backbone: keras.Model) -> dict[str, tuple[int, int, int]]:
        """Number of layers, width of input and of output of each kernel."""
        layers = backbone.transformer_layers
        maps = dense_layers(layers[0])
        widths = {name: (width, maps[name][0].kernel) for name, (_, width) in maps.items()}
        return {
            name: (len(layers), width, _size(kernel.shape) // width)
            for name, (width, kernel) in widths.items()
            if name in self.kernels
        }

    def update(self, name: str, layer: int) -> LowRank:
        """The update of one kernel of one layer."""
        raise NotImplementedError

    def adapt(self, weights: BertWeights) -> BertWeights:
        """Puts the updates beside the kernels."""
        layers = [self._adapt_layer(layer, number) for number, layer in enumerate(weights.layers)]
        return weights._replace(layers=tuple(layers))

    def merge(self, backbone: keras.Model) -> None:
        """Adds the updates to the kernels."""
        for number, layer in enumerate(backbone.transformer_layers):
            maps = dense_layers(layer)
            for name in self.kernels:
                down, up = self.update(name, number)
                kernel = maps[name][0].kernel
                kernel.assign_add(ops.reshape(ops.matmul(down, up), kernel.shape))

    def _adapt_layer(self, layer: LayerWeights, number: int) -> LayerWeights:
        changed: dict[str, Any] = {}
        for name in self.kernels:
            if name not in _ATTENTION_INPUT:
                changed[name] = _with_update(getattr(layer, name), self.update(name, number))
        side_by_side = [name for name in self.kernels if name in _ATTENTION_INPUT]
        if side_by_side:
            downs, ups = zip(*(self.update(name, number) for name in side_by_side), strict=True)
            rows = [self._place(up, name) for name, up in zip(side_by_side, ups, strict=True)]
            both = LowRank(ops.concatenate(downs, axis=1), ops.concatenate(rows, axis=0))
            changed["attention_input"] = _with_update(layer.attention_input, both)
        return layer._replace(**changed)

    def _place(self, up: Any, name: str) -> Any:
        """``[rank, hidden]`` to the columns of ``[rank, 3 * hidden]`` that make queries, ..."""
        if name == "query":
            up = up * self._query_scale
        width, before = up.shape[1], _ATTENTION_INPUT.index(name)
        return ops.pad(up, [[0, 0], [before * width, (2 - before) * width]])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rank": self.rank, "kernels": list(self.kernels)}


def _with_update(dense: Dense, update: LowRank) -> Dense:
    return dense._replace(update=update)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for width in shape:
        size *= width
    return size
