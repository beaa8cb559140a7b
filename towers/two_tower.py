"""Two encoders trained to put a query next to its items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
from keras import ops

from towers.attribute_fusion import AttributeFusion
from towers.gradient_cache import encode_in_chunks
from towers.gradients import gradient
from towers.losses import (
    InBatchSoftmax,
    ScoreDistillation,
    known_grades,
    known_positives,
    loss_in_blocks,
    r_drop,
    same_item,
)
from towers.losses.in_batch_softmax import weighted_mean
from towers.replicas import replica_count, reportable, whole_batch, whole_vectors
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
    | `item_attributes`          | `[B, F]`, `[B, C]` | `values`, `categories` of the items      |
    | `negative_attributes`      | `[M, F]`, `[M, C]` | the same for `negatives`                 |
    | `cached`                   | float `[K, d]`     | vectors of items, negatives of all, too  |
    | `item_ids`                 | int `[B]`/`[B, n]` | ids, or n kinds of them, finding repeats |
    | `negative_ids`             | as `item_ids`, M   | the same for `negatives`                 |
    | `cached_ids`               | as `item_ids`, K   | the same for `cached`                    |
    | `positive_ids`             | int `[B, P]`       | known positives of a query, padded by -1 |
    | `positive_grades`          | `[B, P]`           | their grades, for a graded loss          |
    | `item_log_probability`     | float `[B]`        | log sampling probability (logQ)          |
    | `negative_log_probability` | float `[M]`        | the same for `negatives`                 |
    | `cached_log_probability`   | float `[K]`        | the same for `cached`                    |
    | `ignored`                  | bool `[B, C]`      | further items that are no negatives      |
    | `teacher_scores`           | float `[B, C]`     | a teacher's scores, to be distilled      |

    `C` is `B + M + K`. Texts are as `TextEncoder` takes them: `states` may stand for `token_ids`.
    All but the first two are optional; `positive_ids` need `item_ids`, and with `negatives` or
    `cached`, ids and probabilities are given for all kinds of item or for none.
    `cached` vectors are taken as they are: no gradient flows into them, and thousands cost little
    (memory banks: Wu et al. 2018, https://arxiv.org/abs/1805.01978). `item_ids` keep an item that
    stands in the batch twice, or twice with the same text, from being its own negative;
    `positive_ids` (of the first kind of id) do that for further positives of a query, and make them
    positives of it where the loss has `multi_positive`. `teacher_scores` are used where there is a
    `distillation`. Targets `y` are not used; `sample_weight` is float `[B]` and weighs the queries
    of `loss`; the distillation counts all queries alike.

    Under a `tf.distribute` strategy each device encodes its part of a batch, and the loss is that
    of the whole batch: the items of all devices are negatives of each query (`towers.replicas`).
    `C` counts the candidates of the whole batch there too: a device has some rows of `ignored` and
    `teacher_scores`, and all their columns.

    `item_attributes` are used where there is a `fusion`; an item without them is its text.

    `model(x)` returns `{"query": [B, d], "item": [C, d]}`, unit rows: own items, `negatives`,
    `cached`.

    Args:
        query_tower: encoder of queries.
        item_tower: encoder of items; the same object, or None, for shared weights.
        fusion: moves the vectors of items by their attributes; none if None.
        loss: a loss on embeddings with the call of `towers.losses.InBatchSoftmax`.
        temperature: divisor of the cosines; the start value if learned.
        learn_temperature: make the temperature a trainable weight.
        distillation: a second loss, added where a batch has `teacher_scores`.
        chunks: parts that a batch is encoded in, one after the other, so that the encoder takes the
            memory of one part (`towers.gradient_cache`), and parts that its matrix of scores is
            made in (`towers.losses.loss_in_blocks`); what is left grows with the embeddings. The
            matrices of `distillation` and `r_drop` are made whole.
        fgm: length of an adversarial step; 0 for none. In training, each text's embedded tokens are
            moved by a vector of this length along the gradient of the loss, and the loss of the
            texts moved like that is added (Miyato et al. 2017, https://arxiv.org/abs/1605.07725,
            equations 2 and 5; their embeddings are normalised too). Twice the cost of a step.
        r_drop: weight of `towers.losses.r_drop`; 0 for none. In training, a batch is encoded twice
            with different dropout, and its loss is the mean of both and their divergence. Twice the
            cost of a step.

    Raises:
        ValueError: towers or a fusion of different width, a temperature that is not above 0,
            `chunks` below 1, `fgm` or `r_drop` below 0, or `r_drop` and towers without dropout.

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
        fusion: AttributeFusion | None = None,
        loss: InBatchSoftmax | None = None,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        distillation: ScoreDistillation | None = None,
        chunks: int = 1,
        fgm: float = 0.0,
        r_drop: float = 0.0,
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
        if fusion is not None and fusion.dim != self.item_tower.embedding_dim:
            raise ValueError(
                f"the fusion moves vectors of {fusion.dim} numbers, and the towers make "
                f"{self.item_tower.embedding_dim}"
            )
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0; got {temperature}")
        if chunks < 1 or fgm < 0 or r_drop < 0:
            raise ValueError(
                "chunks must be 1 or more, fgm and r_drop 0 or more; got "
                f"chunks={chunks}, fgm={fgm}, r_drop={r_drop}"
            )
        if r_drop and not any(t.backbone.dropout for t in (self.query_tower, self.item_tower)):
            raise ValueError("r_drop needs dropout, and the towers have none")
        self.fusion = fusion
        self.embedding_loss = InBatchSoftmax(symmetric=True) if loss is None else loss
        self.distillation = distillation
        self.chunks = chunks
        self.fgm = fgm
        self.r_drop = r_drop
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
        return self._encode(inputs, training)

    def _encode(
        self,
        inputs: Mapping[str, Any],
        training: bool | None,
        perturbation: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Encodes a batch, its texts moved by `[N, T, hidden]` each where that is given."""

        def encode(tower: TextEncoder, name: str) -> Any:
            moved = None if perturbation is None else perturbation[name]
            if self.chunks > 1:
                return encode_in_chunks(
                    tower, inputs[name], self.chunks, training=training, perturbation=moved
                )
            if moved is None:
                return tower(inputs[name], training=training)
            weights = tower.read_weights(tower.compute_dtype, merge=not training)
            return tower.embed(weights, inputs[name], training=training, perturbation=moved)

        def encode_items(name: str, attributes: str) -> Any:
            vectors = encode(self.item_tower, name)
            if self.fusion is None or attributes not in inputs:
                return vectors
            return self.fusion(vectors, inputs[attributes])

        query = encode(self.query_tower, "query")
        items = [encode_items("item", "item_attributes")]
        if "negatives" in inputs:
            items.append(encode_items("negatives", "negative_attributes"))
        if "cached" in inputs:
            items.append(ops.cast(inputs["cached"], "float32"))
        return {"query": query, "item": ops.concatenate(items) if len(items) > 1 else items[0]}

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
        whole, weight = whole_batch(x, sample_weight)
        perturbation = None
        if training and self.fgm:
            # Encodes anew, in view of the gradient; nothing is left of `y_pred` in a compiled step.
            perturbation, y_pred = self._adversary(x, sample_weight)
        vectors = whole_vectors(x, y_pred)
        loss = self._loss(whole, vectors, weight)
        if training and self.r_drop:
            again = whole_vectors(x, self._encode(x, training))
            divergence = r_drop(vectors, again, temperature=self.temperature)
            loss = (loss + self._loss(whole, again, weight)) / 2.0
            loss = loss + self.r_drop * weighted_mean(divergence, weight)
        if perturbation is not None:
            moved = whole_vectors(x, self._encode(x, training, perturbation))
            loss = loss + self._loss(whole, moved, weight)
        for penalty in self.losses:  # regularisers and add_loss of the towers
            loss = loss + ops.cast(penalty, "float32")
        # Each replica has the loss of the whole batch, and Keras adds up their gradients.
        return loss / replica_count()

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """The metrics of a step, the loss among them; called by `fit` and `evaluate`."""
        return reportable(super().compute_metrics(x, y, y_pred, sample_weight=sample_weight))

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing: all weights are made in the constructor.

        Keras would add up the first batch over the devices to learn its shape, which fails where
        they have unequal parts of it.
        """

    def _adversary(self, x: Any, sample_weight: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The steps `fgm * g / |g|` of all texts, `[N, T, hidden]`, and the embeddings before."""

        whole, weight = whole_batch(x, sample_weight)

        def loss(moves: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            vectors = self._encode(x, True, moves)
            return self._loss(whole, whole_vectors(x, vectors), weight), vectors

        towers = {"query": self.query_tower, "item": self.item_tower, "negatives": self.item_tower}
        nowhere = {
            name: ops.zeros((*ops.shape(x[name]["token_ids"]), int(tower.backbone.hidden_dim)))
            for name, tower in towers.items()
            if name in x
        }
        slopes, vectors = gradient(loss, nowhere)
        steps = {}
        for name, slope in slopes.items():
            length = ops.sqrt(ops.sum(ops.square(slope), axis=(1, 2), keepdims=True))
            # A text that the loss does not depend on stays where it is.
            steps[name] = ops.stop_gradient(self.fgm * slope / ops.maximum(length, 1e-30))
        return steps, vectors

    def _loss(self, x: Any, vectors: Mapping[str, Any], sample_weight: Any) -> Any:
        """The loss of a batch's embeddings, penalties of the towers aside."""
        _require(x, "positive_ids", "item_ids")
        _require(x, "positive_grades", "positive_ids")
        queries, items = vectors["query"], vectors["item"]
        options = {
            "temperature": self.temperature,
            "candidate_log_probability": _join(x, "log_probability"),
            "sample_weight": sample_weight,
        }
        relation = partial(_relation, x, _join(x, "ids"))
        if self.chunks > 1:
            blocks = self.chunks
            loss = loss_in_blocks(
                self.embedding_loss, queries, items, relation, blocks=blocks, **options
            )
        else:
            rows, columns = ops.arange(ops.shape(queries)[0]), ops.arange(ops.shape(items)[0])
            positives, ignored = relation(rows, columns)
            loss = self.embedding_loss(
                queries, items, positives=positives, ignored=ignored, **options
            )
        if self.distillation is not None and "teacher_scores" in x:
            loss = loss + self.distillation(queries, items, x["teacher_scores"])
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
        """A model with other towers, a copy of the fusion, and the same loss and temperature."""
        fusion = None if self.fusion is None else self.fusion.copy()
        return self._with(query_tower, item_tower, fusion)

    def with_fusion(self, fusion: AttributeFusion | None) -> TwoTower:
        """A model of the same towers with another fusion of attributes, or none."""
        return self._with(self.query_tower, None if self.shared else self.item_tower, fusion)

    def _with(
        self,
        query_tower: TextEncoder,
        item_tower: TextEncoder | None,
        fusion: AttributeFusion | None,
    ) -> TwoTower:
        twin = TwoTower(
            query_tower,
            item_tower,
            fusion=fusion,
            loss=self.embedding_loss,
            temperature=self.start_temperature,
            learn_temperature=self.learn_temperature,
            distillation=self.distillation,
            chunks=self.chunks,
            fgm=self.fgm,
            r_drop=self.r_drop,
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
            "fusion": serialize(self.fusion),
            "loss": serialize(self.embedding_loss),
            "temperature": self.start_temperature,
            "learn_temperature": self.learn_temperature,
            "distillation": serialize(self.distillation),
            "chunks": self.chunks,
            "fgm": self.fgm,
            "r_drop": self.r_drop,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TwoTower:
        """Rebuilds the model from `get_config`."""
        config = dict(config)
        for key in ("query_tower", "item_tower", "fusion", "loss", "distillation"):
            config[key] = keras.saving.deserialize_keras_object(config.get(key))
        return cls(**config)


def _require(x: Mapping[str, Any], key: str, needed: str) -> None:
    if key in x and needed not in x:
        raise ValueError(f"the batch has {key!r} without {needed!r}; it has {', '.join(sorted(x))}")


def _relation(x: Mapping[str, Any], candidate_ids: Any, rows: Any, columns: Any) -> tuple[Any, Any]:
    """What some queries of a batch and some candidates are to each other.

    Args:
        x: the whole batch.
        candidate_ids: of all candidates, `[C]` or `[C, n]`; None where there are none.
        rows: int `[R]`.
        columns: int `[K]`.

    Returns:
        `positives`, bool or float grades, and `ignored`, bool, `[R, K]` each; None for none.
    """
    positives = ignored = None
    if candidate_ids is not None:
        of_rows = ops.take(candidate_ids, rows, axis=0)
        of_columns = ops.take(candidate_ids, columns, axis=0)
        own = ops.expand_dims(rows, 1) == ops.expand_dims(columns, 0)
        ignored = same_item(of_rows, of_columns) & ~own
        if "positive_ids" in x:
            first_kind = of_columns if len(of_columns.shape) == 1 else of_columns[:, 0]
            known = ops.take(x["positive_ids"], rows, axis=0)
            # A second copy of an item is masked, not a second target.
            positives = (known_positives(first_kind, known) & ~ignored) | own
            if "positive_grades" in x:
                grades = ops.take(x["positive_grades"], rows, axis=0)
                grades = known_grades(first_kind, known, grades)
                positives = ops.where(positives, ops.maximum(grades, 1.0), 0.0)
    if "ignored" in x:
        further = ops.take(ops.cast(x["ignored"], "bool"), rows, axis=0)
        further = ops.take(further, columns, axis=1)
        ignored = further if ignored is None else ignored | further
    return positives, ignored


def _join(x: Mapping[str, Any], kind: str) -> Any:
    """The ids, say, of all candidates of a batch: its own items, the negatives, the cached."""
    if f"item_{kind}" not in x:
        return None
    parts = [x[f"item_{kind}"]]
    for name, key in (("negative", "negatives"), ("cached", "cached")):
        if key in x:
            _require(x, f"item_{kind}", f"{name}_{kind}")
            parts.append(x[f"{name}_{kind}"])
    parts = [ops.convert_to_tensor(part) for part in parts]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts)
