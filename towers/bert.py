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


class LowRank(NamedTuple):
    """What is added to a kernel, ``down @ up``: ``[in, rank]`` and ``[rank, out]``."""

    down: Any
    up: Any


class Dense(NamedTuple):
    """A linear map: kernel ``[in, out]``, bias ``[out]``, and a low-rank update where it has one.

    What a layer may have or not is an empty tuple where it has not: a nest without leaves.
    """

    kernel: Any
    bias: Any
    update: LowRank | tuple[()] = ()


class Norm(NamedTuple):
    """Scale and shift of a layer norm, ``[hidden]`` each."""

    gamma: Any
    beta: Any


class Adapter(NamedTuple):
    """A bottleneck with a residual around it: ``x + up(gelu(down(x)))``."""

    down: Dense
    up: Dense


class Prefix(NamedTuple):
    """Keys and values that every token attends to beside the text, and how much they count.

    Attributes:
        keys: ``[heads, length, width of a head]``.
        values: likewise.
        gate: ``[heads, 1, 1]``, factor of what attention to the prefix finds.
    """

    keys: Any
    values: Any
    gate: Any


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
        attention_adapter: on what attention adds to the residual stream, if any.
        output_adapter: on what the feed-forward part adds, if any.
        prefix: of attention, if any.
    """

    attention_input: Dense
    attention_output: Dense
    attention_norm: Norm
    intermediate: Dense
    output: Dense
    output_norm: Norm
    attention_adapter: Adapter | tuple[()] = ()
    output_adapter: Adapter | tuple[()] = ()
    prefix: Prefix | tuple[()] = ()


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


def bert_weights(backbone: keras.Model) -> BertWeights:
    """Reads a backbone's weights, in float32, as tensors that gradients flow through.

    Gradients end at weights that are not trainable, so that nothing is computed for them.

    Args:
        backbone: a `keras_hub.models.BertBackbone`.
    """
    segment = _float32(backbone.segment_embedding.embeddings)[0]
    return BertWeights(
        tokens=_float32(backbone.token_embedding.embeddings),
        positions=_float32(backbone.position_embedding.position_embeddings) + segment,
        norm=_norm(backbone.embeddings_layer_norm),
        layers=tuple(_layer(layer) for layer in backbone.transformer_layers),
    )


def dense_layers(layer: keras.layers.Layer) -> dict[str, tuple[keras.layers.Layer, int]]:
    """The linear maps of a transformer layer of a backbone, each with the width of its input.

    Returns:
        ``query``, ``key``, ``value``, ``attention_output``, ``intermediate`` and ``output``.
    """
    attention = layer._self_attention_layer
    hidden, heads, head_width = attention.query_dense.kernel.shape
    return {
        "query": (attention.query_dense, hidden),
        "key": (attention.key_dense, hidden),
        "value": (attention.value_dense, hidden),
        "attention_output": (attention.output_dense, heads * head_width),
        "intermediate": (layer._feedforward_intermediate_dense, hidden),
        "output": (layer._feedforward_output_dense, int(layer.intermediate_dim)),
    }


def merged(weights: BertWeights) -> BertWeights:
    """Weights of the same function with low-rank updates added to their kernels."""
    return weights._replace(
        layers=tuple(
            LayerWeights._make(_merged(part) if isinstance(part, Dense) else part for part in layer)
            for layer in weights.layers
        )
    )


def compute_in(weights: BertWeights, dtype: str) -> BertWeights:
    """Weights with another dtype of kernels and biases, and thereby of the matrix products.

    Embeddings and norms stay as they are.
    """
    return weights._replace(layers=tuple(_cast(layer, dtype) for layer in weights.layers))


def sequence_output(
    weights: BertWeights,
    token_ids: Any,
    padding_mask: Any,
    *,
    num_heads: int,
    dropout: Callable[[Any], Any] = lambda x: x,
    perturbation: Any = None,
) -> Any:
    """Contextual token vectors (Devlin et al. 2019; attention: Vaswani et al. 2017).

    Args:
        weights: see `bert_weights`.
        token_ids: int ``[N, T]``.
        padding_mask: int or bool ``[N, T]``, 1 for tokens.
        num_heads: attention heads.
        dropout: applied where BERT drops out; the identity for inference.
        perturbation: float32 ``[N, T, hidden]``, added to the normalised embeddings; nothing if
            None.

    Returns:
        float32 ``[N, T, hidden]``.
    """
    x = embedded(weights, token_ids, dropout=dropout, perturbation=perturbation)
    return through_layers(weights.layers, x, padding_mask, num_heads=num_heads, dropout=dropout)


def embedded(
    weights: BertWeights,
    token_ids: Any,
    *,
    dropout: Callable[[Any], Any] = lambda x: x,
    perturbation: Any = None,
) -> Any:
    """What the lowest layer reads, float32 ``[N, T, hidden]``; see `sequence_output`."""
    width = ops.shape(token_ids)[1]
    x = ops.take(weights.tokens, token_ids, axis=0) + weights.positions[:width]
    x = _normalise(x, weights.norm)
    if perturbation is not None:
        x = x + perturbation
    return dropout(x)


def through_layers(
    layers: Sequence[LayerWeights],
    states: Any,
    padding_mask: Any,
    *,
    num_heads: int,
    dropout: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """What some layers, one upon the other, make of token vectors.

    Args:
        layers: lowest first; none changes nothing.
        states: float32 ``[N, T, hidden]``, what the lowest of them reads.
        padding_mask: int or bool ``[N, T]``, 1 for tokens.
        num_heads: attention heads.
        dropout: applied where BERT drops out.

    Returns:
        float32 ``[N, T, hidden]``.
    """
    if not layers:
        return states
    rows, width = ops.shape(padding_mask)[0], ops.shape(padding_mask)[1]
    hidden = states.shape[-1]
    dtype = keras.backend.standardize_dtype(layers[0].output.kernel.dtype)
    padding = (1.0 - ops.cast(padding_mask, dtype)) * _MASKED
    padding = ops.reshape(padding, (rows, 1, 1, width))
    x = ops.reshape(states, (-1, hidden))  # [N * T, hidden]

    for layer in layers:
        heads = ops.reshape(
            _linear(x, layer.attention_input), (rows, width, 3, num_heads, hidden // num_heads)
        )
        heads = ops.transpose(heads, (2, 0, 3, 1, 4))  # [3, N, heads, T, width of a head]
        query, key, value = heads[0], heads[1], heads[2]
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) + padding  # [N, heads, T, T]
        context = ops.matmul(dropout(ops.softmax(scores)), value)  # [N, heads, T, width of a head]
        if layer.prefix:
            context = context + _attend_to_prefix(query, layer.prefix)
        context = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (-1, hidden))
        attention = dropout(ops.cast(_linear(context, layer.attention_output), "float32"))
        if layer.attention_adapter:
            attention = attention + _bottleneck(attention, layer.attention_adapter)
        x = _normalise(x + attention, layer.attention_norm)

        # Approximate GELU, as keras-hub has it: from the exact one no embedding is further than a
        # cosine of .99999.
        wide = ops.gelu(_linear(x, layer.intermediate), approximate=True)
        forward = dropout(ops.cast(_linear(wide, layer.output), "float32"))
        if layer.output_adapter:
            forward = forward + _bottleneck(forward, layer.output_adapter)
        x = _normalise(x + forward, layer.output_norm)
    return ops.reshape(x, (rows, width, hidden))


def _linear(x: Any, dense: Dense) -> Any:
    x = ops.cast(x, dense.kernel.dtype)
    product = ops.matmul(x, dense.kernel)
    if dense.update:
        product = product + ops.matmul(ops.matmul(x, dense.update.down), dense.update.up)
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


def _bottleneck(x: Any, adapter: Adapter) -> Any:
    wide = ops.gelu(_linear(x, adapter.down), approximate=True)
    return ops.cast(_linear(wide, adapter.up), "float32")


def _attend_to_prefix(query: Any, prefix: Prefix) -> Any:
    """Attention of ``[N, heads, T, width of a head]`` to the prefix alone, times its gate."""
    scores = ops.matmul(query, ops.swapaxes(prefix.keys, -1, -2))  # [N, heads, T, length]
    return prefix.gate * ops.matmul(ops.softmax(scores), prefix.values)


def _merged(dense: Dense) -> Dense:
    if not dense.update:
        return dense
    return Dense(dense.kernel + ops.matmul(dense.update.down, dense.update.up), dense.bias)


def _cast(part: Any, dtype: str) -> Any:
    """A nest with all but its norms in another dtype."""
    if isinstance(part, Norm):
        return part
    if not isinstance(part, tuple):
        return ops.cast(part, dtype)
    make = getattr(type(part), "_make", tuple)
    return make(_cast(inner, dtype) for inner in part)


def _layer(layer: keras.layers.Layer) -> LayerWeights:
    dense = {name: _plain(*place) for name, place in dense_layers(layer).items()}
    query, key, value = dense["query"], dense["key"], dense["value"]
    scale = layer._self_attention_layer.query_dense.kernel.shape[-1] ** -0.5
    return LayerWeights(
        attention_input=Dense(
            ops.concatenate([query.kernel * scale, key.kernel, value.kernel], axis=1),
            ops.concatenate([query.bias * scale, key.bias, value.bias]),
        ),
        attention_output=dense["attention_output"],
        attention_norm=_norm(layer._self_attention_layer_norm),
        intermediate=dense["intermediate"],
        output=dense["output"],
        output_norm=_norm(layer._feedforward_layer_norm),
    )


def _plain(layer: keras.layers.Layer, width: int) -> Dense:
    """A linear map whose input is `width` wide, whatever axes its weights have."""
    return Dense(
        ops.reshape(_float32(layer.kernel), (width, -1)), ops.reshape(_float32(layer.bias), (-1,))
    )


def _norm(layer: keras.layers.LayerNormalization) -> Norm:
    return Norm(_float32(layer.gamma), _float32(layer.beta))


def _float32(weight: Any) -> Any:
    tensor = ops.cast(weight, "float32")
    # A kernel of a layer with Keras's own LoRA is a tensor already.
    return tensor if getattr(weight, "trainable", True) else ops.stop_gradient(tensor)
