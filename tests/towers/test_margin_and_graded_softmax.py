"""Additive-margin and graded softmax, R-Drop: NumPy from the formulas, scipy, cases by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from towers.losses import (
    AdditiveMarginSoftmax,
    GradedSoftmax,
    InBatchSoftmax,
    graded_softmax,
    known_grades,
    r_drop,
)

TEMPERATURE = 0.2


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    grades = np.where(rng.random((4, 7)) < 0.3, rng.integers(1, 4, (4, 7)), 0)
    grades[np.arange(4), np.arange(4)] = [1, 2, 3, 1]
    return {
        "query": unit(rng, 4, 6),
        "candidates": unit(rng, 7, 6),
        "positives": grades.astype(np.float32),
        "ignored": rng.random((4, 7)) < 0.3,
        "candidate_log_probability": np.log(rng.uniform(0.1, 0.9, 7)).astype(np.float32),
        "sample_weight": np.array([1.0, 0.5, 2.0, 0.0], np.float32),
    }


# Additive margin


def margin_by_loop(
    q: np.ndarray, c: np.ndarray, own: np.ndarray, skip: np.ndarray, m: float
) -> np.ndarray:
    cosines = q.astype(np.float64) @ c.T.astype(np.float64)
    losses = []
    for row, cosine in enumerate(cosines):
        negatives = [x for x, p, s in zip(cosine, own[row], skip[row], strict=True) if not (p or s)]
        below = np.exp(np.array(negatives) / TEMPERATURE).sum()
        terms = [
            -np.log((e := np.exp((cosine[j] - m) / TEMPERATURE)) / (e + below))
            for j in np.flatnonzero(own[row])
        ]
        losses.append(np.mean(terms))
    return np.array(losses)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
def test_the_margin_is_taken_from_the_positives(margin: float, batch: dict) -> None:
    q, c = batch["query"], batch["candidates"]
    positive, ignored = batch["positives"] > 0, batch["ignored"]
    found = AdditiveMarginSoftmax(margin)(
        q, c, temperature=TEMPERATURE, positives=positive, ignored=ignored
    )
    forward = margin_by_loop(q, c, positive, ignored, margin)
    assert float(found) == pytest.approx(forward.mean(), rel=1e-5)

    both = AdditiveMarginSoftmax(margin, symmetric=True)(
        q, c, temperature=TEMPERATURE, positives=positive, ignored=ignored
    )
    backward = margin_by_loop(c[:4], q, positive[:, :4].T, ignored[:, :4].T, margin)
    assert float(both) == pytest.approx((forward + backward).mean() / 2, rel=1e-5)


def test_no_margin_is_the_plain_softmax(batch: dict) -> None:
    plain = InBatchSoftmax(symmetric=True)(**batch)
    assert float(AdditiveMarginSoftmax(0.0, symmetric=True)(**batch)) == float(plain)


def test_a_pair_that_wins_by_the_margin_is_at_ease() -> None:
    # Cosines 1 and 0: a margin of 1 makes it a draw, of 0 a clear win.
    q, c = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)
    assert float(AdditiveMarginSoftmax(1.0)(q, c, temperature=0.1)) == pytest.approx(np.log(2))
    assert float(AdditiveMarginSoftmax(0.0)(q, c, temperature=0.1)) == pytest.approx(
        np.log1p(np.exp(-10)), rel=1e-2
    )


def test_wrong_margin() -> None:
    with pytest.raises(ValueError, match=r"margin must be 0 or more; got -0\.1"):
        AdditiveMarginSoftmax(-0.1)


# Grades


def graded_by_numpy(batch: dict, transposed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Losses and sums of gains of the queries, or of their own items over the queries."""
    logits = batch["query"].astype(np.float64) @ batch["candidates"].T / TEMPERATURE
    grades, ignored = batch["positives"], batch["ignored"]
    if transposed:
        logits, grades, ignored = logits[:, :4].T, grades[:, :4].T, ignored[:, :4].T
    else:
        logits = logits - batch["candidate_log_probability"]
    gain = 2.0**grades - 1
    logits = np.where(ignored & (gain == 0), -1e9, logits)
    target = gain / gain.sum(axis=1, keepdims=True)
    terms = np.where(gain > 0, target * log_softmax(logits, axis=1), 0)
    return -terms.sum(axis=1), gain.sum(axis=1)


