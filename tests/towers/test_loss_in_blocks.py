"""Losses by blocks of rows: the formula in NumPy, the direct gradient, and what is held at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from towers.losses import (
    AdditiveMarginSoftmax,
    GradedSoftmax,
    InBatchSoftmax,
    accidental_hits,
    loss_in_blocks,
)

B, C, D = 7, 10, 5
LOSSES = {
    "plain": InBatchSoftmax(),
    "symmetric": InBatchSoftmax(symmetric=True),
    "own alone": InBatchSoftmax(symmetric=True, multi_positive=False),
    "margin": AdditiveMarginSoftmax(0.2, symmetric=True),
    "graded": GradedSoftmax(symmetric=True),
}


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    grades = np.where(rng.random((B, C)) < 0.2, rng.integers(1, 4, (B, C)), 0)
    grades[np.arange(B), np.arange(B)] = 2
    return {
        "query": rng.normal(size=(B, D)),
        "candidates": rng.normal(size=(C, D)),
        "grades": grades.astype(np.float64),
        "ignored": (rng.random((B, C)) < 0.2) & (grades == 0),
        "log_probability": np.log(rng.uniform(0.1, 0.9, C)),
        "sample_weight": rng.uniform(0.5, 2.0, B),
    }


def by_formula(loss: InBatchSoftmax, x: dict[str, np.ndarray], temperature: float) -> float:
    """The losses as their docstrings define them, row by row, in float64."""

    def direction(query: Any, candidates: Any, grades: Any, ignored: Any, logq: Any) -> float:
        total = weights = 0.0
        for i in range(len(query)):
            cosines = candidates @ query[i]
            logits = cosines / temperature - logq
            graded = [j for j in range(len(candidates)) if grades[i, j] > 0]
            if isinstance(loss, GradedSoftmax):
                gain = {j: 2 ** grades[i, j] - 1 for j in graded}
                open_ = [j for j in range(len(candidates)) if j in gain or not ignored[i, j]]
                whole = np.log(np.sum(np.exp(logits[open_])))
                row = sum(g * (whole - logits[j]) for j, g in gain.items()) / sum(gain.values())
                weight = sum(gain.values())
            else:
                weight, positives = 1.0, graded if loss.multi_positive else [i]
                others = set(graded) | {i} | set(np.flatnonzero(ignored[i]))
                rivals = sum(np.exp(logits[j]) for j in range(len(candidates)) if j not in others)
                row = 0.0
                shares = {j: grades[i, j] if loss.multi_positive else 1.0 for j in positives}
                for j, share in shares.items():
                    own = np.exp(logits[j] - loss.margin / temperature)
                    row -= share * np.log(own / (own + rivals)) / sum(shares.values())
            total += row * weight * x["sample_weight"][i]
            weights += weight * x["sample_weight"][i]
        return total / weights

    forward = direction(
        x["query"], x["candidates"], x["grades"], x["ignored"], x["log_probability"]
    )
    if not loss.symmetric:
        return forward
    left = x["grades"][:, :B].T, x["ignored"][:, :B].T
    return (forward + direction(x["candidates"][:B], x["query"], *left, np.zeros(B))) / 2


def in_blocks(loss: InBatchSoftmax, x: dict[str, np.ndarray], blocks: int) -> Any:
    """A function of (query, candidates, temperature)."""
    grades = tf.constant(x["grades"], tf.float32)
    ignored = tf.constant(x["ignored"])

    def relation(rows: Any, columns: Any) -> tuple[Any, Any]:
        return tuple(tf.gather(tf.gather(m, rows), columns, axis=1) for m in (grades, ignored))

    return lambda query, candidates, temperature: loss_in_blocks(
        loss,
        query,
        candidates,
        relation,
        blocks=blocks,
        temperature=temperature,
        candidate_log_probability=tf.constant(x["log_probability"], tf.float32),
        sample_weight=tf.constant(x["sample_weight"], tf.float32),
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_value_and_gradient_are_those_of_the_whole(name: str, blocks: int) -> None:
    x, loss = batch(), LOSSES[name]
    inputs = [tf.constant(x[key], tf.float32) for key in ("query", "candidates")]
    inputs.append(tf.constant(0.7))

    @tf.function
    def blockwise(*inputs: Any) -> tuple:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = in_blocks(loss, x, blocks)(*inputs)
        return value, tape.gradient(value, inputs)

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        whole = loss(
            inputs[0],
            inputs[1],
            temperature=inputs[2],
            positives=x["grades"],
            ignored=x["ignored"],
            candidate_log_probability=x["log_probability"],
            sample_weight=tf.constant(x["sample_weight"], tf.float32),
        )
    expected = tape.gradient(whole, inputs)
    value, gradients = blockwise(*inputs)
    formula = by_formula(loss, x, 0.7)
    assert float(whole) == pytest.approx(formula, abs=1e-5)
    assert float(value) == pytest.approx(formula, abs=1e-5)
    for found, direct in zip(gradients, expected, strict=True):
        found = tf.convert_to_tensor(found)  # rows that were gathered, else
        np.testing.assert_allclose(found, direct, rtol=1e-4, atol=1e-6)

    # And a difference quotient of the formula, along one direction.
    step, direction = 1e-5, np.random.default_rng(0).normal(size=(B, D))
    ends = [
        by_formula(loss, {**x, "query": x["query"] + sign * step * direction}, 0.7)
        for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    along = tf.reduce_sum(tf.convert_to_tensor(gradients[0]) * direction)
    assert float(along) == pytest.approx(slope, abs=1e-4)


def _largest(function: Any) -> int:
    """Elements of the largest tensor in a graph and all functions that it calls."""
    graph = function.get_concrete_function().graph
    functions = [graph, *(graph._get_function(f.name).graph for f in graph._functions.values())]
    shapes = [o.shape for g in functions for op in g.get_operations() for o in op.outputs]
    assert all(shape.is_fully_defined() for shape in shapes if shape.rank == 2)
    return max(int(np.prod(shape)) for shape in shapes if shape.is_fully_defined())


def test_no_matrix_of_the_whole_batch_is_ever_made() -> None:
    pairs, width, blocks = 16_384, 8, 64
    signature = [tf.TensorSpec((pairs, width))]

    def relation(rows: Any, columns: Any) -> tuple[None, Any]:
        ids = tf.range(pairs)
        same = tf.gather(ids, rows)[:, None] == tf.gather(ids, columns)
        return None, same & (rows[:, None] != columns)

    @tf.function(input_signature=signature)
    def blockwise(vectors: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            value = loss_in_blocks(
                InBatchSoftmax(symmetric=True), vectors, vectors, relation, blocks=blocks
            )
        return tape.gradient(value, vectors)

    @tf.function(input_signature=signature)
    def whole(vectors: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            hits = accidental_hits(tf.range(pairs), pairs)
            value = InBatchSoftmax(symmetric=True)(vectors, vectors, ignored=hits)
        return tape.gradient(value, vectors)

    assert _largest(whole) == pairs * pairs
    assert _largest(blockwise) <= 2 * pairs * pairs // blocks
