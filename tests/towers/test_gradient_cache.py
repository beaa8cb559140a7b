"""Training in chunks, adversarial steps, R-Drop: against direct gradients and differences."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from towers.adaptation import LoRA
from towers.encoding import padded, token_sequences
from towers.gradient_cache import encode_in_chunks
from towers.gradients import gradient
from towers.losses import InBatchSoftmax, ScoreDistillation
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.two_tower import TwoTower

MakeEncoder = Callable[..., TextEncoder]
Make = Callable[..., Retriever]

QUERIES = ["boil water", "filter coffee", "hot coffee cup", "red", "rake"]


@pytest.fixture(scope="module")
def x(tiny_retriever: Retriever, tiny_catalog: dict[str, list[str]]) -> dict[str, object]:
    def tokens(texts: list[str]) -> dict[str, np.ndarray]:
        return padded(token_sequences(tiny_retriever.tokenizer, texts, 32), 32, 0)

    titles = tiny_catalog["title"]
    rng = np.random.default_rng(0)
    cached = rng.normal(size=(4, 32)).astype(np.float32)
    return {
        "query": tokens(QUERIES),
        "item": tokens(titles[:5]),
        "negatives": tokens(titles[5:]),
        "cached": cached / np.linalg.norm(cached, axis=1, keepdims=True),
        "item_ids": np.arange(5),
        "negative_ids": np.arange(5, 8),
        "cached_ids": np.array([3, 20, 21, 22]),
    }


def training_step(model: TwoTower, x: dict, compiled: bool = True) -> Callable[[], tuple]:
    """Returns a function that gives loss and gradients of a training step, as `fit` takes them."""

    @tf.function
    def step() -> tuple:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=x, y_pred=model(x, training=True), training=True)
        gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
        return loss, [tf.convert_to_tensor(one) for one in gradients]

    def values() -> tuple[float, list[np.ndarray]]:
        loss, gradients = step() if compiled else step.python_function()
        return float(loss), [one.numpy() for one in gradients]

    return values


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], atol: float = 1e-5) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)


# Chunks


@pytest.mark.parametrize("chunks", [3, 7])
def test_chunks_change_neither_loss_nor_gradient(
    chunks: int, make_tiny_encoder: MakeEncoder, x: dict
) -> None:
    tower = make_tiny_encoder()
    loss, gradients = training_step(TwoTower(tower), x, compiled=False)()
    chunked_loss, chunked = training_step(TwoTower(tower, chunks=chunks), x)()
    assert chunked_loss == pytest.approx(loss, abs=1e-5)
    assert_close(chunked, gradients)
    assert max(np.abs(one).max() for one in gradients) > 1e-2


def test_chunks_of_low_rank_updates_and_outside_of_a_graph(
    make_tiny_encoder: MakeEncoder, x: dict
) -> None:
    tower = make_tiny_encoder().with_adaptation(LoRA(2))
    rng = np.random.default_rng(0)
    for weight in tower.trainable_weights:
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    loss, gradients = training_step(TwoTower(tower), x, compiled=False)()
    chunked_loss, chunked = training_step(TwoTower(tower, chunks=2), x, compiled=False)()
    assert chunked_loss == pytest.approx(loss, abs=1e-5)
    assert_close(chunked, gradients)


def test_both_passes_draw_the_same_masks(make_tiny_encoder: MakeEncoder, x: dict) -> None:
    # Were the masks others on the way back, the gradient would not be that of the loss: a small
    # step along it, with the seeds put back, shows.
    tower = make_tiny_encoder(dropout=0.3)
    model = TwoTower(tower, chunks=2, temperature=0.5)
    step_of_fit = training_step(model, x)
    state = tower.seed_generator.state
    start = state.numpy()

    def at_start() -> tuple[float, list]:
        state.assign(start)
        return step_of_fit()

    loss, gradients = at_start()
    kernel = tower.backbone.transformer_layers[0]._feedforward_intermediate_dense.kernel
    place = [id(w) for w in model.trainable_weights].index(id(kernel))
    direction = gradients[place] / np.linalg.norm(gradients[place])
    before, step = kernel.numpy(), 1e-2
    values = []
    for sign in (1, -1):
        kernel.assign(before + sign * step * direction)
        values.append(at_start()[0])
    kernel.assign(before)
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(np.linalg.norm(gradients[place]), rel=0.02)
    # The masks differ from chunk to chunk and from step to step.
    texts = {name: np.repeat(part[:1], 4, axis=0) for name, part in x["query"].items()}
    vectors = encode_in_chunks(tower, texts, 2, training=True).numpy()
    assert len(np.unique(vectors.round(5), axis=0)) == 4
    assert step_of_fit()[0] != pytest.approx(loss, abs=1e-6)


# What is added to the loss


def test_cached_vectors_are_candidates_without_a_gradient(
    make_tiny_encoder: MakeEncoder, x: dict
) -> None:
    model = TwoTower(make_tiny_encoder(), loss=InBatchSoftmax(), temperature=0.2)
    vectors = {name: np.asarray(part, np.float64) for name, part in model(x).items()}
    assert vectors["item"].shape == (12, 32)
    np.testing.assert_array_equal(vectors["item"][8:].astype(np.float32), x["cached"])
    logits = vectors["query"] @ vectors["item"].T / 0.2
    logits[3, 8] = -np.inf  # the third item, once more
    expected = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])
    found = model.compute_loss(x=x, y_pred=model(x), training=False)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="'item_ids' without 'cached_ids'"):
        model.compute_loss(x={k: v for k, v in x.items() if k != "cached_ids"}, y_pred=model(x))


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_adversarial_step_goes_uphill(
    chunks: int, make_tiny_encoder: MakeEncoder, x: dict
) -> None:
    tower = make_tiny_encoder()
    plain = TwoTower(tower, temperature=0.5)
    model = TwoTower(tower, temperature=0.5, fgm=0.05, chunks=chunks)
    steps, vectors = model._adversary(x, None)
    for name in ("query", "item"):
        np.testing.assert_allclose(vectors[name], plain(x)[name], atol=1e-5)
    assert set(steps) == {"query", "item", "negatives"}
    for step in steps.values():
        lengths = np.sqrt((np.asarray(step) ** 2).sum(axis=(1, 2)))
        np.testing.assert_allclose(lengths, np.full(len(lengths), 0.05), rtol=1e-4)

    def loss_at(share: float) -> float:
        moved = {name: share * step for name, step in steps.items()}
        return float(plain._loss(x, model._encode(x, True, moved), None))

    # Nothing of the same length rises faster, to first order; so not a random step either.
    here, there = loss_at(0.0), loss_at(1.0)
    rng = np.random.default_rng(0)
    others = []
    for _ in range(5):
        moves = {name: rng.normal(size=step.shape) for name, step in steps.items()}
        for name, move in moves.items():
            length = np.sqrt((move**2).sum(axis=(1, 2), keepdims=True))
            moves[name] = (0.05 * move / length).astype(np.float32)
        others.append(float(plain._loss(x, model._encode(x, True, moves), None)))
    assert there > max(others)
    assert there > here
    assert float(model.compute_loss(x=x, y_pred=model(x))) == pytest.approx(here + there, rel=1e-5)
    # Outside of training there is none.
    assert float(model.compute_loss(x=x, y_pred=model(x), training=False)) == pytest.approx(here)


def test_the_adversarial_gradient_takes_the_step_for_a_constant(
    make_tiny_encoder: MakeEncoder, x: dict
) -> None:
    tower = make_tiny_encoder()
    model = TwoTower(tower, temperature=0.5, fgm=0.1)
    steps, _ = model._adversary(x, None)
    with tf.GradientTape() as tape:
        loss = model._loss(x, model(x, training=True), None)
        loss = loss + model._loss(x, model._encode(x, True, steps), None)
    expected = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    found = training_step(model, x)()[1]
    assert_close(found, [tf.convert_to_tensor(one).numpy() for one in expected])


def test_r_drop_compares_two_passes(make_tiny_encoder: MakeEncoder, x: dict) -> None:
    tower = make_tiny_encoder(dropout=0.3)
    plain, model = TwoTower(tower), TwoTower(tower, r_drop=2.0)
    start = tower.seed_generator.state.numpy()
    one, two = plain(x, training=True), plain(x, training=True)
    tower.seed_generator.state.assign(start)
    found = float(model.compute_loss(x=x, y_pred=model(x, training=True)))

    def log_probability(vectors: dict) -> np.ndarray:
        logits = np.asarray(vectors["query"], np.float64) @ np.asarray(vectors["item"]).T / 0.05
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    p, q = log_probability(one), log_probability(two)
    divergence = ((np.exp(p) - np.exp(q)) * (p - q)).sum(axis=1).mean() / 2
    losses = [float(plain._loss(x, vectors, None)) for vectors in (one, two)]
    assert divergence > 0.01
    assert found == pytest.approx(np.mean(losses) + 2.0 * divergence, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 0}, "chunks must be 1 or more.*chunks=0"),
        ({"fgm": -1.0}, "fgm and r_drop 0 or more.*fgm=-1.0"),
        ({"r_drop": 1.0}, "r_drop needs dropout, and the towers have none"),
    ],
)
def test_wrong_settings(options: dict, message: str, make_tiny_encoder: MakeEncoder) -> None:
    with pytest.raises(ValueError, match=message):
        TwoTower(make_tiny_encoder(), **options)


def test_settings_are_kept(make_tiny_encoder: MakeEncoder) -> None:
    model = TwoTower(make_tiny_encoder(dropout=0.1), chunks=3, fgm=0.5, r_drop=1.5)
    for twin in (TwoTower.from_config(model.get_config()), model.with_dtype("mixed_bfloat16")):
        assert (twin.chunks, twin.fgm, twin.r_drop) == (3, 0.5, 1.5)


def test_gradient_of_a_nest() -> None:
    at = {"a": tf.constant([1.0, 2.0]), "b": tf.constant(3.0)}
    slopes, other = gradient(lambda n: (tf.reduce_sum(n["a"] ** 2) * n["b"], "other"), at)
    np.testing.assert_allclose(slopes["a"], [6.0, 12.0])
    assert (float(slopes["b"]), other) == (5.0, "other")


# Without TensorFlow

JAX_FIT = """
import sys

