"""Distillation of scores: scipy's relative entropy, hand-worked cases, the model's loss."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from towers.losses import InBatchSoftmax, ScoreDistillation, score_distillation
from towers.retriever import Retriever

Make = Callable[..., Retriever]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def oracle(q: np.ndarray, c: np.ndarray, t: np.ndarray, s_temp: float, t_temp: float) -> np.ndarray:
    teacher = softmax(t.astype(np.float64) / t_temp, axis=1)
    student = softmax((q @ c.T).astype(np.float64) / s_temp, axis=1)
    return rel_entr(teacher, student).sum(axis=1)


@pytest.mark.parametrize(("s_temp", "t_temp"), [(0.05, 0.05), (0.1, 0.02), (1.0, 1.0)])
def test_is_the_relative_entropy(s_temp: float, t_temp: float) -> None:
    rng = np.random.default_rng(0)
    q, c, t = unit(rng, 5, 8), unit(rng, 9, 8), rng.uniform(0, 1, (5, 9)).astype(np.float32)
    found = score_distillation(q, c, t, temperature=s_temp, teacher_temperature=t_temp)
    np.testing.assert_allclose(found, oracle(q, c, t, s_temp, t_temp), rtol=1e-4, atol=1e-6)
    mean = ScoreDistillation(2.5, temperature=s_temp, teacher_temperature=t_temp)(q, c, t)
    assert float(mean) == pytest.approx(2.5 * oracle(q, c, t, s_temp, t_temp).mean(), rel=1e-4)


def test_by_hand() -> None:
    # Student: cosines 1 and 0 at temperature 1 / ln 3, so 3/4 and 1/4. Teacher: 1/2 and 1/2.
    q, c = np.eye(2, dtype=np.float32)[:1], np.eye(2, dtype=np.float32)
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    found = score_distillation(q, c, np.zeros((1, 2)), temperature=1 / np.log(3))
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_a_student_that_agrees_has_no_loss_and_no_gradient() -> None:
    rng = np.random.default_rng(1)
    q, c = unit(rng, 4, 8), unit(rng, 6, 8)
    offset = rng.normal(size=(4, 1)).astype(np.float32)  # a softmax does not see it
    np.testing.assert_allclose(score_distillation(q, c, q @ c.T + offset), np.zeros(4), atol=1e-4)


def test_far_apart_scores_stay_finite() -> None:
    q, c = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)
    found = score_distillation(q, c, np.array([[-1e4, 1e4], [-1e4, 1e4]]), temperature=1e-3)
    np.testing.assert_allclose(found, [1000.0, 0.0], rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"temperature": 0}, {"teacher_temperature": -1}])
def test_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight must be 0 or more and temperatures above 0"):
        ScoreDistillation(**wrong)


def test_round_trip() -> None:
    loss = ScoreDistillation(0.5, temperature=0.1, teacher_temperature=0.2)
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == loss.get_config()


def test_the_model_adds_it_and_leaves_out_what_is_ignored(
    make_tiny_retriever: Make, tiny_catalog: dict[str, list[str]]
) -> None:
    retriever = make_tiny_retriever(
        loss=InBatchSoftmax(), distillation=ScoreDistillation(0.7, teacher_temperature=0.1)
    )
    titles = tiny_catalog["title"]
    tokens = [
        dict(retriever.tokenizer(texts, max_length=16))
        for texts in (["red hose", "boil water", "hot cat"], titles[:3], titles[3:5])
    ]
    rng = np.random.default_rng(2)
    teacher = rng.uniform(0, 1, (3, 5)).astype(np.float32)
    ignored = rng.random((3, 5)) < 0.4
    weight = np.array([1.0, 2.0, 0.0], np.float32)
    x = {
        "query": tokens[0],
        "item": tokens[1],
        "negatives": tokens[2],
        "item_ids": np.arange(3),
        "negative_ids": np.arange(3, 5),
        "ignored": ignored,
        "teacher_scores": teacher,
    }
    y = retriever.model(x)
    q, c = np.asarray(y["query"]), np.asarray(y["item"])
    logits = (q @ c.T).astype(np.float64) / 0.05
    losses = np.array(
        [
            -logits[i, i]
            + np.log(sum(np.exp(logits[i, j]) for j in range(5) if j == i or not ignored[i, j]))
            for i in range(3)
        ]
    )
    expected = (weight * losses).sum() / 3 + 0.7 * oracle(q, c, teacher, 0.05, 0.1).mean()
    found = retriever.model.compute_loss(x=x, y_pred=y, sample_weight=weight)
    assert float(found) == pytest.approx(expected, rel=1e-4)

    plain = make_tiny_retriever(loss=InBatchSoftmax()).model
    plain.set_weights(retriever.model.get_weights())
    without = float(plain.compute_loss(x=x, y_pred=y, sample_weight=weight))
    assert without == pytest.approx((weight * losses).sum() / 3, rel=1e-4)
