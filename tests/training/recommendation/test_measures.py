"""Measures of recommendations against loops over pairs, other libraries' formulas and hand work."""

from __future__ import annotations

import itertools

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.recommendation import measures
from training.recommendation.popularity import item_counts, long_tail, popularity_deciles

N = 7


def lists(users: int = 4, k: int = 4) -> st.SearchStrategy[np.ndarray]:
    """Distinct items, some lists shorter than others."""
    row = st.lists(st.integers(0, N - 1), max_size=k, unique=True)
    return st.lists(row, min_size=1, max_size=users).map(
        lambda rows: np.array([[*row, *[-1] * (k - len(row))] for row in rows], np.int64)
    )


@settings(max_examples=40, deadline=None)
@given(lists(), st.data())
def test_right_or_not_as_ir_measures_has_it(rows: np.ndarray, data: st.DataObject) -> None:
    some = st.lists(st.integers(0, N - 1), min_size=1, max_size=5, unique=True).map(sorted)
    targets = [np.array(data.draw(some)) for _ in rows]
    run = {
        str(user): {str(item): -float(rank) for rank, item in enumerate(row) if item >= 0}
        for user, row in enumerate(rows)
    }
    qrels = {str(user): {str(i): 1 for i in target} for user, target in enumerate(targets)}
    for k in (1, 3):
        names = [ir_measures.R @ k, ir_measures.nDCG @ k]
        expected = {(m, u): 0.0 for m in names for u in qrels}
        for metric in ir_measures.iter_calc(names, qrels, run):
            expected[metric.measure, metric.query_id] = metric.value
        for name, values in zip(
            names, (measures.recall(rows, targets, k), measures.ndcg(rows, targets, k)), strict=True
        ):
            assert values == pytest.approx([expected[name, user] for user in qrels])


@settings(max_examples=50, deadline=None)
@given(lists())
def test_gini_is_half_the_relative_mean_difference(rows: np.ndarray) -> None:
    shown = [np.count_nonzero(rows == item) for item in range(N)]
    if not sum(shown):
        assert measures.gini(rows, N) == 0
        return
    difference = np.mean([abs(a - b) for a, b in itertools.product(shown, shown)])
    assert measures.gini(rows, N) == pytest.approx(difference / (2 * np.mean(shown)))


def test_gini_at_its_ends() -> None:
    assert measures.gini(np.array([[0, 1], [2, 3]]), 4) == 0
    assert measures.gini(np.array([[2]] * 9), 4) == pytest.approx(3 / 4)


@settings(max_examples=50, deadline=None)
@given(lists())
def test_means_over_lists(rows: np.ndarray) -> None:
    counts = np.array([0, 3, 1, 7, 0, 2, 5])
    popularity = measures.average_popularity(rows, counts)
    novelty = measures.novelty(rows, counts, 15)
    for user, row in enumerate(rows):
        shown = [item for item in row if item >= 0]
        if not shown:
            assert np.isnan([popularity[user], novelty[user]]).all()
            continue
        assert popularity[user] == pytest.approx(np.mean([counts[item] for item in shown]))
        bits = [np.log2(16) - np.log2(counts[item] + 1) for item in shown]
        assert novelty[user] == pytest.approx(np.mean(bits))


def test_novelty_by_hand() -> None:
    # Everyone has item 0: no news. Nobody has item 1: of 16 users the next one, 4 bits.
    assert measures.novelty(np.array([[0], [1]]), np.array([15, 0]), 15).tolist() == [0, 4]


@settings(max_examples=50, deadline=None)
@given(lists())
def test_diversity_over_pairs(rows: np.ndarray) -> None:
    items = np.random.default_rng(0).normal(size=(N, 3))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    for row, diversity in zip(rows, measures.intra_list_diversity(rows, items), strict=True):
        shown = [item for item in row if item >= 0]
        distances = [1 - items[a] @ items[b] for a, b in itertools.combinations(shown, 2)]
        if distances:
            assert diversity == pytest.approx(np.mean(distances))
        else:
            assert np.isnan(diversity)


def test_counts_of_users() -> None:
    histories = [np.array([1, 1, 2], np.int32), np.array([2]), np.array([], int)]
    assert item_counts(histories, 4).tolist() == [0, 1, 2, 0]
    assert item_counts([], 2).tolist() == [0, 0]


def test_deciles() -> None:
    counts = np.random.default_rng(0).permutation(40)
    deciles = popularity_deciles(counts)
    assert np.bincount(deciles, minlength=11).tolist() == [0, *[4] * 10]
    assert deciles[counts.argmax()] == 10
    assert deciles[counts.argmin()] == 1
    # Half of the items were never taken: their mean rank is 10.5 of 40, the third tenth.
    half = np.concatenate([np.zeros(20, int), np.arange(1, 21)])
    assert (
        popularity_deciles(half).tolist()
        == [3] * 20 + [6] * 4 + [7] * 4 + [8] * 4 + [9] * 4 + [10] * 4
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30).map(np.array))
def test_deciles_and_tail_go_with_popularity(counts: np.ndarray) -> None:
    deciles, tail = popularity_deciles(counts), long_tail(counts)
    assert deciles.min() >= 1
    assert deciles.max() <= 10
    for a, b in itertools.combinations(range(len(counts)), 2):
        more, less = (a, b) if counts[a] >= counts[b] else (b, a)
        assert deciles[more] >= deciles[less]
        assert tail[less] >= tail[more]
        if counts[a] == counts[b]:
            assert (deciles[a], tail[a]) == (deciles[b], tail[b])
    assert (~tail).sum() >= max(1, len(counts) // 5)


def test_the_tail_by_hand() -> None:
    assert long_tail(np.array([9, 1, 1, 5, 0, 0, 2, 0, 0, 0])).tolist() == [
        False, True, True, False, *[True] * 6
    ]  # fmt: skip
    assert long_tail(np.array([3, 3, 1]), head=0.1).tolist() == [False, False, True]
    with pytest.raises(InputError, match="head's share is 1"):
        long_tail(np.array([1, 2]), head=1)
