"""Choice of the index: size, measured recall, fallback."""

from __future__ import annotations

import numpy as np
import pytest

import serving.index.auto as auto
from serving.index.auto import choose_index
from serving.index.item_index import FLOOR_SCORE
from serving.index.recall import recall
from towers.errors import InputError

COUNT = 20_000


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(400, 64))
    return _unit(centres[rng.integers(400, size=COUNT)] + rng.normal(size=(COUNT, 64)))


@pytest.fixture(scope="module")
def queries(items: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return _unit(items[rng.integers(COUNT, size=128)] + 0.1 * rng.normal(size=(128, 64)))


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return [str(row) for row in range(COUNT)]


def test_a_small_catalogue_is_searched_exactly(
    items: np.ndarray, queries: np.ndarray, ids: list[str]
) -> None:
    chosen = choose_index(ids[:-1], items[:-1], queries)
    assert chosen.index.kind == "exact"
    assert chosen.recall == 1.0
    assert chosen.queries == 0
    assert "20,000" in chosen.reason


def test_a_large_one_gets_scann_with_its_recall_measured(
    items: np.ndarray, queries: np.ndarray, ids: list[str]
) -> None:
    chosen = choose_index(ids, items, queries, k=5)
    assert chosen.index.kind == "scann"
    assert chosen.queries == 128
    assert 0.95 <= chosen.recall <= 1.0
    # The same number from NumPy: the choice reports what it serves.
    expected = np.argsort(-(queries @ items.T), axis=1)[:, :5]
    got = chosen.index.call(queries)[1].numpy().astype(int)
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(got, expected, strict=True)])
    assert chosen.recall == pytest.approx(overlap, abs=0.005)

    again = choose_index(ids, items, queries, k=5)
    assert again.index.parameters == chosen.index.parameters
    assert again.recall == chosen.recall


def test_a_higher_target_costs_more(items: np.ndarray, queries: np.ndarray, ids: list[str]) -> None:
    cheap = choose_index(ids, items, queries, kind="scann", target_recall=0.5)
    dear = choose_index(ids, items, queries, kind="scann", target_recall=0.99)
    assert cheap.index.parameters["reorder"] < dear.index.parameters["reorder"]
    assert cheap.recall < dear.recall


def test_exact_where_scann_cannot_reach_the_target(
    items: np.ndarray, queries: np.ndarray, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_REORDERED_PER_RESULT", (1,))
    chosen = choose_index(ids, items, queries, target_recall=0.99)
    assert chosen.index.kind == "exact"
    assert chosen.recall == 1.0
    assert "at most" in chosen.reason
    obeyed = choose_index(ids, items, queries, kind="scann", target_recall=0.99)
    assert obeyed.index.kind == "scann"
    assert obeyed.recall < 0.99


def test_exact_where_scann_would_cost_as_much(
    items: np.ndarray, queries: np.ndarray, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_REORDERED_PER_RESULT", (COUNT,))
    chosen = choose_index(ids, items, queries)
    assert chosen.index.kind == "exact"
    assert "as much memory" in chosen.reason


def test_a_kind_that_is_asked_for_is_obeyed(items: np.ndarray, queries: np.ndarray) -> None:
    few = [str(row) for row in range(30)]
    scann = choose_index(few, items[:30], queries, kind="scann")
    assert scann.index.kind == "scann"
    assert scann.recall == 1.0
    exact = choose_index(few, items[:30], queries[:0], kind="exact")
    assert exact.index.kind == "exact"
    assert exact.recall == 1.0


def test_bad_requests(items: np.ndarray, queries: np.ndarray) -> None:
    with pytest.raises(InputError, match="auto, exact, scann"):
        choose_index(["a"], items[:1], queries, kind="hnsw")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without queries"):
        choose_index(["a"], items[:1], queries[:0], kind="scann")
    with pytest.raises(InputError, match="nothing to index"):
        choose_index([], items[:0], queries)


def test_recall_by_hand() -> None:
    exact = np.array([[0.9, 0.8, 0.7], [0.9, 0.5, FLOOR_SCORE]])
    found = np.array([[0.9, 0.7, 0.2], [0.5, FLOOR_SCORE, FLOOR_SCORE]])
    np.testing.assert_allclose(recall(found, exact), [2 / 3, 1 / 2])
    # A different item with the score of the last is as good.
    np.testing.assert_allclose(recall(exact, exact), [1, 1])
