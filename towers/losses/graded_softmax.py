"""Softmax over the batch with the grades of the candidates as its target distribution."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from towers.losses.in_batch_softmax import InBatchSoftmax

Tensor = Any

_MASKED = -1e30  # as in the in-batch softmax


def graded_softmax(
    query: Tensor,
    candidates: Tensor,
    grades: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    ignored: Tensor | None = None,
    candidate_log_probability: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each query's candidates with the gains of their grades.

    With logits `s` as of `in_batch_softmax`, gains `g = 2^grade - 1`, those of nDCG, and `A(i)` the
    candidates that are graded or not ignored for `i`:

        loss[i] = -sum_j g[i, j] / (sum_k g[i, k]) * log(e^s[i, j] / sum_{n in A(i)} e^s[i, n])

    That is the cross-entropy of Bruch (2021) with all gammas 1, which bounds nDCG's logarithm.
    Unlike in `in_batch_softmax` a query's positives compete: the better one is to score higher.

    Args:
        query: `[B, d]`.
        candidates: `[C, d]`.
        grades: `[B, C]`, 0 or less = not relevant. A row without any grade has loss 0.
        temperature: Float or scalar tensor, above 0.
        ignored: bool `[B, C]`, true = left out, where it is not graded.
        candidate_log_probability: `[C]`, see `in_batch_softmax`.

    Returns:
        float32 `[B]`.
    """
    query = ops.cast(query, "float32")
    candidates = ops.cast(candidates, "float32")
    logits = ops.matmul(query, ops.transpose(candidates)) / ops.cast(temperature, "float32")
    if candidate_log_probability is not None:
        logits = logits - ops.cast(candidate_log_probability, "float32")
    return _cross_entropy(logits, gains(grades), ignored)


def gains(grades: Tensor) -> Tensor:
    """`2^grade - 1`, float32, and 0 for grades below 0."""
    return 2.0 ** ops.maximum(ops.cast(grades, "float32"), 0.0) - 1.0


def _cross_entropy(logits: Tensor, gain: Tensor, ignored: Tensor | None) -> Tensor:
    """Loss of each row, `[B, C]` each -> `[B]`."""
    if ignored is not None:
        logits = ops.where(ops.cast(ignored, "bool") & (gain == 0.0), _MASKED, logits)
    log_probability = ops.log_softmax(logits, axis=-1)
    total = ops.sum(gain, axis=1)
    # Masked candidates have no gain, but 0 times their logarithm must not become a large number.
    terms = ops.where(gain > 0.0, -gain * log_probability, 0.0)
    return ops.sum(terms, axis=1) / ops.where(total > 0.0, total, 1.0)


@keras.saving.register_keras_serializable(package="towers")
class GradedSoftmax(InBatchSoftmax):
    """`graded_softmax` as one number to minimise, with the call of `InBatchSoftmax`.

    `positives` `[B, C]` are taken for grades; without them all own items have 1. In the mean, a
    query counts by the gains of its candidates, as if each unit of gain were a pair of its own:
    where every query has one graded candidate, that is the softmax of the pairs, weighed by gain.

    When to use it:
        Where grades say more than relevant or not (2 = exact, 1 = partial), and good and middling
        items of a query are both in the data.

    References:
        - Bruch 2021, An Alternative Cross Entropy Loss for Learning-to-Rank, WWW,
          https://arxiv.org/abs/1911.09798
        - Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach, ICML
          (ListNet, a softmax over a list with graded targets)

    Args:
        symmetric: Average with the item -> query direction over the left `[B, B]` blocks.
    """

    def __init__(self, *, symmetric: bool = False) -> None:
        super().__init__(symmetric=symmetric)

    def row_losses(
        self,
        query: Tensor,
        candidates: Tensor,
        own: Tensor,
        positives: Tensor | None = None,
        ignored: Tensor | None = None,
        *,
        temperature: float | Tensor = 0.05,
        candidate_log_probability: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `InBatchSoftmax.row_losses`; a row counts by the gains of its candidates."""
        grades = own if positives is None else positives
        losses = graded_softmax(
            query,
            candidates,
            grades,
            temperature=temperature,
            ignored=ignored,
            candidate_log_probability=candidate_log_probability,
        )
        return losses, ops.sum(gains(grades), axis=1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"symmetric": self.symmetric}
