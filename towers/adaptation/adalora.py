"""AdaLoRA: low-rank updates that share a budget of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from towers.adaptation.base import multiply
from towers.adaptation.low_rank import QUERY_VALUE, LowRankAdaptation
from towers.bert import LowRank


class Triplets(NamedTuple):
    """The updates of one kind of kernel in all layers, ``left @ diag(values) @ right``.

    Attributes:
        left: ``[layers, in, rank]``.
        values: ``[layers, rank]``.
        right: ``[layers, rank, out]``.
    """

    left: keras.Variable
    values: keras.Variable
    right: keras.Variable


@keras.saving.register_keras_serializable(package="towers")
class Orthogonality(keras.regularizers.Regularizer):
    """``strength * |X X^T - I|^2``, over the rows or, with ``X^T X``, the columns of matrices.

    Args:
        strength: factor.
        columns: the columns instead of the rows.
    """

    def __init__(self, strength: float, *, columns: bool) -> None:
        self.strength, self.columns = strength, columns

    def __call__(self, x: Any) -> Any:
        """The penalty of ``[layers, rows, columns]``, summed over layers."""
        rows = ops.swapaxes(x, -1, -2) if self.columns else ops.convert_to_tensor(x)
        gram = ops.matmul(rows, ops.swapaxes(rows, -1, -2))
        return self.strength * ops.sum(ops.square(gram - ops.eye(gram.shape[-1])))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"strength": self.strength, "columns": self.columns}


@keras.saving.register_keras_serializable(package="towers")
class AdaLoRA(LowRankAdaptation):
    """Adds ``alpha / rank * sqrt(m) * P diag(v) Q`` to kernels, with ``v`` zero at first.

    A penalty keeps the columns of ``P`` and the rows of ``Q`` orthonormal, as in a singular value
    decomposition, so that entries of ``v`` can be set to zero one by one. `training.rank_budget`
    does that while training goes on: kernels that gain more keep more. ``P`` and ``Q`` start
    orthonormal (the paper: Gaussian, which costs many steps of training to mend). Adam moves every
    weight by about the learning rate, and where LoRA's ``B`` has ``m`` entries a rank, ``v`` has
    one: the root of ``m`` (not in the paper) lets both go as far in a step, and leaves importance
    as it is. A kernel of ``n`` inputs and ``m`` outputs costs ``rank (n + m + 1)`` weights.

    Reference: Zhang et al. 2023, "AdaLoRA", https://arxiv.org/abs/2303.10512, section 3.

    Args:
        rank: inner width, before any rank is taken away.
        alpha: scale of the update.
        orthogonality: strength of the penalty.
        kernels: names of the kernels, see `towers.bert.dense_layers`.
    """

    def __init__(
        self,
        rank: int = 12,
        *,
        alpha: float = 16.0,
        orthogonality: float = 0.1,
        kernels: Sequence[str] = QUERY_VALUE,
        **kwargs: Any,
    ) -> None:
        super().__init__(rank, kernels=kernels, **kwargs)
        self.alpha, self.orthogonality = alpha, orthogonality

    def make_weights(self, backbone: keras.Model) -> None:
        """Makes ``P``, ``v`` and ``Q`` of all layers, one array each a kind of kernel."""
        self.left, self.values, self.right = {}, {}, {}
        for name, (layers, width, out) in self.shapes(backbone).items():
            self.left[name] = self.own_weight(
                f"{name}_left",
                (layers, width, self.rank),
                _orthonormal,
                Orthogonality(self.orthogonality, columns=True),
            )
            self.values[name] = self.own_weight(f"{name}_values", (layers, self.rank))
            self.right[name] = self.own_weight(
                f"{name}_right",
                (layers, self.rank, out),
                _orthonormal,
                Orthogonality(self.orthogonality, columns=False),
            )

    def triplets(self) -> Iterator[Triplets]:
        """The weights, a kind of kernel at a time."""
        for name in self.kernels:
            yield Triplets(self.left[name], self.values[name], self.right[name])

    def update(self, name: str, layer: int) -> LowRank:
        """The update of one kernel of one layer."""
        right = self.right[name]
        values = self.values[name][layer] * (self.alpha / self.rank * right.shape[-1] ** 0.5)
        return LowRank(self.left[name][layer] * values, right[layer])

    def scale(self, factor: float) -> None:
        """Scales the updates."""
        multiply(self.values.values(), factor)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "orthogonality": self.orthogonality,
        }


def _orthonormal(shape: Sequence[int], dtype: Any = None) -> Any:
    start = keras.initializers.Orthogonal()
    return ops.stack([start(tuple(shape[1:]), dtype) for _ in range(shape[0])])
