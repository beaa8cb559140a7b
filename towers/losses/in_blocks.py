"""A loss over a batch so large that even its matrix of scores does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from towers.losses.in_batch_softmax import InBatchSoftmax, weighted_mean

Tensor = Any
Relation = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]


def loss_in_blocks(
    loss: InBatchSoftmax,
    query: Tensor,
    candidates: Tensor,
    relation: Relation,
    *,
    blocks: int,
    temperature: float | Tensor = 0.05,
    candidate_log_probability: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The value of `loss` and its gradient, with the scores of one block of rows at a time.

    A softmax over a batch is a sum over its rows, and a row needs the embeddings of the others but
    not their scores. So scores, masks and what the gradient needs of them are made for
    `B / blocks` rows, forgotten, and made once more on the way back: memory grows with
    `B * C / blocks` in place of `B * C`. With 16,384 pairs one matrix of scores is 1 GB, and the
    direct gradient holds about nine of them.

    Reference: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost",
    https://arxiv.org/abs/1604.06174 (recomputation); Gao et al. 2021, GradCache, does so for the
    encoder (`towers.gradient_cache`).

    Args:
        loss: its `row_losses` and `symmetric` are used.
        query: `[B, d]`.
        candidates: `[C, d]`, the queries' own items first.
        relation: from int `[R]` rows and int `[K]` candidates to the `[R, K]` parts of `positives`
            and `ignored`, each None for none; called inside of a loop, so it may close over ids but
            over nothing that has a gradient.
        blocks: number of parts that the rows are cut into.
        temperature: float or scalar tensor.
        candidate_log_probability: `[C]`.
        sample_weight: `[B]`.

    Returns:
        float32 scalar.
    """
    query, candidates = ops.cast(query, "float32"), ops.cast(candidates, "float32")
    n_queries = ops.shape(query)[0]

    def whole(
        rows: Tensor, others: Tensor, masks: Callable, log_probability: Tensor | None
    ) -> Tensor:
        losses, weight = _by_block(
            loss, rows, others, masks, blocks, ops.convert_to_tensor(temperature), log_probability
        )
        return weighted_mean(losses, weight, sample_weight)

    def of_queries(rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return relation(rows, ops.arange(ops.shape(candidates)[0]))

    def of_items(rows: Tensor) -> list[Tensor | None]:
        found = relation(ops.arange(n_queries), rows)
        return [None if mask is None else ops.transpose(mask) for mask in found]

    mean = whole(query, candidates, of_queries, candidate_log_probability)
    if not loss.symmetric:
        return mean
    return (mean + whole(candidates[:n_queries], query, of_items, None)) / 2.0


def _by_block(
    loss: InBatchSoftmax,
    rows: Tensor,
    candidates: Tensor,
    masks: Callable[[Tensor], Any],
    blocks: int,
    temperature: Tensor,
    log_probability: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Losses and weights of `[R, d]` rows, `[R]` each."""
    count = ops.shape(rows)[0]
    size = -(-count // blocks)
    # The last row stands in for what is missing in the last blocks; it is cut off in the end.
    places = ops.minimum(ops.arange(blocks * size), count - 1)
    parts = {
        "place": ops.reshape(places, (blocks, size)),
        "vector": ops.reshape(ops.take(rows, places, axis=0), (blocks, size, ops.shape(rows)[-1])),
    }

    def block(_: Tensor, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def losses(vector: Tensor, candidates: Tensor, temperature: Tensor) -> Tensor:
            others = ops.arange(ops.shape(candidates)[0])
            own = ops.expand_dims(part["place"], 1) == ops.expand_dims(others, 0)
            found = loss.row_losses(
                vector,
                candidates,
                own,
                *masks(part["place"]),
                temperature=temperature,
                candidate_log_probability=log_probability,
            )
            return ops.stack(found)  # [2, size]

        found = keras.remat(losses)(part["vector"], candidates, temperature)
        return found, found  # Keras's scan wants a state that looks like its results

    _, found = ops.scan(block, ops.zeros((2, size)), parts)  # [blocks, 2, size]
    found = ops.reshape(ops.transpose(found, (1, 0, 2)), (2, -1))[:, :count]
    return found[0], found[1]
