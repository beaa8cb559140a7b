"""The text encoder against NumPy: pooling by hand, and BERT written from the papers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from towers.checkpoint import resolve_preset
from towers.pooling import Pooling
from towers.text_encoder import TextEncoder
from towers.tokenizer import Tokenizer

TOKENS = np.array(
    [[[1, -8], [3, 2], [90, 90]], [[-5, -4], [99, 99], [99, 99]]], np.float32
)  # [2, 3, 2]
MASK = np.array([[1, 1, 0], [1, 0, 0]], np.int32)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [[2, -3], [-5, -4]]),
        ("cls", [[1, -8], [-5, -4]]),
        ("max", [[3, 2], [-5, -4]]),
    ],
)
def test_pooling_by_hand(mode: str, expected: list[list[float]]) -> None:
    np.testing.assert_array_equal(Pooling(mode)(TOKENS, MASK), expected)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_pooling_of_nothing_is_finite(mode: str) -> None:
    pooled = Pooling(mode)(TOKENS, np.zeros_like(MASK))
    assert np.isfinite(pooled).all()


def test_pooling_of_half_precision_is_done_in_float32() -> None:
    # 300 ones: a bfloat16 sum gets stuck at 256.
    pooled = Pooling("mean", dtype="float32")(
        tf.ones([1, 300, 1], tf.bfloat16), np.ones([1, 300], np.int32)
    )
    assert pooled.dtype == tf.float32
    np.testing.assert_array_equal(pooled, [[1.0]])


def test_unknown_pooling() -> None:
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, max; got 'first'"):
        Pooling("first")


def batch(lengths: list[int], width: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    return {"token_ids": rng.integers(1, 50, mask.shape).astype(np.int32) * mask} | {
        "padding_mask": mask
    }


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_output_is_the_pooled_backbone_normalised(
    pooling: str, make_tiny_encoder: Callable[..., TextEncoder]
) -> None:
    encoder = make_tiny_encoder(pooling=pooling)
    inputs = batch([7, 3, 1], 7)
    tokens = encoder.backbone(
        {**inputs, "segment_ids": np.zeros_like(inputs["token_ids"])}, training=False
    )["sequence_output"].numpy()
    rows = []
    for vectors, mask in zip(tokens, inputs["padding_mask"], strict=True):
        real = vectors[mask == 1]
        row = {"mean": real.mean(0), "cls": real[0], "max": real.max(0)}[pooling]
        rows.append(row / math.sqrt((row**2).sum()))
    np.testing.assert_allclose(encoder(inputs), rows, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_padding_changes_nothing(
    pooling: str, make_tiny_encoder: Callable[..., TextEncoder]
) -> None:
    encoder = make_tiny_encoder(pooling=pooling)
    inputs = batch([9, 4, 2], 24)
    together = encoder(inputs).numpy()
    for row, length in enumerate([9, 4, 2]):
        alone = {name: values[row : row + 1, :length] for name, values in inputs.items()}
        np.testing.assert_allclose(encoder(alone)[0], together[row], atol=1e-5)


def test_rows_have_length_one(make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    vectors = make_tiny_encoder(projection_dim=5)(batch([9, 4, 2, 24], 24)).numpy()
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_projection_of_equal_width_starts_as_identity(
    make_tiny_encoder: Callable[..., TextEncoder],
) -> None:
    plain, projected = make_tiny_encoder(), make_tiny_encoder(projection_dim=32)
    projected.backbone.set_weights(plain.backbone.get_weights())
    inputs = batch([9, 4], 9)
    np.testing.assert_allclose(projected(inputs), plain(inputs), atol=1e-6)


def test_projection_by_hand(make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    plain, projected = make_tiny_encoder(), make_tiny_encoder(projection_dim=3)
    projected.backbone.set_weights(plain.backbone.get_weights())
    kernel = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    projected.projection.kernel.assign(kernel)
    inputs = batch([9, 4], 9)
    expected = plain(inputs).numpy() @ kernel  # the length of a row cancels out
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(projected(inputs), expected, atol=1e-5)
    assert projected.embedding_dim == 3
    assert plain.embedding_dim == 32


def test_dropout_only_in_training(make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    encoder, inputs = make_tiny_encoder(dropout=0.1), batch([9, 4], 9)
    np.testing.assert_array_equal(encoder(inputs), encoder(inputs, training=False))
    assert np.abs(encoder(inputs, training=True) - encoder(inputs)).max() > 1e-3


def test_save_and_load(tmp_path: Path, make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    encoder = make_tiny_encoder(pooling="max", projection_dim=4)
    encoder.save(tmp_path / "encoder.keras")
    again = keras.saving.load_model(tmp_path / "encoder.keras")
    assert isinstance(again, TextEncoder)
    assert again.get_config() == encoder.get_config()
    np.testing.assert_array_equal(again(batch([9, 4], 9)), encoder(batch([9, 4], 9)))


def test_config_is_json(make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    encoder = make_tiny_encoder(pooling="cls")
    again = TextEncoder.from_config(json.loads(json.dumps(encoder.get_config())))
    assert again.pooling.mode == "cls"
    assert [w.shape for w in again.weights] == [w.shape for w in encoder.weights]


def test_mixed_precision_is_near_float32(make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    encoder, inputs = make_tiny_encoder(), batch([9, 4, 24], 24)
    mixed = encoder.with_dtype("mixed_bfloat16")
    assert mixed.backbone.compute_dtype == mixed.compute_dtype == "bfloat16"
    vectors = mixed(inputs).numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    cosine = (vectors * encoder(inputs).numpy()).sum(axis=1)
    assert (cosine > 0.999).all()
    assert not np.array_equal(vectors, encoder(inputs))  # it did compute in bfloat16


def test_with_dtype_keeps_weights(make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    encoder = make_tiny_encoder(projection_dim=4)
    assert encoder.with_dtype("float32") is encoder
    back = encoder.with_dtype("mixed_bfloat16").with_dtype("float32")
    np.testing.assert_array_equal(back(batch([5], 5)), encoder(batch([5], 5)))


# The checkpoint's own mathematics

SENTENCES = [
    "kettle",
    "Electric kettle, 1.7 litre, brushed steel, switches off by itself",
    "something to keep coffee hot on my desk",
    "Café crème brûlée torch",
    "naïve façade ½ in. × 20 cm",
    "漢字 电热水壶",
    "👩‍👩‍👧 mug 🔥",
    "",
    "[SEP] [MASK]",
    "1/4 in. x 50 ft. polypropylene rope",
    "red red red red red",
    "The quick brown fox jumps over the lazy dog.",
    "usb-c charger 65w gan 2 port",
    "gift for a 5 year old who loves dinosaurs",
    "longer octopus",
    "spatchula for eggs",
    "wireless mouse silent click ergonomic vertical " * 3,
    "a",
    "!!!",
    "Refillable, with a safety lock. Boils water fast. Does not kink. Steel tines, ash handle.",
]


def reference_embedding(folder: Path, token_ids: list[int]) -> np.ndarray:
    """Mean-pooled BERT of one text in float64, no padding.

    Devlin et al. 2019 for the architecture, Vaswani et al. 2017 for attention, Hendrycks and Gimpel
    2016 for the exact GELU, Reimers and Gurevych 2019 for the pooling.
    """
    config = json.loads((folder / "config.json").read_text())
    raw = safetensors.numpy.load_file(folder / "model.safetensors")
    weights = {name.removeprefix("bert."): w.astype(np.float64) for name, w in raw.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1.0 + tf.math.erf(x / math.sqrt(2.0)).numpy())

    length, heads = len(token_ids), config["num_attention_heads"]
    x = weights["embeddings.word_embeddings.weight"][token_ids]
    x = x + weights["embeddings.position_embeddings.weight"][:length]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{name}")
            .reshape(length, heads, -1)
            .transpose(1, 0, 2)  # [heads, length, width]
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        context = (attention @ v).transpose(1, 0, 2).reshape(length, -1)
        x = norm(
            x + linear(context, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)


def test_pretrained_embeddings_equal_the_papers_mathematics() -> None:
    folder = Path(resolve_preset("all-MiniLM-L6-v2"))
    tokens = Tokenizer.from_preset()(tf.constant(SENTENCES), max_length=64)
    vectors = TextEncoder.from_preset()(tokens).numpy()
    mask = tokens["padding_mask"].numpy().astype(bool)
    expected = [
        reference_embedding(folder, ids[real].tolist())
        for ids, real in zip(tokens["token_ids"].numpy(), mask, strict=True)
    ]
    cosine = (vectors * np.array(expected)).sum(axis=1)
    assert cosine.min() >= 0.9999
