"""Few-shot training of the fusion of attributes on vectors that stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

from towers import AttributeFusion
from towers.attributes import Attribute
from training.auto import expected_gain
from training.fusion import fit_fusion

ATTRIBUTES = (
    Attribute("price", "number", edges=(0.0, 1.0, 2.0), centre=(0.5, 0.5)),
    Attribute("brand", "category", vocabulary=("A", "B", "C")),
)
SPREAD, TEMPERATURE = 0.1, 0.05


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)

    def unit(rows: int) -> np.ndarray:
        vectors = draw.normal(size=(rows, 6)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    positives = np.zeros((5, 12), np.float32)
    positives[np.arange(5), np.arange(5)] = [1, 1, 2, 1, 1]
    positives[0, 7] = 1.0
    return {
        "queries": unit(5),
        "vectors": unit(12),
        "values": draw.normal(size=(12, 2)).astype(np.float32),
        # No item is of the last category, and one has none.
        "categories": np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, -1], np.int32)[:, None],
        "positives": positives,
    }


def _objective(kernel: np.ndarray, table: np.ndarray, data: dict[str, np.ndarray]) -> float:
    """The negative log-posterior, from the formula."""
    rows = data["categories"][:, 0]
    moved = data["vectors"] + data["values"] @ kernel
    moved = moved + np.where(rows[:, None] >= 0, table[rows], 0.0)
    items = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    logits = data["queries"].astype(np.float64) @ items.T / TEMPERATURE
    total = 0.0
    for row, weight in zip(logits, data["positives"], strict=True):
        others = np.exp(row[weight == 0]).sum()
        terms = weight * -np.log(np.exp(row) / (np.exp(row) + others))
        total += terms.sum() / weight.sum()
    return total + ((kernel**2).sum() + (table**2).sum()) / (2 * SPREAD**2)


def _fit(data: dict[str, np.ndarray], spread: float = SPREAD) -> AttributeFusion:
    return fit_fusion(
        AttributeFusion(ATTRIBUTES, 6),
        data["queries"],
        data["vectors"],
        {"values": data["values"], "categories": data["categories"]},
        data["positives"],
        spread=spread,
        temperature=TEMPERATURE,
    )


def test_the_fit_is_at_the_minimum_of_the_formula(data):
    kernel, table = (np.asarray(w, np.float64) for w in _fit(data).get_weights())
    least = _objective(kernel, table, data)
    assert least < _objective(kernel * 0, table * 0, data) - 0.1
    draw = np.random.default_rng(1)
    for _ in range(50):
        step = 0.01 * draw.normal(size=kernel.shape), 0.01 * draw.normal(size=table.shape)
        assert _objective(kernel + step[0], table + step[1], data) > least
    assert not table[3].any()  # nobody has it: it stays at nothing


def test_a_firm_prior_holds_the_fusion_at_the_text(data):
    assert max(np.abs(weight).max() for weight in _fit(data, 1e-4).get_weights()) < 1e-5


def test_without_a_gain_nothing_is_expected_of_attributes():
    differences = np.tile([0.3, -0.3], 20)
    assert expected_gain(differences)[0] > 0.005  # of methods something is known beforehand
    assert expected_gain(differences, prior_gain=0.0)[0] == 0.0
