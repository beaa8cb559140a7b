"""Choice of the index: size, measured recall, fallback."""

from __future__ import annotations

import numpy as np
import pytest

import serving.index.auto as auto
from serving.index.auto import choose_index
from serving.index.item_index import FLOOR_SCORE, ItemIndex
from serving.index.recall import recall
from serving.index.scann import ScannIndex
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
    items: np.ndarray, queries: np.ndarray, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the clock, which other processes disturb.
    monkeypatch.setattr(auto, "_milliseconds", lambda index, _: 2.0 if index.is_exact() else 1.0)
    chosen = choose_index(ids, items, queries, k=5)
    assert chosen.index.kind == "scann"
    assert chosen.queries == 128
    assert 0.95 <= chosen.recall <= 1.0
    # The same number from NumPy: the choice reports what it serves.
    expected = np.argsort(-(queries @ items.T), axis=1)[:, :5]
    got = chosen.index.call(queries)[1].numpy().astype(int)
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(got, expected, strict=True)])
    assert chosen.recall == pytest.approx(overlap, abs=0.005)

    assert (chosen.milliseconds, chosen.exact_milliseconds) == (1.0, 2.0)

    again = choose_index(ids, items, queries, k=5, kind="scann", parameters=chosen.index.parameters)
    assert again.index.parameters == chosen.index.parameters
    # Not equal: the leaves of ScaNN's tree, learned in threads, differ from time to time.
    assert again.recall == pytest.approx(chosen.recall, abs=0.02)


def test_a_higher_target_costs_more(
    items: np.ndarray, queries: np.ndarray, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_unbuilt", lambda *_: [ScannIndex(10)])
    cheap = choose_index(ids, items, queries, kind="scann", target_recall=0.5)
    dear = choose_index(ids, items, queries, kind="scann", target_recall=0.99)
    assert cheap.index.parameters["reorder"] < dear.index.parameters["reorder"]
    assert cheap.recall < dear.recall


def test_of_several_ways_to_build_it_the_quickest_that_reaches_the_target_is_taken(
    items: np.ndarray, queries: np.ndarray, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that says: a tree is slow, hashes of four dimensions a block are quick.
    def milliseconds(index: ItemIndex, _: np.ndarray) -> float:
        slow = 10.0 if index.parameters.get("leaves") else 0.0
        return slow + 1.0 / (index.parameters.get("dimensions_per_block") or 0.01)

    monkeypatch.setattr(auto, "_milliseconds", milliseconds)
    chosen = choose_index(ids, items, queries)
    assert chosen.index.kind == "scann"
    assert chosen.index.parameters["dimensions_per_block"] == 4
    assert chosen.index.parameters["leaves"] == 0
    assert (chosen.milliseconds, chosen.exact_milliseconds) == (0.25, 100.0)
    # Where those cannot reach it, the coarse hashes are not taken for being quick.
    monkeypatch.setattr(auto, "_REORDERED_PER_RESULT", (5,))
    chosen = choose_index(ids, items, queries, kind="scann")
    assert chosen.index.parameters["dimensions_per_block"] == 2


def test_partitions_are_searched_as_far_as_the_target_needs(
    items: np.ndarray, queries: np.ndarray, ids: list[str]
) -> None:
    low = choose_index(ids, items, queries, kind="partitioned", target_recall=0.6)
    high = choose_index(ids, items, queries, kind="partitioned", target_recall=0.95)
    assert low.index.kind == high.index.kind == "partitioned"
    searched = [one.index.parameters["partitions_to_search"] for one in (low, high)]
    assert 1 <= searched[0] < searched[1] < high.index.parameters["partitions"]
    assert 0.6 <= low.recall < 0.95 <= high.recall
    assert low.milliseconds > 0
    assert low.exact_milliseconds > 0
    expected = np.argsort(-(queries @ items.T), axis=1)[:, :10]
    got = high.index.call(queries)[1].numpy().astype(int)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(got, expected, strict=True)])
    assert high.recall == pytest.approx(overlap, abs=0.005)

    # What was chosen before is kept while it is enough, and left where it is not.
    kept = choose_index(
        ids, items, queries, kind="partitioned", target_recall=0.5, parameters=high.index.parameters
    )
    assert kept.index.parameters == high.index.parameters
    left = choose_index(
        ids, items, queries, kind="partitioned", target_recall=0.95, parameters=low.index.parameters
    )
    assert left.index.parameters == high.index.parameters


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


def test_exact_where_it_is_as_fast(
    items: np.ndarray, queries: np.ndarray, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_milliseconds", lambda index, _: 1.0 if index.is_exact() else 0.95)
    chosen = choose_index(ids, items, queries)
    assert chosen.index.kind == "exact"
    assert "as fast" in chosen.reason


def test_a_kind_that_is_asked_for_is_obeyed(items: np.ndarray, queries: np.ndarray) -> None:
    few = [str(row) for row in range(30)]
    scann = choose_index(few, items[:30], queries, kind="scann")
    assert scann.index.kind == "scann"
    assert scann.recall == 1.0
    exact = choose_index(few, items[:30], queries[:0], kind="exact")
    assert exact.index.kind == "exact"
    assert exact.recall == 1.0


def test_bad_requests(items: np.ndarray, queries: np.ndarray) -> None:
    with pytest.raises(InputError, match="auto, exact, scann, partitioned"):
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
