"""Two encoders trained to put a query next to its items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from towers.losses import (
    InBatchSoftmax,
    ScoreDistillation,
    accidental_hits,
    known_positives,
)
from towers.text_encoder import TextEncoder

# A learned temperature stays at or above this: logits of unit vectors stay within +-100
# (Radford et al. 2021, section 2.5, clip the same way).
_MIN_TEMPERATURE = 0.01


@keras.saving.register_keras_serializable(package="towers")
class TwoTower(keras.Model):
    """A query tower and an item tower under one loss.

    A plain Keras model: `compile` with an optimizer and no loss, `fit` on batches of token ids,
    `save` and `keras.saving.load_model`. A batch `x` is a dict:

    | key                        | shape              | content                                  |
    | -------------------------- | ------------------ | ---------------------------------------- |
    | `query`                    | 2 x int `[B, T]`   | `token_ids`, `padding_mask` of queries   |
    | `item`                     | 2 x int `[B, S]`   | the same of each query's own item        |
    | `negatives`                | 2 x int `[M, S]`   | extra items, negatives of every query    |
    | `item_ids`                 | int `[B]`/`[B, n]` | ids, or n kinds of them, finding repeats |
    | `negative_ids`             | as `item_ids`, M   | the same for `negatives`                 |
    | `positive_ids`             | int `[B, P]`       | known positives of a query, padded by -1 |
    | `item_log_probability`     | float `[B]`        | log sampling probability (logQ)          |
    | `negative_log_probability` | float `[M]`        | the same for `negatives`                 |
    | `ignored`                  | bool `[B, B + M]`  | further items that are no negatives      |
    | `teacher_scores`           | float `[B, B + M]` | a teacher's scores, to be distilled      |

    All but the first two are optional; `positive_ids` need `item_ids`, and with `negatives`, ids
    and probabilities are given for both kinds of item or for neither. `item_ids` keep an item that
    stands in the batch twice, or twice with the same text, from being its own negative;
    `positive_ids` (of the first kind of id) do that for further positives of a query, and make them
    positives of it where the loss has `multi_positive`. `teacher_scores` are used where there is a
    `distillation`. Targets `y` are not used; `sample_weight` is float `[B]` and weighs the queries
    of `loss`; the distillation counts all queries alike.

    `model(x)` returns `{"query": [B, d], "item": [B + M, d]}`, unit rows, the negatives last.

    Args:
        query_tower: encoder of queries.
        item_tower: encoder of items; the same object, or None, for shared weights.
        loss: a loss on embeddings with the call of `towers.losses.InBatchSoftmax`.
        temperature: divisor of the cosines; the start value if learned.
        learn_temperature: make the temperature a trainable weight.
        distillation: a second loss, added where a batch has `teacher_scores`.

    Raises:
        ValueError: towers of different width, or a temperature that is not above 0.

    Example:
        >>> model = TwoTower(TextEncoder.from_preset("all-MiniLM-L6-v2"))
        >>> model.compile(optimizer=keras.optimizers.AdamW(2e-5))
        >>> model.fit(dataset, epochs=5)
    """

    def __init__(
        self,
        query_tower: TextEncoder,
        item_tower: TextEncoder | None = None,
        *,
        loss: InBatchSoftmax | None = None,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        distillation: ScoreDistillation | None = None,
        **kwargs: Any,
    ) -> None:
        # The towers' policy: under mixed_float16, `compile` then adds loss scaling.
        super().__init__(**{"dtype": query_tower.backbone.dtype_policy, **kwargs})
        self.query_tower = query_tower
        self.item_tower = query_tower if item_tower is None else item_tower
        if self.query_tower.embedding_dim != self.item_tower.embedding_dim:
            raise ValueError(
                f"the query tower makes {self.query_tower.embedding_dim} numbers a text, "
                f"the item tower {self.item_tower.embedding_dim}: they must agree"
            )
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0; got {temperature}")
        self.embedding_loss = InBatchSoftmax(symmetric=True) if loss is None else loss
        self.distillation = distillation
        self.start_temperature = temperature
        self.learn_temperature = learn_temperature
        if learn_temperature:
            # The logarithm is learned, so that a step is a ratio and the sign cannot change.
            self.log_temperature = self.add_weight(
                name="log_temperature",
                shape=(),
                dtype="float32",
                autocast=False,
                initializer=keras.initializers.Constant(math.log(temperature)),
            )
        self.built = True

    @property
    def shared(self) -> bool:
        """Whether queries and items go through the same weights."""
        return self.query_tower is self.item_tower

    @property
    def temperature(self) -> Any:
        """The divisor of the cosines: a float, or a scalar tensor where it is learned."""
        if not self.learn_temperature:
            return self.start_temperature
        return ops.maximum(ops.exp(self.log_temperature), _MIN_TEMPERATURE)

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Encodes a batch; see the class."""
        query = self.query_tower(inputs["query"], training=training)
        item = self.item_tower(inputs["item"], training=training)
        if "negatives" in inputs:
            negatives = self.item_tower(inputs["negatives"], training=training)
            item = ops.concatenate([item, negatives])
        return {"query": query, "item": item}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of a batch, a float32 scalar; called by `fit` and `evaluate`.

        Raises:
            ValueError: a key of the batch is there without the one it needs.
        """
        _require(x, "positive_ids", "item_ids")
        if "negatives" in x:
            _require(x, "item_ids", "negative_ids")
            _require(x, "item_log_probability", "negative_log_probability")
        candidate_ids = _join(x, "item_ids", "negative_ids")
        n_queries = ops.shape(y_pred["query"])[0]
        positives = ignored = None
        if candidate_ids is not None:
            ignored = accidental_hits(candidate_ids, n_queries)
            if "positive_ids" in x:
                first_kind = candidate_ids if len(candidate_ids.shape) == 1 else candidate_ids[:, 0]
                positives = known_positives(first_kind, x["positive_ids"])
                # A second copy of an item is masked, not a second target.
                own = ops.eye(n_queries, ops.shape(first_kind)[0], dtype="bool")
                positives = (positives & ~ignored) | own
        if "ignored" in x:
            further = ops.cast(x["ignored"], "bool")
            ignored = further if ignored is None else ignored | further
        loss = self.embedding_loss(
            y_pred["query"],
            y_pred["item"],
            temperature=self.temperature,
            positives=positives,
            ignored=ignored,
            candidate_log_probability=_join(x, "item_log_probability", "negative_log_probability"),
            sample_weight=sample_weight,
        )
        if self.distillation is not None and "teacher_scores" in x:
            loss = loss + self.distillation(y_pred["query"], y_pred["item"], x["teacher_scores"])
        for penalty in self.losses:  # regularisers and add_loss of the towers
            loss = loss + ops.cast(penalty, "float32")
        return loss

    def with_dtype(self, dtype: str) -> TwoTower:
        """The model with equal weights and another compute dtype; itself where it has it."""
        query_tower = self.query_tower.with_dtype(dtype)
        item_tower = query_tower if self.shared else self.item_tower.with_dtype(dtype)
        if query_tower is self.query_tower and item_tower is self.item_tower:
            return self
        return self.with_towers(query_tower, item_tower)

    def with_towers(
        self, query_tower: TextEncoder, item_tower: TextEncoder | None = None
    ) -> TwoTower:
        """A model with other towers and the same loss and temperature."""
        twin = TwoTower(
            query_tower,
            item_tower,
            loss=self.embedding_loss,
            temperature=self.start_temperature,
            learn_temperature=self.learn_temperature,
            distillation=self.distillation,
        )
        if self.learn_temperature:
            twin.log_temperature.assign(self.log_temperature)
        return twin

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "query_tower": serialize(self.query_tower),
            "item_tower": None if self.shared else serialize(self.item_tower),
            "loss": serialize(self.embedding_loss),
            "temperature": self.start_temperature,
            "learn_temperature": self.learn_temperature,
            "distillation": serialize(self.distillation),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TwoTower:
        """Rebuilds the model from `get_config`."""
        config = dict(config)
        for key in ("query_tower", "item_tower", "loss", "distillation"):
            config[key] = keras.saving.deserialize_keras_object(config.get(key))
        return cls(**config)


def _require(x: Mapping[str, Any], key: str, needed: str) -> None:
    if key in x and needed not in x:
        raise ValueError(f"the batch has {key!r} without {needed!r}; it has {', '.join(sorted(x))}")


def _join(x: Mapping[str, Any], first: str, second: str) -> Any:
    """The entries of the batch's own items followed by those of the extra negatives."""
    if first not in x:
        return None
    parts = [ops.convert_to_tensor(x[first])]
    if "negatives" in x:
        parts.append(ops.convert_to_tensor(x[second]))
    return parts[0] if len(parts) == 1 else ops.concatenate(parts)
