"""A BERT backbone that guesses masked tokens."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub
from keras import ops

from towers.bert import bert_weights, sequence_output


class MaskedLanguageModel(keras.Model):
    """Logits of the vocabulary at given positions of texts.

    On top of the encoder's forward pass (`towers.bert`) comes BERT's own head: a linear map with
    GELU, a norm, and the product with the token embeddings (Devlin et al. 2019; tied weights: Press
    & Wolf 2017). Sentence encoders are published without that head, so it starts from random
    weights.

    `compile` it with `masked_token_loss` and ``weighted_metrics``; batches are those of
    `training.pretrain_masking.WordMasking`.

    Args:
        backbone: a `keras_hub.models.BertBackbone`, which is trained itself, not a copy.
        train_backbone: whether it is trained, or the head alone.
    """

    def __init__(
        self, backbone: keras.Model, *, train_backbone: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = keras_hub.layers.MaskedLMHead(
            token_embedding=backbone.token_embedding,
            intermediate_activation="gelu",
            layer_norm_epsilon=1e-12,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="masked_language_head",
        )
        self.head.build((None, None, int(backbone.hidden_dim)))
        self.train_backbone(train_backbone)
        self.built = True

    def train_backbone(self, trained: bool) -> None:
        """Frees or freezes the backbone; `compile` comes after that."""
        self.backbone.trainable = trained
        # The next-sentence head is not used here.
        self.backbone.get_layer("pooled_dense").trainable = False

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Guesses.

        Args:
            inputs: ``token_ids`` and ``padding_mask``, int ``[N, T]``; ``positions``, int
                ``[N, P]``.
            training: whether to drop out.

        Returns:
            Logits, float32 ``[N, P, vocabulary]``.
        """
        tokens = sequence_output(
            bert_weights(self.backbone),
            inputs["token_ids"],
            inputs["padding_mask"],
            num_heads=self.backbone.num_heads,
            dropout=self._drop_out if training and self.backbone.dropout else lambda x: x,
        )  # [N, T, hidden]
        return ops.cast(self.head(tokens, inputs["positions"]), "float32")

    def _drop_out(self, x: Any) -> Any:
        seed = self.backbone.embeddings_dropout.seed_generator
        return keras.random.dropout(x, self.backbone.dropout, seed=seed)


def masked_token_loss() -> keras.losses.Loss:
    """Cross-entropy, averaged over the masked tokens of a batch; sample weights say which."""
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
