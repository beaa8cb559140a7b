"""BERT's forward pass in few, wide operations, on the weights of a keras-hub backbone.

The function is that of `keras_hub.models.BertBackbone` up to rounding; it is written anew for three
reasons, with numbers in docs/benchmarks.md. It is faster: one matrix product makes queries, keys
and values, tokens stay rows of one matrix, and biases are added where TensorFlow can fuse them. In
a lower precision it is closer to float32: only matrix products are computed in it, while the
residual stream, the norms and the embeddings stay in float32. And weights are an argument, so that
a caller may change them on the way (low-rank updates), keep a copy of them in another precision
(bulk encoding), or write them into a graph as constants (export).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

_NORM_EPSILON = 1e-12  # BERT's, as in keras-hub
# Added to the attention scores of padding: small enough for a weight of exactly 0 beside any real
# token, large enough for float16.
_MASKED = -3e4


class Dense(NamedTuple):
    """A linear map: kernel ``[in, out]``, bias ``[out]``."""

    kernel: Any
    bias: Any


class Norm(NamedTuple):
    """Scale and shift of a layer norm, ``[hidden]`` each."""

    gamma: Any
    beta: Any


class LayerWeights(NamedTuple):
    """One transformer layer.

    Attributes:
        attention_input: hidden to queries, keys and values side by side, queries divided by the
            square root of the head's width; kernel ``[hidden, 3 * hidden]``.
        attention_output: heads side by side to hidden.
        attention_norm: after attention.
        intermediate: hidden to the wide layer.
        output: the wide layer to hidden.
        output_norm: after the feed-forward part.
    """

    attention_input: Dense
    attention_output: Dense
    attention_norm: Norm
    intermediate: Dense
    output: Dense
    output_norm: Norm


class BertWeights(NamedTuple):
    """All that `sequence_output` needs, a nest of tensors.

    Attributes:
        tokens: embeddings ``[vocabulary, hidden]``.
        positions: embeddings ``[positions, hidden]``, that of the first segment added.
        norm: of the sum of embeddings.
        layers: the transformer layers, lowest first.
    """

    tokens: Any
    positions: Any
    norm: Norm
    layers: tuple[LayerWeights, ...]


def bert_weights(backbone: keras.Model, dtype: str = "float32") -> BertWeights:
    """Reads a backbone's weights, as tensors that gradients flow through.

    Args:
        backbone: a `keras_hub.models.BertBackbone`.
        dtype: of kernels and biases, and thereby of the matrix products; the rest is float32.
    """
    segment = _float32(backbone.segment_embedding.embeddings)[0]
    return BertWeights(
        tokens=_float32(backbone.token_embedding.embeddings),
        positions=_float32(backbone.position_embedding.position_embeddings) + segment,
        norm=_norm(backbone.embeddings_layer_norm),
        layers=tuple(_layer(layer, dtype) for layer in backbone.transformer_layers),
    )


def sequence_output(
    weights: BertWeights,
    token_ids: Any,
    padding_mask: Any,
    *,
    num_heads: int,
    dropout: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """Contextual token vectors (Devlin et al. 2019; attention: Vaswani et al. 2017).

    Args:
        weights: see `bert_weights`.
        token_ids: int ``[N, T]``.
        padding_mask: int or bool ``[N, T]``, 1 for tokens.
        num_heads: attention heads.
        dropout: applied where BERT drops out; the identity for inference.

    Returns:
        float32 ``[N, T, hidden]``.
    """
    rows, width = ops.shape(token_ids)[0], ops.shape(token_ids)[1]
    hidden = weights.tokens.shape[-1]
    dtype = keras.backend.standardize_dtype(weights.layers[0].output.kernel.dtype)

    x = ops.take(weights.tokens, token_ids, axis=0) + weights.positions[:width]
    x = dropout(_normalise(ops.reshape(x, (-1, hidden)), weights.norm))  # [N * T, hidden]
    padding = (1.0 - ops.cast(padding_mask, dtype)) * _MASKED
    padding = ops.reshape(padding, (rows, 1, 1, width))

    for layer in weights.layers:
        heads = ops.reshape(
            _linear(x, layer.attention_input), (rows, width, 3, num_heads, hidden // num_heads)
        )
        heads = ops.transpose(heads, (2, 0, 3, 1, 4))  # [3, N, heads, T, width of a head]
        query, key, value = heads[0], heads[1], heads[2]
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) + padding  # [N, heads, T, T]
        context = ops.matmul(dropout(ops.softmax(scores)), value)  # [N, heads, T, width of a head]
        context = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (-1, hidden))
        attention = dropout(ops.cast(_linear(context, layer.attention_output), "float32"))
        x = _normalise(x + attention, layer.attention_norm)

        # Approximate GELU, as keras-hub has it: from the exact one no embedding is further than a
        # cosine of .99999.
        wide = ops.gelu(_linear(x, layer.intermediate), approximate=True)
        forward = dropout(ops.cast(_linear(wide, layer.output), "float32"))
        x = _normalise(x + forward, layer.output_norm)
    return ops.reshape(x, (rows, width, hidden))


def _linear(x: Any, dense: Dense) -> Any:
    product = ops.matmul(ops.cast(x, dense.kernel.dtype), dense.kernel)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # TensorFlow fuses product, bias and GELU only where the bias is added by this operation.
        return tf.nn.bias_add(product, dense.bias)
    return product + dense.bias


def _normalise(x: Any, norm: Norm) -> Any:
    """Layer norm (Ba et al. 2016) of rows, float32 ``[rows, hidden]``."""
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return centred * ops.rsqrt(variance + _NORM_EPSILON) * norm.gamma + norm.beta


def _layer(layer: keras.layers.Layer, dtype: str) -> LayerWeights:
    attention = layer._self_attention_layer
    query, key, value = attention.query_dense, attention.key_dense, attention.value_dense
    hidden, heads, head_width = query.kernel.shape
    scale = head_width**-0.5
    return LayerWeights(
        attention_input=_dense(
            [
                (_float32(query.kernel) * scale, _float32(query.bias) * scale),
                (key.kernel, key.bias),
                (value.kernel, value.bias),
            ],
            hidden,
            dtype,
        ),
        attention_output=_plain(attention.output_dense, heads * head_width, dtype),
        attention_norm=_norm(layer._self_attention_layer_norm),
        intermediate=_plain(layer._feedforward_intermediate_dense, hidden, dtype),
        output=_plain(layer._feedforward_output_dense, int(layer.intermediate_dim), dtype),
        output_norm=_norm(layer._feedforward_layer_norm),
    )


def _plain(layer: keras.layers.Layer, width: int, dtype: str) -> Dense:
    return _dense([(layer.kernel, layer.bias)], width, dtype)


def _dense(parts: Sequence[tuple[Any, Any]], width: int, dtype: str) -> Dense:
    """Linear maps of one input of `width` side by side, whatever axes their weights have."""
    kernels = [ops.reshape(_float32(kernel), (width, -1)) for kernel, _ in parts]
    biases = [ops.reshape(_float32(bias), (-1,)) for _, bias in parts]
    return Dense(
        ops.cast(ops.concatenate(kernels, axis=1), dtype), ops.cast(ops.concatenate(biases), dtype)
    )


def _norm(layer: keras.layers.LayerNormalization) -> Norm:
    return Norm(_float32(layer.gamma), _float32(layer.beta))


def _float32(weight: Any) -> Any:
    return ops.cast(weight, "float32")
