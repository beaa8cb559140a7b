"""Baselines against their formulas written out with loops or NumPy, and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.recommendation.baselines import (
    Blend,
    Ease,
    Fallback,
    ItemNeighbours,
    Popularity,
    RecentText,
)

N = 5
# Items 0 and 1 are taken together twice, 1 and 2 once; 3 and 4 alone. Repeats count once.
HISTORIES = [np.array(h, np.int32) for h in ([0, 1, 0], [1, 0], [1, 2], [3], [4], [])]
SOME = st.lists(st.lists(st.integers(0, N - 1), max_size=6).map(np.array), min_size=1, max_size=8)


def int_histories(histories: list[np.ndarray]) -> list[np.ndarray]:
    return [history.astype(np.int32) for history in histories]


def matrix(histories: list[np.ndarray]) -> np.ndarray:
    who = np.zeros((len(histories), N))
    for user, history in enumerate(histories):
        who[user, history.astype(int)] = 1
    return who


def test_popularity() -> None:
    scores = Popularity(HISTORIES, N)([np.array([], int), np.array([3])])
    assert scores.tolist() == [[2, 3, 1, 1, 1]] * 2
    assert scores.dtype == np.float32


def test_neighbours_by_hand() -> None:
    # sim(0, 1) = 2 / (sqrt(2 * 3) + 1), sim(1, 2) = 1 / (sqrt(3 * 1) + 1)
    scorer = ItemNeighbours(HISTORIES, N, shrinkage=1)
    near, far = 2 / (6**0.5 + 1), 1 / (3**0.5 + 1)
    histories = [np.array([1]), np.array([0, 2, 0]), np.array([], int), np.array([3])]
    expected = [[near, 0, far, 0, 0], [0, near + far, 0, 0, 0], [0] * 5, [0] * 5]
    np.testing.assert_allclose(scorer(histories), expected, atol=1e-6)
    assert scorer(histories).dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(SOME, SOME, st.floats(0, 20), st.one_of(st.none(), st.integers(1, 4)))
def test_neighbours_by_the_formula(
    train: list[np.ndarray], test: list[np.ndarray], shrinkage: float, neighbours: int | None
) -> None:
    who = matrix(train)
    similarity = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            if i != j and (who[:, i] * who[:, j]).any():
                both = (who[:, i] * who[:, j]).sum()
                similarity[i, j] = both / (np.sqrt(who[:, i].sum() * who[:, j].sum()) + shrinkage)
    similarity = similarity.astype(np.float32)
    if neighbours is not None:
        for j in range(N):
            # Of equally similar items the first ones are kept.
            similarity[np.argsort(-similarity[:, j], kind="stable")[neighbours:], j] = 0
    scorer = ItemNeighbours(int_histories(train), N, shrinkage=shrinkage, neighbours=neighbours)
    np.testing.assert_allclose(
        scorer(int_histories(test)), matrix(test) @ similarity, rtol=1e-5, atol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(SOME, st.floats(0.5, 50))
def test_ease_is_the_solution_of_its_problem(train: list[np.ndarray], l2: float) -> None:
    """Each column alone: ridge regression of an item on all others (Steck 2019, section 3)."""
    who = matrix(train)
    weights = np.zeros((N, N))
    for item in range(N):
        others = [other for other in range(N) if other != item]
        features = who[:, others]
        weights[others, item] = np.linalg.solve(
            features.T @ features + l2 * np.eye(N - 1), features.T @ who[:, item]
        )
    np.testing.assert_allclose(Ease(int_histories(train), N, l2=l2).weights, weights, atol=1e-5)
    np.testing.assert_allclose(
        Ease(int_histories(train), N, l2=l2)(int_histories(train)), who @ weights, atol=1e-5
    )


def test_the_mean_of_recent_text() -> None:
    items = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    histories = [np.array([0, 1]), np.array([2]), np.array([], int), np.array([1, 0, 0])]
    means = np.array([[0.5, 1], [0.6, 0.8], [0, 0], [1.5, 0.25]])
    norms = np.array([1.25**0.5, 1, 1, (1.5**2 + 0.25**2) ** 0.5])[:, None]
    np.testing.assert_allclose(
        RecentText(items, decay=0.5)(histories), means / norms @ items.T, atol=1e-6
    )
    latest, plain = (RecentText(items, decay=decay)([np.array([0, 0, 1])]) for decay in (0, 1))
    np.testing.assert_allclose(latest[0], items @ items[1], atol=1e-6)
    np.testing.assert_allclose(plain[0], items @ [2, 1] / 5**0.5, atol=1e-6)


def test_a_blend_knows_no_scale() -> None:
    one = lambda histories: np.array([[1, 2, 3]] * len(histories), np.float32)  # noqa: E731
    other = lambda histories: np.array([[9, 0, 0]] * len(histories), np.float32)  # noqa: E731
    larger = lambda histories: other(histories) * 1000 - 7  # noqa: E731
    silent = lambda histories: np.full((len(histories), 3), 4, np.float32)  # noqa: E731
    histories = [np.array([0])] * 2
    # By hand: [1, 2, 3] has standard deviation sqrt(2 / 3), [9, 0, 0] has sqrt(18).
    expected = 0.75 * np.array([-1, 0, 1]) / (2 / 3) ** 0.5 + 0.25 * np.array([6, -3, -3]) / 18**0.5
    for second in (other, larger):
        scores = Blend((one, 0.75), (second, 0.25), (silent, 3))(histories)
        np.testing.assert_allclose(scores, [expected] * 2, atol=1e-6)


def test_who_is_not_known_gets_the_fallback() -> None:
    scorer = Fallback(ItemNeighbours(HISTORIES, N), Popularity(HISTORIES, N))
    scores = scorer([np.array([1]), np.array([], int), np.array([3])])
    assert np.array_equal(scores[:1], ItemNeighbours(HISTORIES, N)([np.array([1])]))
    assert scores[1:].tolist() == [[2, 3, 1, 1, 1]] * 2  # nobody took item 3 with another one


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ItemNeighbours(HISTORIES, N, shrinkage=-1), "shrinkage is -1, expected 0 or more"),
        (lambda: ItemNeighbours(HISTORIES, N, neighbours=0), "neighbours is 0, expected 1 or more"),
        (lambda: Ease(HISTORIES, N, l2=0), "l2 is 0, expected a number above 0"),
        (lambda: RecentText(np.eye(2), decay=2), "decay is 2, expected a number from 0 to 1"),
    ],
)
def test_bad_settings(make: object, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make()
