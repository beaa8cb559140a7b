"""AdaLoRA's budget of ranks against NumPy written from the paper's equations."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from towers.adaptation.adalora import Triplets
from training.rank_budget import RankBudgetAdamW

LAYERS, WIDTH, OUT, RANK = 2, 5, 4, 3


def make_triplets(seed: int = 0) -> list[Triplets]:
    rng = np.random.default_rng(seed)
    shapes = (LAYERS, WIDTH, RANK), (LAYERS, RANK), (LAYERS, RANK, OUT)
    return [
        Triplets(*(keras.Variable(rng.normal(size=shape).astype(np.float32)) for shape in shapes))
        for _ in range(2)
    ]


def make_optimizer(triplets: list[Triplets], steps: int) -> RankBudgetAdamW:
    optimizer = RankBudgetAdamW(0.01, triplets=triplets, budget=4, steps=steps)
    optimizer.build([weight for triplet in triplets for weight in triplet])
    return optimizer


def test_the_budget_falls_as_in_the_paper() -> None:
    optimizer = make_optimizer(make_triplets(), steps=100)  # from 2 * 2 * 3 to 4
    for step in (0, 5, 10, 30, 50, 69, 70, 90, 100):
        if step < 10:
            expected = 12.0
        elif step < 70:
            expected = 4 + (12 - 4) * (1 - (step - 10) / (100 - 10 - 30)) ** 3
        else:
            expected = 4.0
        assert float(optimizer.budget(float(step))) == pytest.approx(expected, abs=0.51)
        assert float(optimizer.budget(float(step))) % 1 == 0


def test_the_least_important_values_are_zero() -> None:
    triplets = make_triplets()
    weights = [weight for triplet in triplets for weight in triplet]
    optimizer = make_optimizer(triplets, steps=10)
    rng = np.random.default_rng(1)
    mean = [np.zeros(weight.shape) for weight in weights]
    deviation = [np.zeros(weight.shape) for weight in weights]
    left_over = []
    for step in range(10):
        budget = int(optimizer.budget(float(step)))
        gradients = [rng.normal(size=w.shape).astype(np.float32) for w in weights]
        for n, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            now = np.abs(weight.numpy() * gradient)
            mean[n] = 0.85 * mean[n] + 0.15 * now
            deviation[n] = 0.85 * deviation[n] + 0.15 * np.abs(now - mean[n])
        scores = []
        for n in (0, 3):
            p, v, q = (mean[n + i] * deviation[n + i] for i in range(3))
            scores.append(v + p.mean(axis=1) + q.mean(axis=2))
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients])
        threshold = np.sort(np.concatenate([s.ravel() for s in scores]))[-budget]
        for triplet, score in zip(triplets, scores, strict=True):
            np.testing.assert_array_equal(triplet.values.numpy() != 0, score >= threshold)
        left_over.append(budget)
    assert left_over[0] == 12
    assert left_over[-1] == 4
    assert left_over == sorted(left_over, reverse=True)


def test_weights_of_no_triplet_are_adamws_own() -> None:
    start = np.arange(3, dtype=np.float32)
    ours, theirs = keras.Variable(start), keras.Variable(start)
    triplets = make_triplets()
    optimizer = RankBudgetAdamW(0.01, triplets=triplets, budget=4, steps=3)
    optimizer.build([ours, *(weight for triplet in triplets for weight in triplet)])
    adamw = keras.optimizers.AdamW(0.01)
    adamw.build([theirs])
    gradient = keras.ops.convert_to_tensor(np.array([1.0, -2.0, 0.5], np.float32))
    for _ in range(3):
        optimizer.apply(
            [gradient, *(keras.ops.ones_like(w) for triplet in triplets for w in triplet)]
        )
        adamw.apply([gradient])
    np.testing.assert_allclose(ours, theirs, atol=1e-7)
