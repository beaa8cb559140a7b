"""The in-batch softmax: every other item of the batch is a negative of the query."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

Tensor = Any

# A masked logit. Far below any real one and far from the end of float32, so that differences of
# masked and real logits stay finite, and with them the gradients.
_MASKED = -1e30


def in_batch_softmax(
    query: Tensor,
    candidates: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    positives: Tensor | None = None,
    ignored: Tensor | None = None,
    candidate_log_probability: Tensor | None = None,
    symmetric: bool = False,
    margin: float = 0.0,
) -> Tensor:
    """Softmax loss of each query over the candidates of its batch.

    With logits `s[i, j] = <query[i], candidates[j]> / temperature - candidate_log_probability[j]`,
    positive weights `w` and `N(i)` the candidates that are neither positive nor ignored for `i`:

        loss[i] = sum_j w[i, j] * -log(e^s[i, j] / (e^s[i, j] + sum_{n in N(i)} e^s[i, n]))
                  / sum_j w[i, j]

    Each positive is set against the negatives alone, so the positives of a query do not compete.
    With `positives=None` and nothing ignored this is the cross-entropy of the diagonal. Logits and
    softmax are computed in float32 whatever the embeddings' dtype.

    Args:
        query: `[B, d]`.
        candidates: `[C, d]`, `C >= B`. Rows `0..B-1` are the queries' own items, rows `B..C-1`
            extra negatives.
        temperature: Float or scalar tensor (a learned one), above 0.
        positives: bool or float `[B, C]` weights, 0 or less = not a positive. It is the whole
            truth: a query's own item counts only where its entry on the diagonal is above 0, and
            the loss of a row without any positive is 0. None: the own items, all with weight 1.
        ignored: bool `[B, C]`, true = not a negative. An entry which is positive too is a positive.
        candidate_log_probability: `[C]`, finite; the log of the probability with which each
            candidate comes into a batch (logQ correction).
        symmetric: Average with the other direction: the loss of the query's own item over the `B`
            queries, with the left `[B, B]` blocks of `positives` and `ignored` transposed. (There
            the logQ term is the same for all queries and drops out.)
        margin: Taken from the cosine of each positive; see `AdditiveMarginSoftmax`.

    Returns:
        float32 `[B]`, the loss of each query.

    Raises:
        ValueError: there are fewer candidates than queries, and no `positives`.
    """
    query = ops.cast(query, "float32")
    candidates = ops.cast(candidates, "float32")
    n_queries = ops.shape(query)[0]

    logits = ops.matmul(query, ops.transpose(candidates))  # [B, C]
    logits = logits / ops.cast(temperature, "float32")
    if candidate_log_probability is not None:
        logits = logits - ops.cast(candidate_log_probability, "float32")

    if positives is None:
        _require_own_items(query, candidates)
        positives = ops.eye(n_queries, ops.shape(candidates)[0])
    weights = ops.maximum(ops.cast(positives, "float32"), 0.0)  # [B, C]
    negative = weights == 0.0
    if ignored is not None:
        negative = negative & ~ops.cast(ignored, "bool")

    margin_logit = margin / ops.cast(temperature, "float32")
    losses = _softmax_losses(logits, weights, negative, margin_logit)
    if symmetric:
        block = (slice(None), slice(None, n_queries))
        item_losses = _softmax_losses(
            ops.transpose(logits[block]),
            ops.transpose(weights[block]),
            ops.transpose(negative[block]),
            margin_logit,
        )
        losses = (losses + item_losses) / 2.0
    return losses


def _require_own_items(query: Tensor, candidates: Tensor) -> None:
    rows, columns = query.shape[0], candidates.shape[0]
    if rows is not None and columns is not None and columns < rows:
        raise ValueError(
            f"{rows} queries and {columns} candidates: the first candidates are the queries' own "
            "items, one for each"
        )


def _softmax_losses(logits: Tensor, weights: Tensor, negative: Tensor, margin: Tensor) -> Tensor:
    """Loss of each row, `[B, C]` each and the margin of the logits -> `[B]`."""
    negatives = ops.logsumexp(ops.where(negative, logits, _MASKED), axis=1, keepdims=True)
    # -log(e^s / (e^s + e^n)) = log(1 + e^(n - s)), which no logit makes overflow.
    terms = ops.softplus(negatives - logits + margin)  # [B, C]
    total = ops.sum(weights, axis=1)
    # A row without positives has only zeros above the line; the divisor must not add a NaN.
    return ops.sum(weights * terms, axis=1) / ops.where(total > 0.0, total, 1.0)


def weighted_mean(losses: Tensor, *weights: Tensor | None) -> Tensor:
    """Mean of `[B]` losses by the product of weights `[B]`, None for 1; 0 where all are 0."""
    given = [ops.cast(weight, "float32") for weight in weights if weight is not None]
    if not given:
        return ops.mean(losses)
    weight = math.prod(given[1:], start=given[0])
    total = ops.sum(weight)
    return ops.sum(weight * losses) / ops.where(total > 0.0, total, 1.0)


@keras.saving.register_keras_serializable(package="towers")
class InBatchSoftmax:
    """In-batch softmax loss of query and item embeddings, as one number to minimise.

    The query is to find its own item among all items of the batch: with a batch of 32 pairs, each
    query has 1 positive and 31 negatives that cost no extra encoding. `in_batch_softmax` has the
    formula; this class keeps its options as serialisable configuration and averages over the batch.

    Inputs:

    | argument                    | shape    | content                                          |
    |-----------------------------|----------|--------------------------------------------------|
    | `query`                     | `[B, d]` | query embeddings                                 |
    | `candidates`                | `[C, d]` | own items, row by row, then extra negatives      |
    | `positives`                 | `[B, C]` | weight of each pair as a positive (optional)     |
    | `ignored`                   | `[B, C]` | true: not a negative (optional)                  |
    | `candidate_log_probability` | `[C]`    | log sampling probability (optional)              |
    | `sample_weight`             | `[B]`    | weight of each query in the average (optional)   |

    When to use it:
        For (query, relevant item) pairs without explicit negatives, the usual case of search and
        recommendation logs. Larger batches make it harder and better. Mask what is not a true
        negative: `accidental_hits` (the same item, or the same text, twice in a batch),
        `known_positives` (further positives of the query in the training data), `same_query`. Use
        `candidate_log_probability` where popular items are in many batches and would be punished
        for it, `symmetric` where pairs are few: it takes a second signal from the same batch.

    Relations:
        Without options it is sentence-transformers' `MultipleNegativesRankingLoss` with
        `scale = 1 / temperature`; with `symmetric`, the loss of CLIP. On the same logits it is
        TFRS's `Retrieval` task divided by the sum of the weights (TFRS sums over the batch). With
        several positives it differs from SupCon (Khosla et al., L_out) in one point: a positive
        does not stand in the denominator of another.

    References:
        - Henderson et al. 2017, Efficient Natural Language Response Suggestion for Smart Reply,
          https://arxiv.org/abs/1705.00652, section 4.4 (in-batch negatives)
        - Yi et al. 2019, Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
          Recommendations, RecSys (logQ correction)
        - Radford et al. 2021, Learning Transferable Visual Models From Natural Language
          Supervision, https://arxiv.org/abs/2103.00020 (symmetric)
        - Khosla et al. 2020, Supervised Contrastive Learning, https://arxiv.org/abs/2004.11362
          (several positives)

    Args:
        symmetric: Average with the item -> query direction.
        multi_positive: Draw a query to all its `positives`. If false, it is drawn to its own item
            alone and its other positives are only kept from being negatives.

    Example:

        from towers.losses import InBatchSoftmax, accidental_hits

        loss = InBatchSoftmax(symmetric=True)

        class TwoTower(keras.Model):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                query, item = y_pred  # [B, d] each, L2-normalised
                return loss(
                    query,
                    item,
                    temperature=0.05,
                    ignored=accidental_hits(x["item_id"], keras.ops.shape(query)[0]),
                    sample_weight=sample_weight,
                )
    """

    margin = 0.0

    def __init__(self, *, symmetric: bool = False, multi_positive: bool = True) -> None:
        self.symmetric = symmetric
        self.multi_positive = multi_positive

    def __call__(
        self,
        query: Tensor,
        candidates: Tensor,
        *,
        temperature: float | Tensor = 0.05,
        positives: Tensor | None = None,
        ignored: Tensor | None = None,
        candidate_log_probability: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Weighted mean of the queries' losses, a float32 scalar; 0 where all weights are 0."""
        _require_own_items(query, candidates)
        n_queries = ops.shape(query)[0]
        masks = [
            None if mask is None else ops.convert_to_tensor(mask) for mask in (positives, ignored)
        ]
        own = ops.eye(n_queries, ops.shape(candidates)[0], dtype="bool")
        losses, weight = self.row_losses(
            query,
            candidates,
            own,
            *masks,
            temperature=temperature,
            candidate_log_probability=candidate_log_probability,
        )
        mean = weighted_mean(losses, weight, sample_weight)
        if not self.symmetric:
            return mean
        blocks = [None if mask is None else ops.transpose(mask[:, :n_queries]) for mask in masks]
        own = ops.eye(n_queries, dtype="bool")
        losses, weight = self.row_losses(
            candidates[:n_queries], query, own, *blocks, temperature=temperature
        )
        return (mean + weighted_mean(losses, weight, sample_weight)) / 2.0

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
        """Losses of some rows of a batch, in one direction, and how much each row counts.

        Args:
            query: `[R, d]`, the rows.
            candidates: `[C, d]`, of the whole batch.
            own: bool `[R, C]`, true for the own item of a row.
            positives: `[R, C]`, as in `__call__`.
            ignored: bool `[R, C]`.
            temperature: float or scalar tensor.
            candidate_log_probability: `[C]`.

        Returns:
            float32 `[R]` each. The loss of the batch is the mean by these weights (and those of the
            samples), with `symmetric` the average of it and that of the items over the queries.
        """
        if positives is None or not self.multi_positive:
            if positives is not None:
                others = ops.cast(positives, "float32") > 0.0
                ignored = others if ignored is None else others | ops.cast(ignored, "bool")
            positives = own
        losses = in_batch_softmax(
            query,
            candidates,
            temperature=temperature,
            positives=positives,
            ignored=ignored,
            candidate_log_probability=candidate_log_probability,
            margin=self.margin,
        )
        return losses, ops.ones_like(losses)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"symmetric": self.symmetric, "multi_positive": self.multi_positive}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InBatchSoftmax:
        """Rebuilds the loss from `get_config`."""
        return cls(**config)
