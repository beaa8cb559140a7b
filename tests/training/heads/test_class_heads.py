"""Class heads: nearest mean and logistic regression by their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from training.heads.logistic import STRENGTHS, fit_logistic
from training.heads.prototype import fit_prototype


def clusters(n: int, classes: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one direction a class, and their classes."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    centres = rng.normal(size=(classes, 16))
    vectors = centres[label] + spread * rng.normal(size=(n, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), label


def test_prototypes_are_the_nearest_means() -> None:
    vectors, label = clusters(40, 4, 2.0)
    head = fit_prototype(vectors, label, list("abcd"))
    means = np.stack([vectors[label == one].mean(axis=0) for one in range(4)])
    cosines = vectors @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    probabilities = head.probabilities(vectors)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), cosines.argmax(axis=1))
    np.testing.assert_allclose(
        np.diff(np.log(probabilities), axis=1) / np.diff(cosines, axis=1),
        np.linalg.norm(head.kernel, axis=0)[0],  # one scale for all of them
        rtol=1e-2,
    )


def test_scale_is_the_likeliest_when_each_row_is_left_out() -> None:
    vectors, label = clusters(36, 3, 3.0)
    scale = np.linalg.norm(fit_prototype(vectors, label, list("abc")).kernel, axis=0)[0]

    def loss(scale: float) -> float:
        total = 0.0
        for row in range(len(label)):
            rest = np.arange(len(label)) != row
            means = [vectors[rest & (label == one)].mean(axis=0) for one in range(3)]
            logits = [scale * vectors[row] @ mean / np.linalg.norm(mean) for mean in means]
            total += np.log(np.exp(logits).sum()) - logits[label[row]]
        return total

    assert loss(scale) < min(loss(0.97 * scale), loss(1.03 * scale))


def test_prototype_of_one_row_is_that_row() -> None:
    vectors, label = clusters(3, 3, 1.0)
    head = fit_prototype(vectors, label, list("abc"))
    np.testing.assert_allclose(head.kernel.T, 20 * vectors, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_regression_is_stationary(classes: int) -> None:
    # At the minimum of sum of log losses + |W|^2 / (2 C) the gradient vanishes.
    vectors, label = clusters(60, classes, 1.5)
    head = fit_logistic(vectors, label, [str(one) for one in range(classes)])
    residual = head.probabilities(vectors) - np.eye(classes)[label]
    np.testing.assert_allclose(residual.sum(axis=0), 0, atol=0.02)
    pull, kernel = -vectors.T @ residual, head.kernel
    if classes == 2:  # one weight vector for the second class
        assert not head.kernel[:, 0].any()
        pull, kernel = pull[:, 1], kernel[:, 1]
    strength = (pull * kernel).sum() / (pull * pull).sum()
    np.testing.assert_allclose(kernel, strength * pull, atol=0.02 * np.abs(kernel).max())
    assert np.abs(np.log10(strength) - np.log10(STRENGTHS)).min() < 0.02


def test_strength_follows_the_data() -> None:
    vectors, label = clusters(200, 2, 0.3)
    noise = np.random.default_rng(1).integers(2, size=200)
    clear = np.linalg.norm(fit_logistic(vectors, label, ["a", "b"]).kernel)
    unclear = np.linalg.norm(fit_logistic(vectors, noise, ["a", "b"]).kernel)
    assert clear > 20 * unclear


def test_one_row_a_class_is_enough() -> None:
    vectors, label = clusters(3, 3, 0.1)
    head = fit_logistic(vectors, label, list("abc"))
    np.testing.assert_array_equal(head.probabilities(vectors).argmax(axis=1), label)


def test_heads_learn_and_generalise() -> None:
    vectors, label = clusters(400, 4, 1.0)
    for fit in (fit_prototype, fit_logistic):
        head = fit(vectors[:64], label[:64], list("abcd"))
        assert (head.probabilities(vectors[64:]).argmax(axis=1) == label[64:]).mean() > 0.95