def test_graded_losses_are_cross_entropies_with_gains(batch: dict) -> None:
    losses = graded_softmax(
        batch["query"],
        batch["candidates"],
        batch["positives"],
        temperature=TEMPERATURE,
        ignored=batch["ignored"],
        candidate_log_probability=batch["candidate_log_probability"],
    )
    np.testing.assert_allclose(losses, graded_by_numpy(batch)[0], rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_queries_count_by_their_gains(symmetric: bool, batch: dict) -> None:
    losses, gains = graded_by_numpy(batch)
    expected = np.average(losses, weights=gains * batch["sample_weight"])
    if symmetric:
        losses, gains = graded_by_numpy(batch, transposed=True)
        back = np.average(losses, weights=gains * batch["sample_weight"])
        expected = (expected + back) / 2
    found = GradedSoftmax(symmetric=symmetric)(**batch, temperature=TEMPERATURE)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_one_pair_a_query_is_the_plain_softmax(batch: dict) -> None:
    given = {**batch, "positives": None}
    assert float(GradedSoftmax()(**given)) == pytest.approx(float(InBatchSoftmax()(**given)))


def test_by_hand() -> None:
    # Gains 1 and 3, scores all alike: every candidate has a third.
    q, c = np.ones((1, 1), np.float32), np.ones((3, 1), np.float32)
    loss = graded_softmax(q, c, np.array([[1, 2, 0]]))
    np.testing.assert_allclose(loss, [np.log(3)], rtol=1e-6)
    # The grade 0 left out: a half each.
    loss = graded_softmax(q, c, np.array([[1, 2, 0]]), ignored=np.array([[True, False, True]]))
    np.testing.assert_allclose(loss, [np.log(2)], rtol=1e-6)


def test_scores_in_the_order_of_the_grades_are_best() -> None:
    # One-dimensional embeddings: the candidates are their own scores.
    def loss(*scores: float) -> float:
        items = np.array(scores, np.float32)[:, None]
        one = np.ones((1, 1), np.float32)
        return float(graded_softmax(one, items, np.array([[2, 1, 0]]), temperature=0.2)[0])

    assert loss(0.9, 0.6, 0.1) < loss(0.6, 0.9, 0.1) < loss(0.1, 0.6, 0.9)
    # Gains of 3 and 1: the least loss has the one three times as likely as the other.
    gap = 0.2 * np.log(3)
    assert loss(gap, 0, -9) < min(loss(gap + 0.02, 0, -9), loss(gap - 0.02, 0, -9))


def test_a_query_without_grades_has_no_loss(batch: dict) -> None:
    grades = batch["positives"].copy()
    grades[1] = 0
    losses = np.asarray(graded_softmax(batch["query"], batch["candidates"], grades))
    assert losses[1] == 0.0
    assert np.isfinite(losses).all()
    nothing = GradedSoftmax(symmetric=True)(
        batch["query"], batch["candidates"], positives=np.zeros((4, 7), np.float32)
    )
    assert float(nothing) == 0.0


def test_known_grades() -> None:
    found = known_grades(
        np.array([4, -1, 9, 5]), np.array([[9, 4], [5, -1]]), np.array([[2, 1], [3, 7]])
    )
    np.testing.assert_array_equal(found, [[1, 0, 2, 0], [0, 0, 0, 3]])


@pytest.mark.parametrize(
    "loss",
    [
        AdditiveMarginSoftmax(0.3, symmetric=True, multi_positive=False),
        GradedSoftmax(symmetric=True),
    ],
)
def test_round_trip(loss: InBatchSoftmax) -> None:
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


# R-Drop


def test_r_drop_is_the_mean_of_both_relative_entropies() -> None:
    rng = np.random.default_rng(0)
    one = {"query": unit(rng, 4, 6), "item": unit(rng, 7, 6)}
    two = {"query": unit(rng, 4, 6), "item": unit(rng, 7, 6)}
    p, q = (
        softmax((x["query"] @ x["item"].T).astype(np.float64) / TEMPERATURE, axis=1)
        for x in (one, two)
    )
    expected = (rel_entr(p, q) + rel_entr(q, p)).sum(axis=1) / 2
    np.testing.assert_allclose(r_drop(one, two, temperature=TEMPERATURE), expected, rtol=1e-4)
    np.testing.assert_array_equal(r_drop(one, one), np.zeros(4))
