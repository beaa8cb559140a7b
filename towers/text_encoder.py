"""A BERT backbone that turns token ids into one unit vector a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from towers.adaptation import Adaptation
from towers.bert import (
    BertWeights,
    bert_weights,
    compute_in,
    embedded,
    merged,
    sequence_output,
    through_layers,
)
from towers.checkpoint import DEFAULT_PRESET, load_backbone
from towers.pooling import Pooling, pool


class EncoderWeights(NamedTuple):
    """Weights of a `TextEncoder`, a nest of tensors.

    Attributes:
        bert: those of the backbone.
        projections: kernels ``[in, out]`` that pooled vectors are multiplied by, in this order.
    """

    bert: BertWeights
    projections: tuple[Any, ...]


class Architecture(NamedTuple):
    """All of a `TextEncoder` that its weights do not tell; hashable.

    Attributes:
        num_heads: attention heads.
        pooling: see `Pooling`.
        frozen: how many of the lowest layers nothing trains.
    """

    num_heads: int
    pooling: str
    frozen: int = 0

    def embed(
        self,
        weights: EncoderWeights,
        inputs: Mapping[str, Any],
        *,
        dropout: Callable[[Any], Any] = lambda x: x,
        perturbation: Any = None,
    ) -> Any:
        """Encodes token ids; see `TextEncoder.embed`."""
        mask = inputs["padding_mask"]
        if "states" in inputs:
            tokens = through_layers(
                weights.bert.layers[self.frozen :],
                inputs["states"],
                mask,
                num_heads=self.num_heads,
                dropout=dropout,
            )  # [N, T, hidden]
        else:
            tokens = sequence_output(
                weights.bert,
                inputs["token_ids"],
                mask,
                num_heads=self.num_heads,
                dropout=dropout,
                perturbation=perturbation,
            )
        pooled = pool(tokens, mask, self.pooling)  # [N, hidden]
        for kernel in weights.projections:
            pooled = ops.matmul(pooled, kernel)  # [N, embedding_dim]
        return ops.normalize(pooled, axis=-1, order=2, epsilon=1e-12)


@keras.saving.register_keras_serializable(package="towers")
class TextEncoder(keras.Model):
    """BERT, pooling, optional projection, L2 normalisation.

    Input is a dict of ``token_ids`` and ``padding_mask``, int ``[N, T]`` (see
    `towers.Tokenizer`); output is float32 ``[N, embedding_dim]`` with rows of length one, whatever
    the compute dtype. Strings stay outside, so the encoder runs on every Keras backend and device.

    Where nothing trains the lowest layers (`frozen_layers`), the dict may have their output,
    ``states``, float32 ``[N, T, hidden]``, in place of ``token_ids``: they are made once
    (`frozen_states`), and a step of training costs what the layers above cost.

    Reference: Reimers & Gurevych 2019, "Sentence-BERT".

    Args:
        backbone: a `keras_hub.models.BertBackbone`.
        pooling: ``mean``, ``cls`` or ``max``.
        projection_dim: width of a bias-free linear projection after pooling; none if None. It
            starts as the identity where the widths agree, so that it does no harm untrained, and
            orthogonal elsewhere.
        adaptation: what is trained instead of all weights, see `towers.adaptation`; the projection
            always is.

    Example:
        >>> encoder = TextEncoder.from_preset("all-MiniLM-L6-v2")
        >>> tokenizer = Tokenizer.from_preset("all-MiniLM-L6-v2")
        >>> encoder(tokenizer(tf.constant(["kettle", "teapot"]), max_length=32)).shape
        TensorShape([2, 384])
    """

    def __init__(
        self,
        backbone: keras.Model,
        *,
        pooling: str = "mean",
        projection_dim: int | None = None,
        adaptation: Adaptation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        # BERT's next-sentence head: not used here, so not to be trained or counted.
        backbone.get_layer("pooled_dense").trainable = False
        self.pooling = Pooling(pooling, name="pooling", dtype="float32")
        self.projection_dim = projection_dim
        self.projection: keras.layers.Dense | None = None
        width = int(backbone.hidden_dim)
        if projection_dim is not None:
            start = "identity" if projection_dim == width else "orthogonal"
            self.projection = keras.layers.Dense(
                projection_dim,
                use_bias=False,
                kernel_initializer=start,
                name="projection",
                dtype="float32",
            )
            self.projection.build((None, width))
        self.embedding_dim = projection_dim or width
        self.adaptation = adaptation
        if adaptation is not None:
            adaptation.attach(backbone)
        self.built = True

    @property
    def compute_dtype(self) -> str:
        """The dtype the backbone computes in."""
        return self.backbone.compute_dtype

    @classmethod
    def from_preset(cls, preset: str = DEFAULT_PRESET, **kwargs: Any) -> TextEncoder:
        """Builds the encoder on a pretrained checkpoint; see `towers.checkpoint` for presets."""
        return cls(load_backbone(preset), **kwargs)

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Encodes token ids; see the class for shapes."""
        # Merged kernels are quicker to use, low-rank updates beside them quicker to train.
        weights = self.read_weights(self.compute_dtype, merge=not training)
        return self.embed(weights, inputs, training=training)

    def read_weights(self, dtype: str = "float32", *, merge: bool = True) -> EncoderWeights:
        """The weights as `embed` takes them, the adaptation's among them.

        Args:
            dtype: see `towers.bert.compute_in`.
            merge: add low-rank updates to the kernels.
        """
        bert = bert_weights(self.backbone)
        if self.adaptation is not None:
            bert = self.adaptation.adapt(bert)
            bert = merged(bert) if merge else bert
        layers = [] if self.projection is None else [self.projection]
        return EncoderWeights(
            compute_in(bert, dtype), tuple(ops.cast(layer.kernel, "float32") for layer in layers)
        )

    def embed(
        self,
        weights: EncoderWeights,
        inputs: dict[str, Any],
        training: bool | None = None,
        *,
        seeds: keras.random.SeedGenerator | None = None,
        perturbation: Any = None,
    ) -> Any:
        """Encodes token ids as `call` does, with weights that have been read before.

        Outside of training a pure function of its arguments.

        Args:
            weights: see `read_weights`.
            inputs: see the class.
            training: apply dropout.
            seeds: of dropout; the encoder's own if None.
            perturbation: float32 ``[N, T, hidden]``, added to the embeddings of the tokens after
                their layer norm; nothing if None.
        """

        def drop_out(x: Any) -> Any:
            return keras.random.dropout(x, self.backbone.dropout, seed=seeds or self.seed_generator)

        return self.architecture.embed(
            weights,
            inputs,
            dropout=drop_out if training and self.backbone.dropout else lambda x: x,
            perturbation=perturbation,
        )

    @property
    def frozen_layers(self) -> int:
        """How many of the lowest layers nothing trains, the embeddings below them neither."""
        return 0 if self.adaptation is None else self.adaptation.frozen_layers(self.backbone)

    def frozen_states(self, inputs: Mapping[str, Any]) -> Any:
        """What the lowest layers that nothing trains make of token ids, without dropout.

        Args:
            inputs: ``token_ids`` and ``padding_mask``, int ``[N, T]``.

        Returns:
            float32 ``[N, T, hidden]``, for ``states``.
        """
        weights = self.read_weights(self.compute_dtype).bert
        return through_layers(
            weights.layers[: self.frozen_layers],
            embedded(weights, inputs["token_ids"]),
            inputs["padding_mask"],
            num_heads=int(self.backbone.num_heads),
        )

    @property
    def architecture(self) -> Architecture:
        """What `embed` knows of the encoder beside its weights."""
        return Architecture(int(self.backbone.num_heads), self.pooling.mode, self.frozen_layers)

    @property
    def seed_generator(self) -> keras.random.SeedGenerator:
        """The seeds of dropout."""
        # The state of a layer of the backbone, for its place in saved models and checkpoints.
        return self.backbone.embeddings_dropout.seed_generator

    def compute_output_spec(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Shape and dtype of the output, for symbolic calls."""
        batch = inputs["padding_mask"].shape[0]
        return keras.KerasTensor((batch, self.embedding_dim), dtype="float32")

    def with_dtype(self, dtype: str) -> TextEncoder:
        """The encoder with equal weights and another compute dtype; itself where it has it already.

        Args:
            dtype: a dtype or a Keras dtype policy: ``float32``, ``bfloat16``, ``mixed_bfloat16``.
        """
        if self.backbone.dtype_policy.name == dtype:
            return self
        config = self.get_config()
        config["backbone"]["config"]["dtype"] = dtype
        twin = type(self).from_config(config)
        twin.set_weights(self.get_weights())
        return twin

    def copy(self) -> TextEncoder:
        """An encoder with equal weights of its own."""
        return self._copy(self.get_config())

    def with_adaptation(self, adaptation: Adaptation | None) -> TextEncoder:
        """A copy that trains what the adaptation says; all weights if None.

        An adaptation that this encoder has is left out.
        """
        config = {**self.get_config(), "adaptation": None}
        if adaptation is not None:
            config["adaptation"] = keras.saving.serialize_keras_object(adaptation)
        return self._copy(config)

    def with_map(self, kernel: np.ndarray) -> TextEncoder:
        """A copy whose vectors are these, times a matrix ``[embedding_dim, out]``, normalised."""
        twin = self._copy({**self.get_config(), "projection_dim": int(kernel.shape[1])})
        assert twin.projection is not None
        if self.projection is not None:
            kernel = ops.convert_to_numpy(self.projection.kernel) @ kernel
        twin.projection.kernel.assign(kernel)
        return twin

    def without_projection(self) -> TextEncoder:
        """A copy that ends with the pooling; itself where it does already."""
        if self.projection is None:
            return self
        return self._copy({**self.get_config(), "projection_dim": None})

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of `without_projection` as this encoder has them.

        Args:
            vectors: float32 ``[N, hidden]``, unit vectors.

        Returns:
            float32 ``[N, embedding_dim]``, unit vectors.
        """
        if self.projection is None:
            return vectors
        mapped = ops.matmul(vectors, self.projection.kernel)
        return ops.convert_to_numpy(ops.normalize(mapped, axis=-1, order=2, epsilon=1e-12))

    def without_adaptation(self) -> TextEncoder:
        """An encoder of the same function and no adaptation, where it can be had; else itself.

        All its weights are trainable.
        """
        if self.adaptation is None or not self.adaptation.mergeable:
            return self
        twin = self.with_adaptation(None)
        self.adaptation.merge(twin.backbone)
        return twin

    def _copy(self, config: dict[str, Any]) -> TextEncoder:
        """An encoder of another configuration with equal weights, where both have them."""
        twin = type(self).from_config(config)
        twin.backbone.set_weights(self.backbone.get_weights())
        for name in ("projection", "adaptation"):
            mine, other = getattr(self, name), getattr(twin, name)
            if mine is not None and other is not None and type(mine) is type(other):
                shapes = [[weight.shape for weight in layer.weights] for layer in (mine, other)]
                if shapes[0] == shapes[1]:
                    other.set_weights(mine.get_weights())
        return twin

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "pooling": self.pooling.mode,
            "projection_dim": self.projection_dim,
            "adaptation": keras.saving.serialize_keras_object(self.adaptation),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TextEncoder:
        """Rebuilds the encoder from `get_config`."""
        config = dict(config)
        for key in ("backbone", "adaptation"):  # earlier models have no adaptation
            config[key] = keras.saving.deserialize_keras_object(config.get(key))
        return cls(**config)
