"""The user tower: a history of items becomes a vector in the space of the items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from towers.losses import InBatchSoftmax

Tensor = Any

_MASKED = -1e30
_INIT_SEED = 17  # of the one random weight; training decides everything else


@keras.saving.register_keras_serializable(package="towers")
class UserTower(keras.Model):
    """Attention over the embeddings of a user's past items.

    The newest item asks, all items answer, and every item loses weight with each newer one:

        attention[p] = softmax_p(<A e_newest, B e_p> - rate * age_p)
        user = unit(sum_p attention[p] * (I + M) e_p)

    `age_p` counts the known items after `p`, so padding and unknown items may stand anywhere. `B`
    and `M` start at zero: an untrained tower is exactly the mean of the items with weights
    `decay ** age_p`, and training can only be kept where it is better than that. Items enter
    through their embeddings alone, so a new item needs no training.

    It trains like any Keras model, on batches of dicts:

    | key            | shape        | content                                                |
    |----------------|--------------|--------------------------------------------------------|
    | `history`      | `[B, h, d]`  | item embeddings, oldest first                          |
    | `known`        | `[B, h]`     | bool; false: padding, or an item without an embedding  |
    | `item`         | `[B, d]`     | the item that came next                                |
    | `negatives`    | `[C, d]`     | further items of the catalogue (optional)              |
    | `ignored`      | `[B, B + C]` | bool; true: not a negative (optional)                  |

    The softmax over `item` and `negatives` is `towers.losses.InBatchSoftmax`. The layout is that of
    the attentive session models (Li et al. 2017, Neural Attentive Session-based Recommendation,
    CIKM; Liu et al. 2018, STAMP, KDD), with a recency bias in place of position embeddings
    (Press et al. 2022, ALiBi, ICLR), because few-shot histories do not teach positions.

    Args:
        embedding_dim: width of an item embedding.
        decay: share of its weight that an item keeps with each newer one, before training; in
            (0, 1). 1 is a mean that knows no order.
        attention_dim: width of the attention's queries and keys.
        temperature: divisor of the cosines in the loss.

    Raises:
        ValueError: a decay outside (0, 1], or a width or temperature that is not above 0.

    Example:
        >>> tower = UserTower(384, decay=0.6)
        >>> users = tower({"history": items[None], "known": np.ones((1, len(items)), bool)})
    """

    def __init__(
        self,
        embedding_dim: int,
        *,
        decay: float = 0.6,
        attention_dim: int = 16,
        temperature: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1; got {decay}")
        if embedding_dim < 1 or attention_dim < 1 or temperature <= 0:
            raise ValueError(
                "embedding_dim, attention_dim and temperature must be above 0; got "
                f"{embedding_dim}, {attention_dim} and {temperature}"
            )
        self.embedding_dim = embedding_dim
        self.decay = decay
        self.attention_dim = attention_dim
        self.temperature = temperature
        self.embedding_loss = InBatchSoftmax()
        constant = keras.initializers.Constant
        self.rate = self.add_weight(
            name="rate", shape=(), initializer=constant(-math.log(decay)), dtype="float32"
        )
        shape = (embedding_dim, attention_dim)
        normal = keras.initializers.RandomNormal(embedding_dim**-0.5, seed=_INIT_SEED)
        self.asking = self.add_weight(name="asking", shape=shape, initializer=normal)
        self.answering = self.add_weight(name="answering", shape=shape, initializer="zeros")
        self.kernel = self.add_weight(
            name="kernel", shape=(embedding_dim, embedding_dim), initializer="zeros"
        )
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Tensor:
        """User vectors of length one, `[B, d]`; zeros where nothing of a history is known."""
        return embed_users(self.weights_by_name(), inputs["history"], inputs["known"])

    def weights_by_name(self) -> dict[str, Any]:
        """The weights as `embed_users` takes them."""
        return {
            "rate": self.rate,
            "asking": self.asking,
            "answering": self.answering,
            "kernel": self.kernel,
        }

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of a batch, a float32 scalar; called by `fit` and `evaluate`."""
        candidates = x["item"]
        if "negatives" in x:
            candidates = ops.concatenate([candidates, x["negatives"]])
        return self.embedding_loss(
            y_pred,
            candidates,
            temperature=self.temperature,
            ignored=x.get("ignored"),
            sample_weight=sample_weight,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "name": self.name,
            "embedding_dim": self.embedding_dim,
            "decay": self.decay,
            "attention_dim": self.attention_dim,
            "temperature": self.temperature,
        }


def embed_users(weights: Mapping[str, Any], history: Tensor, known: Tensor) -> Tensor:
    """The forward pass of `UserTower` on given weights, for use in an exported graph as well.

    Args:
        weights: `rate` `[]`, `asking` and `answering` `[d, a]`, `kernel` `[d, d]`.
        history: item embeddings, `[B, h, d]`, oldest first.
        known: bool `[B, h]`.

    Returns:
        float32 `[B, d]`, rows of length one; zeros where nothing is known.
    """
    history = ops.cast(history, "float32")
    attention = history_attention(weights, history, known)  # [B, h]
    pooled = ops.sum(attention[:, :, None] * history, axis=1)  # [B, d]
    pooled = pooled + ops.matmul(pooled, weights["kernel"])
    length = ops.sqrt(ops.sum(ops.square(pooled), axis=1, keepdims=True))
    return pooled / ops.maximum(length, 1e-12)


def history_attention(weights: Mapping[str, Any], history: Tensor, known: Tensor) -> Tensor:
    """The weight of each item in the mean that `embed_users` takes, which has the same arguments.

    Returns:
        float32 `[B, h]`; 0 for what is not known, and 1 in all where anything is.
    """
    history = ops.cast(history, "float32")
    known = ops.cast(known, "bool")
    ages = item_ages(known)  # [B, h]
    newest = ops.cast(known & (ages == 0), "float32")  # [B, h], one place at most
    asked = ops.matmul(ops.sum(history * newest[:, :, None], axis=1), weights["asking"])  # [B, a]
    answers = ops.matmul(history, weights["answering"])  # [B, h, a]
    logits = ops.sum(asked[:, None, :] * answers, axis=2)
    logits = logits - ops.cast(weights["rate"], "float32") * ops.cast(ages, "float32")
    attention = ops.softmax(ops.where(known, logits, _MASKED), axis=1)
    return ops.where(known, attention, 0.0)


def item_ages(known: Tensor) -> Tensor:
    """How many known items come after each place: bool `[B, h]` to int32 `[B, h]`."""
    counts = ops.cast(known, "int32")
    return ops.sum(counts, axis=1, keepdims=True) - ops.cumsum(counts, axis=1)
