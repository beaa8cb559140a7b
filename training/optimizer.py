"""AdamW as BERT is fine-tuned with it, slower in lower layers where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from towers.adaptation import AdaLoRA
from towers.two_tower import TwoTower
from training.config import FitConfig
from training.rank_budget import RankBudgetAdamW
from training.whole_batch_adamw import WholeBatchAdamW

# Parts of variable names that AdamW's decay leaves alone (Devlin et al. 2019, BERT's own recipe).
_NO_DECAY = ("bias", "norm", "gamma", "beta", "log_temperature")


class DiscriminativeAdamW(WholeBatchAdamW):
    """AdamW with a factor of the learning rate for each variable.

    The factor is not one of the gradient, which Adam would cancel. Weight decay goes by the full
    rate.

    Args:
        factors: factor of each variable's path; 1 where it has none.
        **kwargs: as in `keras.optimizers.AdamW`.
    """

    def __init__(
        self, learning_rate: Any = 0.001, *, factors: Mapping[str, float], **kwargs: Any
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.factors = dict(factors)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """As in `keras.optimizers.AdamW`."""
        path = self._trainable_variables[self._get_variable_index(variable)].path
        super().update_step(gradient, variable, learning_rate * self.factors.get(path, 1.0))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "factors": self.factors}


def adamw(
    config: FitConfig, steps: int, model: TwoTower | None = None
) -> keras.optimizers.Optimizer:
    """AdamW with linear warm-up, cosine decay to zero and clipped gradients.

    Weight decay spares biases and norms.

    Args:
        config: learning rate, warm-up share, decay, clipping, layer decay.
        steps: number of steps in all.
        model: needed for a layer decay and for AdaLoRA, which speak of its layers.
    """
    assert config.learning_rate is not None
    warmup = min(round(config.warmup * steps), steps - 1)
    schedule: Any = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate,
        decay_steps=steps - warmup,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    options = {"weight_decay": config.weight_decay, "global_clipnorm": config.clip_norm}
    adalora = [] if model is None else _adalora(model)
    if adalora:
        triplets = [triplet for adaptation in adalora for triplet in adaptation.triplets()]
        budget = config.rank * sum(triplet.values.shape[0] for triplet in triplets)
        optimizer: keras.optimizers.Optimizer = RankBudgetAdamW(
            schedule, triplets=triplets, budget=budget, steps=steps, **options
        )
    elif config.layer_decay == 1.0 or model is None:
        optimizer = WholeBatchAdamW(schedule, **options)
    else:
        factors = layer_factors(model, config.layer_decay)
        optimizer = DiscriminativeAdamW(schedule, factors=factors, **options)
    optimizer.exclude_from_weight_decay(var_names=list(_NO_DECAY))
    return optimizer


def _adalora(model: TwoTower) -> list[AdaLoRA]:
    towers = {id(tower): tower for tower in (model.query_tower, model.item_tower)}
    adaptations = [tower.adaptation for tower in towers.values()]
    return [adaptation for adaptation in adaptations if isinstance(adaptation, AdaLoRA)]


def layer_factors(model: TwoTower, decay: float) -> dict[str, float]:
    """Factor of the learning rate by variable path: 1 at the top, times `decay` a layer down.

    The uppermost layer has factor ``decay``, the lowest of ``L`` layers ``decay ** L``, embeddings
    ``decay ** (L + 1)``. What lies above the layers, or was added to them, is left out: 1.

    Reference: Howard & Ruder 2018, "ULMFiT", section 3.2.
    """
    factors: dict[str, float] = {}
    for tower in (model.query_tower, model.item_tower):
        layers = tower.backbone.transformer_layers
        for weight in tower.backbone.weights:
            factors[weight.path] = decay ** (len(layers) + 1)
        for number, layer in enumerate(layers):
            for weight in layer.weights:
                factors[weight.path] = decay ** (len(layers) - number)
    return factors
