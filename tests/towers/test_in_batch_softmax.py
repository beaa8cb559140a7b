"""The loss against NumPy loops from its formula, TFRS, finite differences and properties."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from towers.losses import InBatchSoftmax, accidental_hits, in_batch_softmax

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TFRS touches tf.keras

TEMPERATURE = 0.2


def loss_by_loop(
    query: np.ndarray,
    candidates: np.ndarray,
    temperature: float = TEMPERATURE,
    positives: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
    log_probability: np.ndarray | None = None,
    symmetric: bool = False,
) -> np.ndarray:
    """The formula of the docstring, written out in Python floats (float64)."""
    b, c = len(query), len(candidates)
    w = np.eye(b, c) if positives is None else np.maximum(positives.astype(float), 0)
    ignored = np.zeros((b, c), bool) if ignored is None else ignored
    log_q = np.zeros(c) if log_probability is None else log_probability
    s = [
        [float(np.dot(query[i].astype(float), candidates[j].astype(float))) / temperature - log_q[j]
         for j in range(c)]
        for i in range(b)
    ]  # fmt: skip

    def one(own: list[float], weights: np.ndarray, skip: np.ndarray) -> float:
        negatives = [x for x, p, g in zip(own, weights, skip, strict=True) if p == 0 and not g]
        below = sum(math.exp(x) for x in negatives)
        terms = [p * -math.log(math.exp(x) / (math.exp(x) + below))
                 for x, p in zip(own, weights, strict=True) if p > 0]  # fmt: skip
        return sum(terms) / float(sum(weights)) if terms else 0.0

    forward = [one(s[i], w[i], ignored[i]) for i in range(b)]
    if not symmetric:
        return np.array(forward)
    backward = [one([s[i][j] for i in range(b)], w[:, j], ignored[:, j]) for j in range(b)]
    return (np.array(forward) + np.array(backward)) / 2


def unit_rows(rng: np.random.Generator, n: int, d: int = 8) -> np.ndarray:
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("float32")


def batch(seed: int, b: int = 6, c: int = 9) -> dict[str, Any]:
    """Random embeddings, graded positives with the diagonal among them, mask, logQ."""
    rng = np.random.default_rng(seed)
    positives = np.where(rng.random((b, c)) < 0.2, rng.choice([0.5, 1.0, 3.0], (b, c)), 0.0)
    positives[np.arange(b), np.arange(b)] = 1.0
    return {
        "query": unit_rows(rng, b),
        "candidates": unit_rows(rng, c),
        "positives": positives.astype("float32"),
        "ignored": rng.random((b, c)) < 0.3,
        "log_probability": np.log(rng.uniform(0.01, 0.9, c)).astype("float32"),
    }


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("log_q", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize(("b", "c"), [(1, 1), (1, 4), (6, 6), (6, 9)])
def test_equals_the_formula(
    b: int, c: int, multi: bool, mask: bool, log_q: bool, symmetric: bool
) -> None:
    data = batch(17 * b + c, b, c)
    positives = data["positives"] if multi else None
    ignored = data["ignored"] if mask else None
    log_probability = data["log_probability"] if log_q else None
    losses = in_batch_softmax(
        data["query"],
        data["candidates"],
        temperature=TEMPERATURE,
        positives=positives,
        ignored=ignored,
        candidate_log_probability=log_probability,
        symmetric=symmetric,
    )
    expected = loss_by_loop(
        data["query"],
        data["candidates"],
        positives=positives,
        ignored=ignored,
        log_probability=log_probability,
        symmetric=symmetric,
    )
    assert ops.dtype(losses) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(losses), expected, rtol=2e-5, atol=2e-6)


def test_by_hand() -> None:
    """Logits [[2, 0, 1], [0, 2, 1]] at temperature 0.5, worked out on paper."""
    losses = in_batch_softmax(
        np.eye(2, dtype="float32"),
        np.array([[1, 0], [0, 1], [0.5, 0.5]], "float32"),
        temperature=0.5,
        positives=np.array([[1, 0, 1], [1, 1, 0]], bool),
    )
    # Row 0: candidate 1 is the only negative: (log(1 + e^-2) + log(1 + e^-1)) / 2.
    # Row 1: candidate 2 is the only negative: (log(1 + e^1) + log(1 + e^-1)) / 2.
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), [(0.126928 + 0.313262) / 2, (1.313262 + 0.313262) / 2], 1e-5
    )


def test_bool_positives_and_row_without_any() -> None:
    data = batch(3)
    positives = data["positives"] > 0
    positives[2] = False
    losses = ops.convert_to_numpy(
        in_batch_softmax(
            data["query"], data["candidates"], temperature=TEMPERATURE, positives=positives
        )
    )
    assert losses[2] == 0.0
    np.testing.assert_allclose(
        losses, loss_by_loop(data["query"], data["candidates"], positives=positives), rtol=2e-5
    )


# --- TFRS as the oracle ---------------------------------------------------------------------------


def tfrs_loss(**call: Any) -> float:
    import tensorflow_recommenders as tfrs

    options: dict[str, Any] = {"temperature": TEMPERATURE}
    if "candidate_ids" in call:
        options["remove_accidental_hits"] = True
    return float(tfrs.tasks.Retrieval(**options)(compute_metrics=False, **call))


@pytest.mark.parametrize("c", [6, 10])
def test_equals_tfrs_retrieval(c: int) -> None:
    """TFRS sums over the batch: our weighted mean times the sum of the weights."""
    data = batch(c, 6, c)
    rng = np.random.default_rng(c)
    weight = rng.uniform(0.1, 2, 6).astype("float32")
    ids = rng.integers(0, 4, c)
    embeddings = (data["query"], data["candidates"])
    assert np.asarray(accidental_hits(ids, 6)).any()
    loss = InBatchSoftmax()

    def ours(**options: Any) -> float:
        mean = loss(*embeddings, temperature=TEMPERATURE, sample_weight=weight, **options)
        return float(mean) * float(weight.sum())

    plain = tfrs_loss(
        query_embeddings=embeddings[0], candidate_embeddings=embeddings[1], sample_weight=weight
    )
    assert ours() == pytest.approx(plain, rel=1e-5)
    corrected = tfrs_loss(
        query_embeddings=embeddings[0],
        candidate_embeddings=embeddings[1],
        sample_weight=weight,
        candidate_sampling_probability=np.exp(data["log_probability"]),
        candidate_ids=ids,
    )
    assert corrected != pytest.approx(plain, rel=1e-3)
    assert ours(
        candidate_log_probability=data["log_probability"], ignored=accidental_hits(ids, 6)
    ) == pytest.approx(corrected, rel=1e-5)


# --- Gradients ------------------------------------------------------------------------------------


def gradients(data: dict[str, Any], temperature: float, **options: Any) -> list[np.ndarray]:
    """Gradients of the summed loss in query, candidates and temperature, by the backend."""
    import tensorflow as tf

    inputs = [tf.constant(data["query"]), tf.constant(data["candidates"]), tf.constant(temperature)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(
            in_batch_softmax(inputs[0], inputs[1], temperature=inputs[2], **options)
        )
    return [g.numpy() for g in tape.gradient(total, inputs)]


needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="differentiates with TensorFlow's tape"
)


@needs_tensorflow
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_equal_finite_differences(symmetric: bool) -> None:
    data = batch(5, 4, 6)
    masks = {"positives": data["positives"], "ignored": data["ignored"]}
    found = gradients(data, TEMPERATURE, symmetric=symmetric, **masks)

    point: list[np.ndarray] = [
        data["query"].astype(float), data["candidates"].astype(float), np.array(TEMPERATURE)
    ]  # fmt: skip

    def total() -> float:
        return float(loss_by_loop(point[0], point[1], float(point[2]), symmetric=symmetric,
                                  **masks).sum())  # fmt: skip

    for values, gradient in zip(point, found, strict=True):
        expected = np.zeros_like(values)
        for index in np.ndindex(values.shape):
            middle = values[index]
            values[index] = middle + 1e-5
            above = total()
            values[index] = middle - 1e-5
            expected[index] = (above - total()) / 2e-5
            values[index] = middle
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@needs_tensorflow
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_finite_when_all_but_the_positive_is_ignored(symmetric: bool, scale: float) -> None:
    data = batch(8)
    data["query"] = data["query"] * np.float32(scale)
    options: dict[str, Any] = {"ignored": np.ones((6, 9), bool), "symmetric": symmetric}
    losses = in_batch_softmax(data["query"], data["candidates"], temperature=TEMPERATURE, **options)
    np.testing.assert_array_equal(ops.convert_to_numpy(losses), np.zeros(6))
    for gradient in gradients(data, TEMPERATURE, **options):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@needs_tensorflow
def test_huge_logits_stay_exact() -> None:
    """Logits of +-1e6: exp() of them does not exist, their loss is their difference."""
    data = {
        "query": np.array([[1e3, 0], [0, 1e3]], "float32"),
        "candidates": np.array([[-1e3, 0], [1e3, 1e3]], "float32"),
    }
    losses = in_batch_softmax(data["query"], data["candidates"], temperature=1.0)
    np.testing.assert_allclose(ops.convert_to_numpy(losses), [2e6, 0.0], rtol=1e-6)
    query_gradient, candidate_gradient, _ = gradients(data, 1.0)
    np.testing.assert_allclose(query_gradient, [[2e3, 1e3], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(candidate_gradient, [[-1e3, 0.0], [1e3, 0.0]], rtol=1e-6)


# --- Properties -----------------------------------------------------------------------------------

seeds = st.integers(0, 2**31)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, symmetric=st.booleans())
def test_order_of_the_batch_does_not_matter(seed: int, symmetric: bool) -> None:
    data = batch(seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(6)
    columns = np.concatenate([rows, 6 + rng.permutation(3)])

    def run(r: np.ndarray, c: np.ndarray) -> np.ndarray:
        return ops.convert_to_numpy(
            in_batch_softmax(
                data["query"][r],
                data["candidates"][c],
                temperature=TEMPERATURE,
                positives=data["positives"][r][:, c],
                ignored=data["ignored"][r][:, c],
                candidate_log_probability=data["log_probability"][c],
                symmetric=symmetric,
            )
        )

    np.testing.assert_allclose(run(rows, columns), run(np.arange(6), np.arange(9))[rows], 1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, shift=st.floats(-20, 20), symmetric=st.booleans())
def test_constant_log_probability_drops_out(seed: int, shift: float, symmetric: bool) -> None:
    data = batch(seed)
    options: dict[str, Any] = {
        "temperature": TEMPERATURE,
        "positives": data["positives"],
        "symmetric": symmetric,
    }
    plain = in_batch_softmax(data["query"], data["candidates"], **options)
    shifted = in_batch_softmax(
        data["query"],
        data["candidates"],
        candidate_log_probability=np.full(9, shift, "float32"),
        **options,
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(shifted), ops.convert_to_numpy(plain), rtol=1e-4, atol=1e-5
    )


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.sampled_from([0.0, -1.0, 1e3, 1e6]))
def test_values_of_ignored_candidates_do_not_matter(seed: int, scale: float) -> None:
    data = batch(seed)
    data["ignored"][:, 7] = True
    data["positives"][:, 7] = 0
    changed = data["candidates"].copy()
    changed[7] *= np.float32(scale)
    options: dict[str, Any] = {
        "temperature": TEMPERATURE,
        "positives": data["positives"],
        "ignored": data["ignored"],
    }
    np.testing.assert_array_equal(
        ops.convert_to_numpy(in_batch_softmax(data["query"], changed, **options)),
        ops.convert_to_numpy(in_batch_softmax(data["query"], data["candidates"], **options)),
    )


def test_positive_wins_over_ignored() -> None:
    data = batch(11)
    everything = data["ignored"] | (data["positives"] > 0)
    runs = [
        in_batch_softmax(
            data["query"], data["candidates"], positives=data["positives"], ignored=mask
        )
        for mask in (everything, everything & (data["positives"] <= 0))
    ]
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, runs))


# --- Precision, graphs, the class -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_embeddings_give_a_float32_loss(dtype: str) -> None:
    """The loss is that of the rounded embeddings, with no rounding of its own."""
    data = batch(2)
    query, candidates = (ops.cast(data[name], dtype) for name in ("query", "candidates"))
    losses = in_batch_softmax(query, candidates, temperature=ops.cast(TEMPERATURE, dtype))
    rounded: list[np.ndarray] = [
        ops.convert_to_numpy(ops.cast(x, "float32")) for x in (query, candidates)
    ]
    temperature = float(ops.cast(ops.cast(TEMPERATURE, dtype), "float32"))
    assert ops.dtype(losses) == "float32"
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), loss_by_loop(rounded[0], rounded[1], temperature), rtol=2e-5
    )


@needs_tensorflow
@pytest.mark.parametrize("jit", [False, True])
def test_in_a_graph_with_unknown_batch_size(jit: bool) -> None:
    import tensorflow as tf

    from towers.losses import known_positives, same_query

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 8]),
            tf.TensorSpec([None, 8]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, None], tf.int32),
        ],
        jit_compile=jit,
    )
    def graph(query: Any, candidates: Any, ids: Any, query_ids: Any, positives: Any) -> Any:
        ignored = (
            accidental_hits(ids, ops.shape(query)[0])
            | known_positives(ids, positives)
            | same_query(query_ids, ops.shape(candidates)[0])
        )
        return in_batch_softmax(query, candidates, ignored=ignored, symmetric=True)

    data = batch(4)
    ids = np.array([1, 2, 1, 3, 4, 5, 6, 2, 8], "int32")
    query_ids = np.array([1, 2, 3, 4, 4, 5], "int32")
    known = np.array([[1, 8], [2, -1], [1, -1], [3, 6], [4, -1], [5, -1]], "int32")
    ignored = np.zeros((6, 9), bool)
    for i, j in [(0, 2), (0, 8), (1, 7), (2, 0), (3, 4), (3, 6), (4, 3)]:
        ignored[i, j] = True
    np.testing.assert_allclose(
        graph(data["query"], data["candidates"], ids, query_ids, known).numpy(),
        loss_by_loop(data["query"], data["candidates"], 0.05, ignored=ignored, symmetric=True),
        rtol=2e-5,
        atol=1e-6,
    )


def test_weighted_mean() -> None:
    data = batch(1)
    per_query = loss_by_loop(data["query"], data["candidates"])
    loss = InBatchSoftmax()
    embeddings = (data["query"], data["candidates"])
    assert float(loss(*embeddings, temperature=TEMPERATURE)) == pytest.approx(
        per_query.mean(), rel=1e-5
    )
    weight = np.array([0, 1, 2, 0.5, 0, 3], "float32")
    assert float(loss(*embeddings, temperature=TEMPERATURE, sample_weight=weight)) == pytest.approx(
        np.average(per_query, weights=weight), rel=1e-5
    )
    assert float(loss(*embeddings, sample_weight=np.zeros(6, "float32"))) == 0.0


def test_single_positive_masks_the_others() -> None:
    data = batch(9)
    extra = data["positives"] > 0
    result = InBatchSoftmax(multi_positive=False)(
        data["query"],
        data["candidates"],
        temperature=TEMPERATURE,
        positives=data["positives"],
        ignored=data["ignored"],
    )
    expected = loss_by_loop(data["query"], data["candidates"], ignored=extra | data["ignored"])
    assert float(result) == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("multi_positive", [False, True])
def test_serialisation(symmetric: bool, multi_positive: bool) -> None:
    loss = InBatchSoftmax(symmetric=symmetric, multi_positive=multi_positive)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert isinstance(restored, InBatchSoftmax)
    assert restored.get_config() == loss.get_config()
    data = batch(6)
    arguments = {"positives": data["positives"], "ignored": data["ignored"]}
    assert float(restored(data["query"], data["candidates"], **arguments)) == float(
        loss(data["query"], data["candidates"], **arguments)
    )


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_under_jax_without_tensorflow(tmp_path: Path) -> None:
    """Same value compiled by JAX, in a process where TensorFlow cannot be imported."""
    data = batch(12)
    expected = loss_by_loop(
        data["query"],
        data["candidates"],
        positives=data["positives"],
        ignored=data["ignored"],
        log_probability=data["log_probability"],
        symmetric=True,
    )
    program = """
        import sys
        sys.modules["tensorflow"] = None
        import jax, numpy as np
        from towers.losses import accidental_hits, in_batch_softmax, same_query
        data = np.load(sys.argv[1])

        def total(query, candidates):
            return in_batch_softmax(
                query, candidates, temperature=0.2, positives=data["positives"],
                ignored=data["ignored"], candidate_log_probability=data["log_probability"],
                symmetric=True).sum()

        value, gradient = jax.jit(jax.value_and_grad(total))(data["query"], data["candidates"])
        assert np.isfinite(gradient).all()
        hits = jax.jit(lambda ids: accidental_hits(ids, 3) | same_query(ids[:3], 5))(
            np.array([1, 2, 1, 9, 2]))
        assert np.argwhere(np.asarray(hits)).tolist() == [[0, 2], [1, 4], [2, 0]], hits
        print(float(value))
    """
    np.savez(tmp_path / "data.npz", **data)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "data.npz")],
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.parametrize("loss", [in_batch_softmax, InBatchSoftmax(symmetric=True)])
def test_queries_without_an_item_of_their_own_are_refused(loss: Callable) -> None:
    vectors = np.eye(3, dtype="float32")
    with pytest.raises(ValueError, match="3 queries and 2 candidates"):
        loss(vectors, vectors[:2])