class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_text", "tf_keras"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, NoTensorFlow())
import keras, keras_hub, numpy as np
from towers import TextEncoder, TwoTower
from towers.losses import AdditiveMarginSoftmax, GradedSoftmax, ScoreDistillation

def make(dropout, loss, **options):
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32,
        max_sequence_length=8, dropout=dropout,
    )
    options["distillation"] = ScoreDistillation(0.1)
    return TwoTower(TextEncoder(backbone), loss=loss, **options)

rng = np.random.default_rng(0)
tokens = lambda: {
    "token_ids": rng.integers(1, 40, (16, 8)).astype("int32"),
    "padding_mask": np.ones((16, 8), "int32"),
}
ids = np.arange(16)
x = {
    "query": tokens(), "item": tokens(), "item_ids": ids, "positive_ids": ids[:, None],
    "positive_grades": 1 + ids[:, None] % 2, "cached": np.eye(16, dtype="float32"),
    "cached_ids": ids + 16, "teacher_scores": np.zeros((16, 32), "float32"),
}

def train(model, epochs):
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    return model.fit(x, batch_size=16, epochs=epochs, verbose=0).history["loss"]

whole, chunked = make(0.0, AdditiveMarginSoftmax(0.1)), make(0.0, GradedSoftmax(), chunks=3)
np.testing.assert_allclose(chunked(x)["item"], whole(x)["item"], atol=1e-5)
assert np.isfinite(whole.compute_loss(x=x, y_pred=whole(x)))
losses = train(make(0.1, GradedSoftmax(), fgm=0.1, r_drop=0.5, chunks=2), 10)
assert losses[-1] < 0.9 * losses[0], losses
assert "tensorflow" not in sys.modules
print("trained", losses[0], losses[-1])
"""


@pytest.mark.slow  # test_replicas.py has chunks under JAX, test_jax.py has training without it
def test_jax_trains_without_tensorflow() -> None:
    result = subprocess.run(
        [sys.executable, "-c", JAX_FIT],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("trained")


@pytest.mark.slow
def test_fit_with_all_of_it(make_tiny_encoder: MakeEncoder, x: dict) -> None:
    model = TwoTower(
        make_tiny_encoder(dropout=0.1),
        distillation=ScoreDistillation(0.1),
        chunks=2,
        fgm=0.1,
        r_drop=0.5,
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    batch = tf.data.Dataset.from_tensors({**x, "teacher_scores": np.zeros((5, 12), np.float32)})
    losses = model.fit(batch, epochs=6, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
