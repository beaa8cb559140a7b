"""Contexts in the score: lifts by hand, and worlds in which a column decides, or says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from towers import Recommender
from towers.context_lifts import ContextColumn, ContextLifts
from towers.context_text import context_texts
from towers.errors import InputError
from training.recommendation.context_part import ContextPart
from training.recommendation.fit import RecommenderSettings, fit_recommender
from training.recommendation.held_out import hold_out
from training.recommendation.user_training import UserTraining

QUICK = RecommenderSettings(user_tower=UserTraining(epochs=0, negatives=16, batch_size=32))
ITEMS = 24


def texts(*values: str | None) -> np.ndarray:
    return np.array([*values, None], object)[:-1]


def test_lifts_by_hand():
    histories = [np.array([0, 1, 0]), np.array([1]), np.array([2, 1]), np.array([0])]
    levels = ["gold"] * 3 + ["gold"] + ["basic"] * 2 + [None]
    # The least that a value needs is 5 events: the same ones, again, of further users.
    part = ContextPart({"level": texts(*levels * 5)}, histories * 5, 4)
    assert part.values == {"level": ["basic", "gold"]}
    taken = np.array([[0, 5, 5, 0], [5, 10, 0, 0]])  # users: one who takes twice counts once
    expected = taken.sum(1, keepdims=True) * taken.sum(0) / taken.sum()
    for pseudo_count in (1.0, 16.0):
        np.testing.assert_allclose(
            part.lifts("level", pseudo_count).toarray(),
            np.log((taken + pseudo_count) / (expected + pseudo_count)),
            rtol=1e-5,
        )
    first = np.arange(35) < 7  # one user each of four
    found = part.lifts("level", 1.0, first).toarray()
    few = taken / 5
    expected = few.sum(1, keepdims=True) * few.sum(0) / few.sum()
    np.testing.assert_allclose(found, np.log((few + 1) / (expected + 1)), rtol=1e-5)


def test_numbers_are_put_into_bands_of_as_many():
    ages = [str(age) for age in range(20, 70)]
    part = ContextPart({"age": texts(*ages, None)}, [np.array([0])] * 51, 2)
    assert part.edges["age"] == pytest.approx((29.8, 39.6, 49.4, 59.2))
    assert part.values["age"][0] == "under 29.8"
    assert len(part.values["age"]) == 5
    few = ContextPart({"flag": texts(*(["0", "1"] * 20))}, [np.array([0])] * 40, 2)
    assert (few.edges["flag"], few.values["flag"]) == (None, ["0", "1"])  # two numbers: categories
    rare = ContextPart({"place": texts(*(["here"] * 5 + ["there"] * 4))}, [np.array([0])] * 9, 2)
    assert rare.values["place"] == ["here"]


def test_a_context_finds_its_values():
    bands = ContextColumn(edges=(10.0, 20.5))
    values = ["level=gold", *(f"age={band}" for band in bands.bands())]
    lifts = ContextLifts({"level": ContextColumn(), "age": bands}, values, np.eye(4))
    assert bands.bands() == ["under 10", "10 to 20.5", "20.5 and over"]
    for age, row in ((9.99, 1), (10, 2), ("20.4", 2), (20.5, 3), ("1e3", 3), (-4, 1)):
        assert list(lifts.rows({"age": age}).values()) == [row]
    assert lifts.rows({"age": "under 10", "level": "gold"}) == {"age=under 10": 1, "level=gold": 0}
    for nothing in ("old", "", None, float("nan"), float("inf"), "1e999"):
        assert lifts.rows({"age": nothing, "other": 3, "level": "tin"}) == {}
    assert context_texts({"a": 1.0, "b": 2, "c": None, "d": "x=y"}) == ["a=1", "b=2", "d=x=y"]


def two_camps(users: int = 160, seed: int = 0, told: bool = True):
    """Two groups of users who take items of their own at random; the column tells the group, or
    nothing."""
    draw = np.random.default_rng(seed)
    group = draw.integers(0, 2, users)
    histories = [draw.choice(ITEMS // 2, 3, replace=False) + ITEMS // 2 * of for of in group]
    shown = group if told else draw.integers(0, 2, users)
    vectors = draw.normal(size=(ITEMS + 1, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = np.repeat(np.array(["dogs", "cats"], object)[shown], 3)
    ids = [f"i{row}" for row in range(ITEMS + 1)]  # of which nobody took the last one
    return histories, ids, ["thing"] * len(ids), vectors, column


def fit(world, **options):
    histories, ids, item_texts, vectors, column = world
    return fit_recommender(
        histories, ids, item_texts, vectors, QUICK, contexts={"pet": column}, seed=1, **options
    )


@pytest.fixture(scope="module")
def fitted():
    return fit(two_camps())


def over(recommender: Recommender, world):
    _, ids, item_texts, vectors, _ = world
    return recommender.over(ids, item_texts, vectors)


def test_who_has_taken_nothing_gets_what_people_like_them_take(fitted):
    shop = over(fitted.recommender, two_camps())
    dogs, cats, nobody, unknown = shop.recommend(
        [[]] * 4, k=10, contexts=[{"pet": "dogs"}, {"pet": "cats"}, {}, {"pet": "fish", "x": "y"}]
    )
    rows = [[int(item_id[1:]) for item_id, _ in of] for of in (dogs, cats)]
    assert all(row < ITEMS // 2 or row == ITEMS for row in rows[0])
    assert all(row >= ITEMS // 2 for row in rows[1])
    assert nobody == unknown == shop.recommend([[]], k=10)[0]
    facts = fitted.as_dict()["context"]["pet"]
    assert facts["users"] >= 100
    assert facts["values"] == ["cats", "dogs"]
    assert facts["alone"] > 0


def test_scores_are_the_formula(fitted):
    learned, world = fitted.recommender, two_camps()
    histories, ids, _, vectors, column = world
    shop = over(learned, world)
    pets = column[::3]
    taken = np.zeros((2, ITEMS + 1))
    for pet, rows in zip(pets, histories, strict=True):
        taken[int(pet == "dogs"), rows] += 1
    expected = taken.sum(1, keepdims=True) * taken.sum(0) / taken.sum()
    a = fitted.context["pet"]["pseudo_count"]
    lifts = np.log((taken + a) / (expected + a))
    # The new item has the mean of its five lenders' lifts, by the cosine to the 8th.
    cosine = (vectors[:ITEMS] @ vectors[ITEMS]).clip(0) ** 8
    cosine[np.argsort(-cosine)[5:]] = 0
    lifts[:, ITEMS] = lifts[:, :ITEMS] @ (cosine / cosine.sum())
    pet = learned.context.columns["pet"]
    given = [{"pet": "dogs"}, {"pet": "cats"}]
    for history, weight in ((np.array([3, 5]), pet.weight), (np.array([], int), pet.alone)):
        added = shop([history] * 2, contexts=given) - shop([history] * 2)
        np.testing.assert_allclose(added, weight * lifts[[1, 0]], rtol=1e-3, atol=1e-4)
    queries = np.zeros((2, len(ids)), np.float32)
    added = shop([[], []], queries, contexts=given) - shop([[], []], queries)
    np.testing.assert_allclose(added, pet.weight * lifts[[1, 0]], rtol=1e-3, atol=1e-4)


def test_a_column_that_says_nothing_adds_next_to_nothing(fitted):
    def most(recommender):
        pet = recommender.context.columns["pet"]
        return max(pet.weight, pet.alone) * np.abs(recommender.context.lifts).max()

    assert most(fit(two_camps(told=False)).recommender) < 0.2 * most(fitted.recommender)


def test_few_with_a_value_do_not_decide():
    histories, ids, item_texts, vectors, column = two_camps()
    column = np.where(np.arange(len(column)) < 3 * 19, column, None)  # of 19 users
    known = fit((histories, ids, item_texts, vectors, column))
    columns = known.recommender.context.columns
    assert (columns["pet"].weight, columns["pet"].alone) == (0, 0)
    without = fit_recommender(histories, ids, item_texts, vectors, QUICK, seed=1).recommender
    assert without.weights == known.recommender.weights
    assert without.context.columns == {}


def test_lifts_are_learned_of_what_came_before():
    """By time: in the last tenth the camps change sides, which must not be known before."""
    days = np.datetime64("2024-01-01", "s") + np.timedelta64(86_400, "s") * np.arange(60)
    histories, *_ = two_camps(60)
    histories = [np.concatenate([rows[:2], [(rows[2] + 12) % ITEMS]]) for rows in histories]
    times = [np.array([days[user % 50], days[user % 50], days[-1]]) for user in range(60)]
    _, _, _, _, column = two_camps(60)
    part = ContextPart({"pet": column}, histories, ITEMS)
    (held,) = hold_out(histories, times, folds=3, seed=0)
    events = part.events(held)
    assert events.reshape(60, 3).all(axis=0).tolist() == [True, True, False]
    lifts = part.lifts("pet", 1.0, events).toarray()
    assert (lifts[1, :12] > 0).all()
    assert (lifts[1, 12:] < 0).all()
    for case, row in enumerate(part.cases(held, "pet")):
        assert part.values["pet"][row] == column[3 * held.users[case]]


def test_values_that_are_new_in_the_held_out_cases_do_not_decide():
    days = np.datetime64("2024-01-01", "s") + np.timedelta64(86_400, "s") * np.arange(60)
    histories, ids, item_texts, vectors, _ = two_camps(60)
    times = [np.array([days[user % 50], days[user % 50], days[-1]]) for user in range(60)]
    month = texts(*["1", "1", "2"] * 60)  # and all held-out cases are of the second
    found = fit((histories, ids, item_texts, vectors, month), times=times)
    column = found.recommender.context.columns["pet"]
    assert (found.context["pet"]["users"], column.weight, column.alone) == (0, 0, 0)


def test_saved_and_loaded_it_is_the_same(fitted, tmp_path):
    world = two_camps()
    fitted.recommender.save(tmp_path / "people")
    again = over(Recommender.load(tmp_path / "people"), world)
    asked = [{"pet": "dogs"}, {"pet": "cats"}]
    for histories in ([[], []], [np.array([1]), np.array([20])]):
        np.testing.assert_array_equal(
            again(histories, contexts=asked),
            over(fitted.recommender, world)(histories, contexts=asked),
        )
    assert again.recommender.facts() == fitted.recommender.facts()
    with pytest.raises(InputError, match="2 histories need as many contexts, not 1"):
        again([[], []], contexts=[{}])
