"""The methods of adaptation by name: what each trains, and how fast."""

from __future__ import annotations

import math

import tensorflow as tf

from towers.adaptation import (
    ALL_KERNELS,
    QUERY_VALUE,
    AdaLoRA,
    Adaptation,
    Adapters,
    BitFit,
    LoRA,
    PrefixTuning,
    TopLayers,
)
from towers.encoding import fast_dtype
from towers.errors import InputError
from towers.losses import (
    AdditiveMarginSoftmax,
    GradedSoftmax,
    InBatchSoftmax,
    ScoreDistillation,
)
from towers.text_encoder import TextEncoder
from towers.two_tower import TwoTower
from training.config import FitConfig, Method

# Peak learning rates where the configuration has none. Few weights that start at nothing need a
# higher rate than many that are near their goal.
LEARNING_RATES: dict[Method, float] = {
    "full": 1e-4,
    "distilled": 1e-4,
    "top": 5e-5,
    "lora": 2e-3,
    "adalora": 2e-3,
    "bitfit": 3e-3,
    "adapters": 1e-3,
    "prefix": 3e-2,
}
# Training of all weights goes too far with more pairs than this at the rate above; docs/methods.md.
_PAIRS_OF_ALL_PASSES = 128
EPOCHS = 5
"""Passes over the pairs where they are few."""


def with_schedule(config: FitConfig, method: Method, pair_count: int) -> FitConfig:
    """The configuration with the method's own learning rate and passes where it has none.

    Where all weights are trained, passes fall with the square root of the number of pairs from 128
    on, down to one. What few steps teach is worth most, and repeating many pairs wears the towers
    down: docs/auto.md.
    """
    passes = EPOCHS
    if method in ("full", "distilled"):
        passes = max(1, round(EPOCHS * math.sqrt(min(1.0, _PAIRS_OF_ALL_PASSES / pair_count))))
    rate = LEARNING_RATES[method] if config.learning_rate is None else config.learning_rate
    return config.model_copy(update={"learning_rate": rate, "epochs": config.epochs or passes})


def make_adaptation(method: Method, config: FitConfig) -> Adaptation | None:
    """What to attach to an encoder; None for a method that trains all weights."""
    if method == "lora":
        return LoRA(config.rank, alpha=config.alpha, kernels=_kernels(config))
    if method == "adalora":
        start = -(-3 * config.rank // 2)  # the paper's: half as much again as is left in the end
        return AdaLoRA(start, alpha=config.alpha, kernels=_kernels(config))
    if method == "bitfit":
        return BitFit()
    if method == "top":
        return TopLayers(config.top_layers)
    if method == "adapters":
        return Adapters(config.bottleneck)
    if method == "prefix":
        return PrefixTuning(config.prefix_length)
    return None


def make_loss(config: FitConfig) -> InBatchSoftmax:
    """The loss of the pairs by its name."""
    if config.loss == "margin":
        return AdditiveMarginSoftmax(config.margin, symmetric=config.symmetric)
    if config.loss == "graded":
        return GradedSoftmax(symmetric=config.symmetric)
    return InBatchSoftmax(symmetric=config.symmetric)


def make_distillation(method: Method, config: FitConfig) -> ScoreDistillation | None:
    """The loss beside that of the pairs: a teacher's, or the anchor to the untrained towers."""
    if method == "distilled":
        return ScoreDistillation(config.distillation)
    if config.anchor:
        # Both at the temperature that the pairs are scored with, so that the least loss is where
        # the scores are the untrained ones.
        return ScoreDistillation(
            config.anchor, temperature=config.temperature, teacher_temperature=config.temperature
        )
    return None


def require_gradient(method: Method, config: FitConfig) -> None:
    """Raises `InputError` where a method without gradients has options of training by gradient."""
    if method not in ("zero-shot", "linear"):
        return
    plain = FitConfig()
    names = (
        *("loss", "hard_negatives", "judged_negatives", "cached_negatives"),
        *("anchor", "fgm", "r_drop", "accumulate", "soup"),
    )
    given = [name for name in names if getattr(config, name) != getattr(plain, name)]
    if given:
        raise InputError(
            f"method {method} has no use for {', '.join(given)}: choose a method that trains by "
            "gradient (full, lora, ...), or leave them out"
        )


def _kernels(config: FitConfig) -> tuple[str, ...]:
    return ALL_KERNELS if config.kernels == "all" else QUERY_VALUE


def require_suitable(model: TwoTower, method: Method, config: FitConfig) -> None:
    """Raises `InputError` where towers cannot be adapted as configured."""
    adaptation = make_adaptation(method, config)
    if config.soup > 1 and adaptation is not None and not adaptation.mergeable:
        raise InputError(
            f"a soup averages weights, and those that {method} adds mean something else in each "
            "training: leave soup out, or choose full, lora, adalora, bitfit or top"
        )
    for tower in (model.query_tower, model.item_tower):
        if tower.without_adaptation().adaptation is not None:
            raise InputError("towers that have adapters or prefixes cannot be adapted once more")
        layers = len(tower.backbone.transformer_layers)
        if method == "top" and config.top_layers > layers:
            raise InputError(f"top_layers is {config.top_layers}; the encoder has {layers} layers")
        if config.r_drop and not tower.backbone.dropout:
            raise InputError("r_drop compares two passes with dropout; the encoder has none")
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        if config.mixed_precision == "mixed_float16":
            # Keras looks for overflow in the part of the gradient that one device has.
            raise InputError(
                "mixed_float16 trains on one device: take mixed_bfloat16 or float32 for several"
            )
        if method == "adalora":
            raise InputError("method adalora trains on one device: take lora for several")


def trainable_copy(model: TwoTower, method: Method, config: FitConfig) -> TwoTower:
    """A model of the same function that `fit` adapts as configured."""

    def adapted(tower: TextEncoder) -> TextEncoder:
        return tower.without_adaptation().with_adaptation(make_adaptation(method, config))

    query_tower = adapted(model.query_tower)
    if config.towers == "query":
        item_tower = model.item_tower.without_adaptation().with_adaptation(None)
    else:
        item_tower = query_tower if model.shared else adapted(model.item_tower)
    copy = TwoTower(
        query_tower,
        item_tower,
        fusion=None if model.fusion is None else model.fusion.copy(),
        loss=make_loss(config),
        temperature=config.temperature,
        learn_temperature=config.learn_temperature,
        distillation=make_distillation(method, config),
        chunks=config.accumulate,
        fgm=config.fgm,
        r_drop=config.r_drop,
    ).with_dtype(_policy(config))
    if config.towers == "query":
        frozen = copy.item_tower.weights + ([] if copy.fusion is None else copy.fusion.weights)
        for weight in frozen:
            weight.trainable = False
    return copy


def _policy(config: FitConfig) -> str:
    if config.mixed_precision == "auto":
        return "mixed_bfloat16" if fast_dtype() == "bfloat16" else "float32"
    return config.mixed_precision


def finished(model: TwoTower) -> TwoTower:
    """The trained model in float32, merged where that is possible, with nothing frozen."""
    model = model.with_dtype("float32")
    towers = [model.query_tower] if model.shared else [model.query_tower, model.item_tower]
    plain = [tower.without_adaptation() for tower in towers]
    plain = [tower if tower.trainable_weights else tower.with_adaptation(None) for tower in plain]
    return model.with_towers(*plain)
