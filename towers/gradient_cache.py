"""Batches larger than memory: encoded chunk by chunk, each chunk once more on the way back."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from towers.text_encoder import TextEncoder


class _SeedsFrom(keras.random.SeedGenerator):
    """Seeds that follow from one seed alone: whoever draws them again draws the same.

    Its first number is counted up. A `SeedGenerator` counts the second one, so that two of these
    whose first seeds came from one generator have no seed in common.
    """

    def __init__(self, seed: Any) -> None:  # no state of its own, so not Keras's constructor
        self.seed, self.drawn = seed, 0

    def next(self, ordered: bool = True) -> Any:
        """The next seed, ``[2]``."""
        self.drawn += 1
        step = ops.convert_to_tensor(np.array([self.drawn, 0]), dtype=self.seed.dtype)
        return self.seed + step


def encode_in_chunks(
    tower: TextEncoder,
    inputs: dict[str, Any],
    chunks: int,
    *,
    training: bool | None = None,
    perturbation: Any = None,
) -> Any:
    """Encodes a batch with the activations of one chunk at a time in memory.

    Embeddings and their gradient are what they are without chunks. The loss of a batch needs all
    its embeddings at once, but they are small; what fills the memory are the activations of the
    encoder. Here these are forgotten after each chunk. On the way back a chunk is encoded once more
    and the gradient of its embeddings goes through it. That costs one forward pass more.

    With dropout both passes of a chunk use the same masks. They are others than without chunks.

    References:
        - Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
          Setup" (GradCache), https://arxiv.org/abs/2101.06983
        - Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost",
          https://arxiv.org/abs/1604.06174 (recomputation)

    Args:
        tower: the encoder.
        inputs: ``token_ids`` (or ``states``) and ``padding_mask``, see `TextEncoder`; N at least 1.
        chunks: number of parts that the rows are cut into; the last ones may be smaller.
        training: apply dropout.
        perturbation: see `TextEncoder.embed`.

    Returns:
        float32 ``[N, embedding_dim]``.
    """
    weights = tower.read_weights(tower.compute_dtype, merge=not training)
    n_rows = ops.shape(inputs["padding_mask"])[0]
    size = -(-n_rows // chunks)
    # The last row stands in for what is missing in the last chunks; it is cut off in the end.
    rows = ops.minimum(ops.arange(chunks * size), n_rows - 1)

    def cut(tensor: Any) -> Any:
        """``[N, ...]`` to ``[chunks, size, ...]``."""
        tensor = ops.convert_to_tensor(tensor)
        return ops.reshape(ops.take(tensor, rows, axis=0), (chunks, size, *ops.shape(tensor)[1:]))

    parts = {name: cut(tensor) for name, tensor in inputs.items()}
    if perturbation is not None:
        parts["perturbation"] = cut(perturbation)
    if training and tower.backbone.dropout:
        parts["seed"] = ops.stack([tower.seed_generator.next() for _ in range(chunks)])

    def encode(_: Any, part: dict[str, Any]) -> tuple[Any, Any]:
        def embed(weights: Any, perturbation: Any) -> Any:
            return tower.embed(
                weights,
                part,
                training=training,
                seeds=_SeedsFrom(part["seed"]) if "seed" in part else None,
                perturbation=perturbation if "perturbation" in part else None,
            )

        vectors = keras.remat(embed)(weights, part.get("perturbation", ()))
        return vectors, vectors  # Keras's scan wants a state that looks like its results

    start = ops.zeros((size, tower.embedding_dim))
    _, vectors = ops.scan(encode, start, parts)  # [chunks, size, embedding_dim]
    return ops.reshape(vectors, (-1, tower.embedding_dim))[:n_rows]
