"""Between models and means of models, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from towers.retriever import Retriever
from towers.text_encoder import TextEncoder


def interpolate(zero_shot: Retriever, adapted: Retriever, weight: float) -> Retriever:
    """The retriever between a zero-shot one and what was adapted from it.

    Weights of the backbone and of a projection are ``(1 - weight) * zero_shot + weight * adapted``;
    what adapters or prefixes add is multiplied by `weight`. The fusion of attributes is mixed as
    the backbone is. A half-way model is often better than both, and keeps more of what the
    zero-shot model knows of other queries.

    Reference: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT),
    https://arxiv.org/abs/2109.01903.

    Args:
        zero_shot: where adaptation began, without adapters.
        adapted: what came out.
        weight: 0 for the zero-shot function, 1 for the adapted.
    """
    query_tower = _between(zero_shot.model.query_tower, adapted.model.query_tower, weight)
    item_tower = query_tower
    if not adapted.model.shared:
        item_tower = _between(zero_shot.model.item_tower, adapted.model.item_tower, weight)
    model = adapted.model.with_towers(query_tower, item_tower)
    start, end = zero_shot.model.fusion, adapted.model.fusion
    if start is not None and end is not None and start.dim == end.dim:
        assert model.fusion is not None
        pairs = zip(start.get_weights(), end.get_weights(), strict=True)
        model.fusion.set_weights([_mix(a, b, weight) for a, b in pairs])
    return Retriever(model, adapted.tokenizer, adapted.text)


def soup(retrievers: Sequence[Retriever]) -> Retriever:
    """The mean of the weights of several adaptations of one retriever, of other seeds for example.

    Reference: Wortsman et al. 2022, "Model soups", https://arxiv.org/abs/2203.05482, the uniform
    soup.

    Raises:
        ValueError: there is none, they differ in their weights' shapes, or one has adapters or
            prefixes: those of two runs have no common coordinates.
    """
    if not retrievers:
        raise ValueError("a soup needs at least one retriever")
    models = [retriever.model for retriever in retrievers]
    for model in models:
        if model.query_tower.adaptation is not None or model.item_tower.adaptation is not None:
            raise ValueError("a mean of adapters or prefixes of several runs means nothing")
    shapes = [[weight.shape for weight in model.weights] for model in models]
    if any(other != shapes[0] for other in shapes) or len({m.shared for m in models}) > 1:
        raise ValueError("retrievers of one soup must have weights of equal shapes")
    first = retrievers[0]
    query_tower = first.model.query_tower.copy()
    item_tower = query_tower if first.model.shared else first.model.item_tower.copy()
    mean = first.model.with_towers(query_tower, item_tower)
    mean.set_weights(
        [np.mean(same, axis=0) for same in zip(*(m.get_weights() for m in models), strict=True)]
    )
    return Retriever(mean, first.tokenizer, first.text)


def _between(zero_shot: TextEncoder, adapted: TextEncoder, weight: float) -> TextEncoder:
    if zero_shot.adaptation is not None:
        raise ValueError("the zero-shot retriever must have no adapters or prefixes")
    result = adapted.copy()
    result.backbone.set_weights(
        [
            _mix(a, b, weight)
            for a, b in zip(
                zero_shot.backbone.get_weights(), adapted.backbone.get_weights(), strict=True
            )
        ]
    )
    if result.projection is not None:
        kernel = keras.ops.convert_to_numpy(result.projection.kernel)
        start = np.eye(kernel.shape[0], dtype=np.float32)
        if zero_shot.projection is not None:
            start = keras.ops.convert_to_numpy(zero_shot.projection.kernel)
        result.projection.kernel.assign(_mix(start, kernel, weight))
    if result.adaptation is not None:
        result.adaptation.scale(weight)
    return result


def _mix(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    return (np.float32(1 - weight) * a + np.float32(weight) * b).astype(np.float32)
