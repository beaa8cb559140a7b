"""Evaluation of recommenders: one by hand, properties, and debiasing."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from towers.errors import InputError
from training.recommendation.baselines import ItemNeighbours, Popularity
from training.recommendation.debiasing import LogQ, Reranked, trade_off
from training.recommendation.evaluation import evaluate_recommendations, recommend
from training.recommendation.splits import Cases

COUNTS = np.array([8, 4, 2, 1, 0])


def constant(*scores: float) -> object:
    return lambda histories: np.array([scores] * len(histories), np.float32)


def rows(*lists: Sequence[int]) -> list[np.ndarray]:
    return [np.array(items, np.int32) for items in lists]


@pytest.fixture
def cases() -> Cases:
    return Cases(["ann", "bob", "cat"], rows([0], [], [4, 3, 4]), rows([1, 4], [3], [0]))


@pytest.fixture(scope="module")
def shop() -> tuple[list[np.ndarray], Cases]:
    """Users of three kinds, each with items of their own; some items sell to everyone."""
    draw = np.random.default_rng(0)

    def history(kind: int) -> np.ndarray:
        own = draw.choice(np.arange(4 + kind * 20, 24 + kind * 20), 8, replace=False)
        return draw.permutation(np.concatenate([own, draw.choice(4, 2, replace=False)]))

    users = [history(user % 3) for user in range(150)]
    test = [history(user % 3) for user in range(60)]
    return users, Cases(
        [str(user) for user in range(60)], [h[:-2] for h in test], [np.sort(h[-2:]) for h in test]
    )


def test_lists_without_what_was_seen() -> None:
    scorer = constant(5, 4, 3, 2, 1)
    assert recommend(scorer, rows([0, 2], [], [0, 1, 2, 3, 4]), 3).tolist() == [
        [1, 3, 4],
        [0, 1, 2],
        [-1, -1, -1],
    ]
    assert recommend(scorer, rows([0, 2]), 9, exclude_seen=False).tolist() == [[0, 1, 2, 3, 4]]
    assert recommend(scorer, [], 2).shape == (0, 2)


def test_equal_scores_come_in_no_order_of_the_catalogue() -> None:
    scorer = constant(*[0] * 50, 1)
    first = [recommend(scorer, rows([]), 2, seed=seed)[0].tolist() for seed in range(20)]
    assert {best for best, _ in first} == {50}
    assert len({second for _, second in first}) > 10
    users = recommend(scorer, rows(*[[]] * 300), 2)
    assert len(np.unique(users, axis=0)) == 1  # the same for everyone, in every block of users


def test_by_hand(cases: Cases) -> None:
    items = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
    evaluation = evaluate_recommendations(
        constant(5, 4, 3, 2, 1),
        cases,
        COUNTS,
        trained_users=15,
        cutoffs=(2,),
        items=items,
        groups={"age": ["old", None, "old"], "country": ["a", "b", "a"]},
    )
    # ann is shown 1 and 2, bob and cat 0 and 1. The head is item 0, the tail all others.
    assert evaluation.rows.tolist() == [[1, 2], [0, 1], [0, 1]]
    second = 1 / np.log2(3)
    expected = {
        "R@2": [0.5, 0, 1],
        "nDCG@2": [1 / (1 + second), 0, 1],
        "R@2 tail": [0.5, 0, np.nan],
        # Ranks from the least popular: 4 of 5 items are in decile 8, 2, 4, the first in decile 10.
        "R@2 decile 10": [np.nan, np.nan, 1],
        "R@2 decile 8": [1, np.nan, np.nan],
        "R@2 decile 6": [np.nan] * 3,
        "R@2 decile 4": [np.nan, 0, np.nan],
        "R@2 decile 2": [0, np.nan, np.nan],
        "Popularity@2": [3, 6, 6],
        "Novelty@2": [4 - np.log2(15) / 2, 4 - np.log2(45) / 2, 4 - np.log2(45) / 2],
        "Diversity@2": [0, 1, 1],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(evaluation.per_user[name], values, err_msg=name)
    assert evaluation.catalog == {"Coverage@2": 3 / 5, "Gini@2": pytest.approx(8 / 15)}
    by_age = evaluation.by_group("age", "R@2")
    assert {group: (e.mean, e.users) for group, e in by_age.items()} == {"old": (0.75, 2)}
    assert list(evaluation.by_group("country", "R@2")) == ["a", "b"]

    written = json.loads(json.dumps(evaluation.as_dict(), allow_nan=False))
    assert written["users"] == 3
    assert written["measures"]["R@2"]["mean"] == 0.5
    assert written["measures"]["R@2"]["interval_95"] == [0.0, 1.0]
    assert written["measures"]["R@2 tail"]["users"] == 2
    assert written["measures"]["R@2 decile 6"] is None
    assert written["groups"]["country"]["nDCG@2"]["b"] == {
        "mean": 0.0,
        "interval_95": [0.0, 0.0],
        "users": 1,
    }


def test_the_parts_make_the_whole(shop: tuple[list[np.ndarray], Cases]) -> None:
    users, cases = shop
    popularity = Popularity(users, 64)
    found = evaluate_recommendations(
        ItemNeighbours(users, 64, shrinkage=0),
        cases,
        popularity.counts,
        trained_users=len(users),
        cutoffs=(5,),
        groups={"kind": [str(int(user) % 3) for user in cases.users]},
    )
    estimates = found.by_group("kind", "R@5").values()
    whole = found.estimate("R@5")
    assert sum(e.users for e in estimates) == whole.users == 60
    assert sum(e.users * e.mean for e in estimates) == pytest.approx(60 * whole.mean)
    assert all(e.interval_95[0] <= e.mean <= e.interval_95[1] for e in [*estimates, whole])
    # What neighbours know, popularity does not.
    other = evaluate_recommendations(
        popularity, cases, popularity.counts, trained_users=len(users), cutoffs=(5,)
    )
    assert other.estimate("Popularity@5").mean > found.estimate("Popularity@5").mean
    assert other.estimate("R@5 tail").mean < found.estimate("R@5 tail").mean
    assert other.catalog["Coverage@5"] < found.catalog["Coverage@5"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"cutoffs": ()}, r"cutoffs are \[\]"),
        ({"cutoffs": (0,)}, r"cutoffs are \[0\], expected numbers of 1 or more"),
        ({"groups": {"age": ["old"]}}, "'age' has 1 users, the cases 3"),
    ],
)
def test_bad_arguments(cases: Cases, arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        evaluate_recommendations(constant(*range(5)), cases, COUNTS, trained_users=9, **arguments)


def test_bad_scorers(cases: Cases) -> None:
    with pytest.raises(InputError, match=r"scores have shape \[1, 5\], expected \[3, items\]"):
        recommend(lambda histories: np.zeros((1, 5), np.float32), cases.histories, 2)
    with pytest.raises(InputError, match="scores of user 0 are not finite"):
        recommend(constant(0, np.nan), cases.histories, 2)
    with pytest.raises(InputError, match="k is 0"):
        recommend(constant(0, 1), cases.histories, 0)
    none = cases.select(np.zeros(3, bool))
    with pytest.raises(InputError, match="no users to recommend to"):
        evaluate_recommendations(constant(0, 1), none, COUNTS, trained_users=9)


def test_logq_makes_of_a_softmax_the_mutual_information() -> None:
    """Users of two kinds: log p(item | kind) - log p(item), up to a constant."""
    counts = np.array([30, 10, 20])
    given_kind = np.log(np.array([0.5, 0.125, 0.375])).astype(np.float32)
    corrected = LogQ(constant(*given_kind), counts, 1.0)(rows([0]))[0]
    expected = given_kind - np.log((counts + 1) / 63)
    np.testing.assert_allclose(corrected, expected, rtol=1e-5)
    unchanged = LogQ(constant(*given_kind), counts, 0.0)(rows([0]))[0]
    assert np.array_equal(unchanged, given_kind)


def test_reranking_by_hand() -> None:
    # Candidates without the seen item 0: items 1 and 2. Two values are standardised to 1 and -1.
    scorer = constant(9, 5, 4, 3, 2)
    for strength, best in ((0, [1, 2]), (0.9, [1, 2]), (1.1, [2, 1]), (50, [2, 1])):
        changed = Reranked(scorer, COUNTS, strength, candidates=2)
        assert recommend(changed, rows([0]), 5)[0].tolist() == [*best, 3, 4, -1]
    with pytest.raises(InputError, match="candidates is 0"):
        Reranked(scorer, COUNTS, 1, candidates=0)


@pytest.mark.parametrize("candidates", [10, 1000])
def test_reranking_with_strength_0_changes_nothing(
    shop: tuple[list[np.ndarray], Cases], candidates: int
) -> None:
    users, cases = shop
    scorer = ItemNeighbours(users, 64, shrinkage=0)
    counts = Popularity(users, 64).counts
    changed = Reranked(scorer, counts, 0.0, candidates=candidates)
    before, after = recommend(scorer, cases.histories, 5), recommend(changed, cases.histories, 5)
    assert np.array_equal(before, after)


def test_the_trade_off(shop: tuple[list[np.ndarray], Cases]) -> None:
    users, cases = shop
    popularity = Popularity(users, 64)
    scorer = ItemNeighbours(users, 64, shrinkage=0)
    strengths = (0.0, 0.5, 2.0, 8.0)
    for make in (
        lambda strength: Reranked(scorer, popularity.counts, strength, candidates=64),
        lambda strength: LogQ(scorer, popularity.counts, strength),
    ):
        curve = trade_off(
            make, strengths, cases, popularity.counts, trained_users=150, k=5, items=np.eye(64)
        )
        assert [point["strength"] for point in curve] == list(strengths)
        shown = [point["Popularity@5"] for point in curve]
        assert shown == sorted(shown, reverse=True)
        assert shown[-1] < shown[0]
        assert curve[-1]["Novelty@5"] > curve[0]["Novelty@5"]
        assert all(point["Diversity@5"] == pytest.approx(1) for point in curve)
        assert {"R@5", "nDCG@5", "R@5 tail", "Coverage@5", "Gini@5"} <= set(curve[0])
    whole = evaluate_recommendations(
        scorer, cases, popularity.counts, trained_users=150, cutoffs=(5,)
    )
    assert curve[0]["R@5"] == whole.estimate("R@5").mean
