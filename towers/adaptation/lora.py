"""LoRA: low-rank updates of frozen kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from towers.adaptation.base import multiply
from towers.adaptation.low_rank import QUERY_VALUE, LowRankAdaptation
from towers.bert import LowRank


@keras.saving.register_keras_serializable(package="towers")
class LoRA(LowRankAdaptation):
    """Adds ``alpha / rank * A B`` to kernels, ``A`` random and ``B`` zero at first.

    The paper's ``B A`` with kernels transposed, as Keras has them. A kernel of ``n`` inputs and
    ``m`` outputs costs ``rank (n + m)`` weights.

    Reference: Hu et al. 2021, "LoRA", https://arxiv.org/abs/2106.09685, section 4.1.

    Args:
        rank: inner width.
        alpha: scale of the update.
        kernels: names of the kernels, see `towers.bert.dense_layers`; those of queries and values
            by default (section 7.1).
    """

    def __init__(
        self,
        rank: int = 8,
        *,
        alpha: float = 16.0,
        kernels: Sequence[str] = QUERY_VALUE,
        **kwargs: Any,
    ) -> None:
        super().__init__(rank, kernels=kernels, **kwargs)
        self.alpha = alpha

    def make_weights(self, backbone: keras.Model) -> None:
        """Makes ``A`` and ``B`` of all layers, one array a kind of kernel."""
        self.a, self.b = {}, {}
        for name, (layers, width, out) in self.shapes(backbone).items():
            # The authors' start value: uniform within 1 / sqrt(width).
            start = keras.initializers.RandomUniform(-(width**-0.5), width**-0.5)
            self.a[name] = self.own_weight(f"{name}_a", (layers, width, self.rank), start)
            self.b[name] = self.own_weight(f"{name}_b", (layers, self.rank, out))

    def update(self, name: str, layer: int) -> LowRank:
        """The update of one kernel of one layer."""
        return LowRank(self.a[name][layer], self.b[name][layer] * (self.alpha / self.rank))

    def scale(self, factor: float) -> None:
        """Scales the updates."""
        multiply(self.b.values(), factor)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "alpha": self.alpha}
