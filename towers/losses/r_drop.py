"""R-Drop: two passes with different dropout are to rank the candidates alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import ops

Tensor = Any


def r_drop(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, temperature: float | Tensor = 0.05
) -> Tensor:
    """Kullback-Leibler divergence of two rankings of the candidates, in both directions.

        loss[i] = (KL(p[i] || q[i]) + KL(q[i] || p[i])) / 2

    with `p[i] = softmax(<query[i], item[.]> / temperature)` of the one pass and `q` of the other.

    Reference:
        Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, NeurIPS,
        https://arxiv.org/abs/2106.14448

    Args:
        first: `query` `[B, d]` and `item` `[C, d]`, the embeddings of one pass.
        second: likewise.
        temperature: Float or scalar tensor, above 0.

    Returns:
        float32 `[B]`, 0 or more.
    """

    def log_probability(pass_: Mapping[str, Tensor]) -> Tensor:
        query, item = ops.cast(pass_["query"], "float32"), ops.cast(pass_["item"], "float32")
        logits = ops.matmul(query, ops.transpose(item)) / ops.cast(temperature, "float32")
        return ops.log_softmax(logits, axis=-1)  # [B, C]

    p, q = log_probability(first), log_probability(second)
    # Both directions in one sum: sum p (log p - log q) + sum q (log q - log p).
    return ops.sum((ops.exp(p) - ops.exp(q)) * (p - q), axis=-1) / 2.0
