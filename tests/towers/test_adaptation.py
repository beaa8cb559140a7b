"""Methods of adaptation: counts by formula, a start at zero-shot, NumPy from the papers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from towers.adaptation import (
    ALL_KERNELS,
    AdaLoRA,
    Adaptation,
    Adapters,
    BitFit,
    LoRA,
    PrefixTuning,
    TopLayers,
)
from towers.errors import InputError
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.text_graph import TextGraph
from towers.two_tower import TwoTower

Make = Callable[..., Retriever]

# The tiny encoder: layers, width, inner width, heads.
L, H, M, HEADS = 2, 32, 64, 2

METHODS: dict[str, Callable[[], Adaptation]] = {
    "bitfit": BitFit,
    "top": lambda: TopLayers(1),
    "lora": lambda: LoRA(3, alpha=6.0),
    "lora-all": lambda: LoRA(4, kernels=ALL_KERNELS),
    "adalora": lambda: AdaLoRA(4, alpha=2.0),
    "adapters": lambda: Adapters(5),
    "prefix": lambda: PrefixTuning(6),
}
PARAMETERS = {
    "bitfit": L * (7 * H + M) + H,
    "top": 1 * (4 * H * H + 2 * H * M + 9 * H + M),
    "lora": L * 3 * 2 * (H + H),
    "lora-all": L * 4 * (4 * (H + H) + 2 * (H + M)),
    "adalora": L * 2 * (4 * (H + H) + 4),
    "adapters": L * (2 * (2 * H * 5 + H + 5) + 4 * H),
    "prefix": L * (2 * H * 6 + HEADS),
}


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(make_tiny_retriever: Make) -> TextEncoder:
    return make_tiny_retriever(seed=3, layers=2).model.query_tower


def batch(lengths: tuple[int, ...] = (9, 4, 2)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    return {
        "token_ids": rng.integers(5, 90, mask.shape).astype(np.int32) * mask,
        "padding_mask": mask,
    }


def shaken(encoder: TextEncoder, seed: int = 0) -> TextEncoder:
    """The encoder with all that is trained moved at random, as if it had been."""
    rng = np.random.default_rng(seed)
    for weight in encoder.trainable_weights:
        weight.assign(weight.numpy() + rng.normal(scale=0.3, size=weight.shape))
    return encoder


def test_number_of_weights_and_untrained_function(name: str, plain: TextEncoder) -> None:
    encoder = plain.with_adaptation(METHODS[name]())
    assert sum(math.prod(w.shape) for w in encoder.trainable_weights) == PARAMETERS[name]
    for training in (False, True):
        np.testing.assert_array_equal(encoder(batch(), training=training), plain(batch()))


def test_gradients_reach_what_is_trained_and_nothing_else(name: str, plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS[name]()))
    target = np.random.default_rng(5).normal(size=(3, H)).astype(np.float32)
    with tf.GradientTape() as tape:
        for weight in encoder.weights:
            tape.watch(weight.value)
        loss = tf.reduce_sum(encoder(batch(), training=True) * target)
    gradients = tape.gradient(loss, [weight.value for weight in encoder.weights])
    trained = {id(weight) for weight in encoder.trainable_weights}
    for weight, gradient in zip(encoder.weights, gradients, strict=True):
        if id(weight) not in trained:
            assert gradient is None, weight.path
        elif "/key/bias" not in weight.path:  # the softmax takes no notice of it
            assert np.abs(gradient).max() > 1e-6, weight.path


def test_merged_equals_unmerged(name: str, plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS[name]()))
    merged = encoder.without_adaptation()
    unmerged = encoder(batch(), training=True).numpy()
    assert np.abs(unmerged - plain(batch())).max() > 0.01
    np.testing.assert_allclose(encoder(batch()), unmerged, atol=1e-5)
    np.testing.assert_allclose(merged(batch()), unmerged, atol=1e-5)
    if name in ("adapters", "prefix"):
        assert merged is encoder
    else:
        assert merged.adaptation is None
        assert [w.shape for w in merged.weights] == [w.shape for w in plain.weights]
        assert len(merged.trainable_weights) == len(plain.trainable_weights)


def test_save_and_load(
    name: str, plain: TextEncoder, tmp_path: Path, make_tiny_retriever: Make
) -> None:
    encoder = shaken(plain.with_adaptation(METHODS[name]()))
    assert json.loads(json.dumps(encoder.get_config())) == encoder.get_config()
    base = make_tiny_retriever(layers=2)
    retriever = Retriever(TwoTower(encoder), base.tokenizer, base.text)
    retriever.save(tmp_path)
    again = Retriever.load(tmp_path)
    assert again.fingerprint() == retriever.fingerprint() != base.fingerprint()
    tower = again.model.query_tower
    assert type(tower.adaptation) is type(encoder.adaptation)
    assert tower.adaptation.get_config() == encoder.adaptation.get_config()
    paths = [weight.shape for weight in encoder.trainable_weights]
    assert [weight.shape for weight in tower.trainable_weights] == paths
    np.testing.assert_array_equal(tower(batch()), encoder(batch()))
    texts = ["red mug", "garden hose"]
    np.testing.assert_array_equal(again.encode_queries(texts), retriever.encode_queries(texts))


@pytest.mark.parametrize("method", ["adapters", "prefix"])
def test_export_of_what_cannot_be_merged(
    method: str, plain: TextEncoder, make_tiny_retriever: Make
) -> None:
    base = make_tiny_retriever(layers=2)
    encoder = shaken(plain.with_adaptation(METHODS[method]()))
    retriever = Retriever(TwoTower(encoder), base.tokenizer, base.text)
    texts = ["red mug", "garden hose, 20 m"]
    exported = TextGraph(retriever).embed_queries(tf.constant(texts))
    np.testing.assert_allclose(exported, retriever.encode_queries(texts), atol=1e-5)


def test_scale_zero_is_the_encoder_without_its_own_weights(name: str, plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS[name]()))
    encoder.adaptation.scale(0.0)
    encoder.backbone.set_weights(plain.backbone.get_weights())
    np.testing.assert_array_equal(encoder(batch()), plain(batch()))


def test_half_precision(name: str, plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS[name]()))
    mixed = encoder.with_dtype("mixed_bfloat16")
    vectors = mixed(batch(), training=True).numpy()
    assert ((vectors * encoder(batch()).numpy()).sum(axis=1) > 0.99).all()
    assert not np.array_equal(vectors, encoder(batch()))


def test_more_top_layers_than_there_are(plain: TextEncoder) -> None:
    with pytest.raises(InputError, match="3 top layers to train; the encoder has 2"):
        plain.with_adaptation(TopLayers(3))


def test_unknown_kernels() -> None:
    with pytest.raises(ValueError, match="kernels must be some of query, key"):
        LoRA(kernels=["qkv"])


def test_a_projection_is_trained_too(make_tiny_retriever: Make) -> None:
    encoder = make_tiny_retriever(projection_dim=8).model.query_tower
    adapted = encoder.with_adaptation(LoRA(3))
    kernel = adapted.projection.kernel
    assert [w for w in adapted.trainable_weights if w is kernel]
    np.testing.assert_array_equal(kernel, encoder.projection.kernel)


def test_map_of_the_vectors(plain: TextEncoder, make_tiny_retriever: Make) -> None:
    rng = np.random.default_rng(0)
    narrow = make_tiny_retriever(projection_dim=8).model.query_tower
    for encoder in (plain, narrow):
        kernel = rng.normal(size=(encoder.embedding_dim, 5)).astype(np.float32)
        expected = encoder(batch()).numpy() @ kernel
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.with_map(kernel)(batch()), expected, atol=1e-5)


# The papers' formulas


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x: np.ndarray, layer: object) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * layer.gamma.numpy() + layer.beta.numpy()


def reference(
    encoder: TextEncoder,
    ids: np.ndarray,
    kernel: Callable[[int, str, np.ndarray], np.ndarray] = lambda layer, name, kernel: kernel,
    inside: Callable[[int, int, np.ndarray], np.ndarray] = lambda layer, place, x: x,
    beside: Callable[[int, int, np.ndarray], np.ndarray | float] = lambda layer, head, q: 0.0,
) -> np.ndarray:
    """One text of ids ``[T]`` through BERT, in NumPy, changed in three kinds of places.

    Args:
        encoder: whose backbone's weights are used.
        ids: token ids.
        kernel: changes a kernel ``[in, out]``.
        inside: changes what attention (place 0) and feed-forward (1) add to the residual.
        beside: what is added to a head's output, given its queries ``[T, width]``.
    """
    backbone = encoder.backbone
    x = backbone.token_embedding.embeddings.numpy()[ids]
    x = x + backbone.position_embedding.position_embeddings.numpy()[: len(ids)]
    x = norm(x + backbone.segment_embedding.embeddings.numpy()[0], backbone.embeddings_layer_norm)
    for number, layer in enumerate(backbone.transformer_layers):
        attention = layer._self_attention_layer

        def linear(x: np.ndarray, name: str, dense: object, number: int = number) -> np.ndarray:
            matrix = dense.kernel.numpy().reshape(x.shape[-1], -1)
            return x @ kernel(number, name, matrix) + dense.bias.numpy().reshape(-1)

        query, key, value = (
            linear(x, name, getattr(attention, f"{name}_dense")).reshape(len(ids), HEADS, -1)
            for name in ("query", "key", "value")
        )
        context = []
        for head in range(HEADS):
            q, k, v = query[:, head], key[:, head], value[:, head]
            found = softmax(q @ k.T / math.sqrt(q.shape[-1])) @ v
            context.append(found + beside(number, head, q))
        out = linear(np.concatenate(context, axis=1), "attention_output", attention.output_dense)
        x = norm(x + inside(number, 0, out), layer._self_attention_layer_norm)
        wide = gelu(linear(x, "intermediate", layer._feedforward_intermediate_dense))
        out = linear(wide, "output", layer._feedforward_output_dense)
        x = norm(x + inside(number, 1, out), layer._feedforward_layer_norm)
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)


def assert_computes(encoder: TextEncoder, **changes: Callable) -> None:
    inputs = batch((9,))
    expected = reference(encoder, inputs["token_ids"][0], **changes)
    assert np.abs(expected - reference(encoder, inputs["token_ids"][0])).max() > 0.01
    np.testing.assert_allclose(encoder(inputs, training=True)[0], expected, atol=2e-5)


@pytest.mark.parametrize("method", ["lora", "lora-all"])
def test_lora_by_the_paper(method: str, plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS[method]()))
    lora = encoder.adaptation
    factor = {"lora": 6 / 3, "lora-all": 16 / 4}[method]

    def kernel(layer: int, name: str, w: np.ndarray) -> np.ndarray:
        if name not in lora.a:
            assert method == "lora"
            assert name not in ("query", "value")
            return w
        return w + factor * lora.a[name].numpy()[layer] @ lora.b[name].numpy()[layer]

    assert_computes(encoder, kernel=kernel)


def test_adalora_by_the_paper(plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS["adalora"]()))
    adalora = encoder.adaptation

    def kernel(layer: int, name: str, w: np.ndarray) -> np.ndarray:
        if name not in ("query", "value"):
            return w
        left, right = adalora.left[name].numpy()[layer], adalora.right[name].numpy()[layer]
        return (
            w + 2.0 / 4 * math.sqrt(H) * left @ np.diag(adalora.values[name].numpy()[layer]) @ right
        )

    assert_computes(encoder, kernel=kernel)


def test_adalora_stays_orthonormal_by_its_penalty(plain: TextEncoder) -> None:
    encoder = plain.with_adaptation(METHODS["adalora"]())
    assert len(encoder.losses) == 4  # two matrices of each of two kernels
    np.testing.assert_allclose(sum(encoder.losses), 0.0, atol=1e-8)
    shaken(encoder)
    expected = 0.0
    for left, _, right in encoder.adaptation.triplets():
        for p, q in zip(left.numpy(), right.numpy(), strict=True):
            expected += 0.1 * (
                ((p.T @ p - np.eye(4)) ** 2).sum() + ((q @ q.T - np.eye(4)) ** 2).sum()
            )
    np.testing.assert_allclose(sum(encoder.losses), expected, rtol=1e-5)


def test_adapters_by_the_paper(plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS["adapters"]()))
    adapters = encoder.adaptation

    def inside(layer: int, place: int, x: np.ndarray) -> np.ndarray:
        at = layer, place
        narrow = gelu(x @ adapters.down_kernel.numpy()[at] + adapters.down_bias.numpy()[at])
        return x + narrow @ adapters.up_kernel.numpy()[at] + adapters.up_bias.numpy()[at]

    assert_computes(encoder, inside=inside)


def test_prefix_by_the_paper(plain: TextEncoder) -> None:
    encoder = shaken(plain.with_adaptation(METHODS["prefix"]()))
    prefix = encoder.adaptation

    def beside(layer: int, head: int, query: np.ndarray) -> np.ndarray:
        keys, values = prefix.keys.numpy()[layer, head], prefix.values.numpy()[layer, head]
        weights = softmax(query @ keys.T / math.sqrt(query.shape[-1]))
        return prefix.gate.numpy()[layer, head] * (weights @ values)

    assert_computes(encoder, beside=beside)
