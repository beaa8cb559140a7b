"""Shares of recommendations against the recommender's own scores, and against leaving items out."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse as sp

from towers import InputError, Recommender, UserTower
from towers.context_lifts import ContextColumn, ContextLifts
from towers.explain import HISTORY_PARTS, explain_recommendations, history_shares
from towers.item_neighbours import ItemNeighbours
from towers.recommender import BlendWeights, CatalogRecommender
from towers.review_sentiment import ReviewSentiment

ITEMS, DIM = 12, 8
IDS = [f"i{row}" for row in range(ITEMS)]
WORDS = ["red", "mug", "blue", "rake", "cat", "post", "dog", "bed", "hose", "tin", "lid", "cup"]
TEXTS = [f"{WORDS[row]} {WORDS[row // 2]} {WORDS[row // 4]}" for row in range(ITEMS)]
WEIGHTS = BlendWeights(2.0, 1.5, 0.7, popularity=0.3, query=4.0, reviews=0.9)
HISTORY = ["i3", "gone", "i1", "i8", "i1"]


def shop(weights: BlendWeights = WEIGHTS, *, decay: float = 0.6) -> CatalogRecommender:
    """A recommender whose every part says something, over items the last two of which are new."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tower = UserTower(DIM, decay=decay, attention_dim=4)
    for weight in tower.weights[1:]:
        weight.assign(weight + random.normal(size=weight.shape, scale=0.5))
    known = ITEMS - 2
    together = random.random((known, known)).astype(np.float32)
    counts = random.integers(1, 20, known)
    lifts = sp.csr_matrix(random.normal(size=(2, known)).astype(np.float32))
    columns = {"level": ContextColumn(0.8, 1.7)}
    context = ContextLifts(columns, ["level=gold", "level=tin"], lifts)
    learned = Recommender(
        tower,
        weights,
        IDS[:known],
        ItemNeighbours.of_dense(together, 5),
        counts,
        counts.astype(np.float32),
        ReviewSentiment.unlearned(DIM),
        decay,
        max_history=4,
        context=context,
    )
    return learned.over(IDS, TEXTS, vectors)


def scores(over: CatalogRecommender, **given: np.ndarray) -> np.ndarray:
    """Of the history, by the recommender's own call, float64 [items]."""
    return over([over.rows(HISTORY)], **given)[0].astype(np.float64)


def explained(over: CatalogRecommender, history: list[str] = HISTORY, **given: np.ndarray) -> list:
    return explain_recommendations(over, TEXTS, history, IDS, **given)


def test_the_shares_add_up_to_the_score() -> None:
    over = shop()
    found = explained(over)
    assert [one.history for one in found] == [["i3", "i1", "i8", "i1"]] * ITEMS
    np.testing.assert_allclose([one.score for one in found], scores(over), atol=1e-5)
    query = np.linspace(0, 1, ITEMS, dtype=np.float32)
    review = np.linspace(-1, 1, DIM, dtype=np.float32)
    found = explained(over, query_scores=query, review_vector=review)
    expected = scores(over, query_scores=query[None], review_vectors=review[None])
    np.testing.assert_allclose([one.score for one in found], expected, atol=1e-5)
    np.testing.assert_allclose([one.query for one in found], 4 * query, rtol=1e-6)
    assert {one.popularity for one in found} == {0.0}  # a query takes its place
    reviews = over.embeddings @ review * 0.9
    np.testing.assert_allclose([one.reviews for one in found], reviews, atol=1e-6)


@pytest.mark.parametrize("history", [HISTORY, ["gone"]])
def test_a_context_is_explained_by_its_values(history: list[str]) -> None:
    over, context = shop(), {"level": "tin", "other": "thing"}
    found = explained(over, history, context=context)
    rows = [over.rows(history)]
    expected = over(rows, contexts=[context])[0]
    np.testing.assert_allclose([one.score for one in found], expected, atol=1e-5)
    added = expected - over(rows)[0]
    np.testing.assert_allclose([one.parts()["context"] for one in found], added, atol=1e-5)
    assert [list(one.as_dict()["context"]) for one in found] == [["level=tin"]] * ITEMS
    assert explained(over, history)[0].context is None


@pytest.mark.parametrize("part", [*HISTORY_PARTS, "popularity"])
def test_each_part_is_what_the_score_is_with_its_weight_alone(part: str) -> None:
    nothing = dict.fromkeys(vars(WEIGHTS), 0.0)
    alone = shop(BlendWeights(**nothing | {part: getattr(WEIGHTS, part)}))
    found = [one.parts()[part] for one in explained(shop())]
    np.testing.assert_allclose(found, scores(alone), atol=1e-5)
    assert np.abs(found).max() > 0.1


def test_where_parts_are_sums_a_share_is_what_leaving_out_costs() -> None:
    # Without decay r_p is 1 / 4: without one of four, the other three weigh 4 / 3 as much.
    over = shop(dataclasses.replace(WEIGHTS, text=0.0, popularity=0.0), decay=1.0)
    rows = over.rows(HISTORY)
    for item in (0, 5, ITEMS - 1):
        shares = explained(over)[item].shares.sum(axis=1)
        losses = history_shares(over, rows, item)
        np.testing.assert_allclose(losses, shares - (shares.sum() - shares) / 3, atol=1e-5)
        assert shares.max() > 0.01


def test_the_past_item_of_the_text_part_is_the_one_that_is_alike() -> None:
    vectors = np.eye(ITEMS, DIM, dtype=np.float32)
    vectors[DIM:] = 1 / np.sqrt(DIM)
    vectors[2] = (vectors[0] + vectors[1]) / np.sqrt(2)
    learned = Recommender(
        UserTower(DIM, decay=0.5),
        BlendWeights(3.0),
        IDS,
        ItemNeighbours.none(ITEMS),
        np.ones(ITEMS),
        np.ones(ITEMS, np.float32),
        ReviewSentiment.unlearned(DIM),
    )
    over = learned.over(IDS, TEXTS, vectors)
    found = explain_recommendations(over, TEXTS, ["i0", "i1"], ["i2"])[0]
    # Weights 1/3 and 2/3 of unit vectors at right angles: the mean is sqrt(5)/3 long.
    expected = 3 * np.array([1 / 3, 2 / 3]) / np.sqrt(2) / (np.sqrt(5) / 3)
    np.testing.assert_allclose(found.shares[:, 0], expected, rtol=1e-6)
    assert not found.shares[:, 1:].any()


def test_a_history_of_nothing_known_leaves_popularity() -> None:
    over = shop()
    for one, prior in zip(explained(over, ["gone"]), over.prior, strict=True):
        assert (one.history, one.shares.shape) == ([], (0, 3))
        assert one.score == pytest.approx(prior)


def test_as_json() -> None:
    found = explained(shop())[5]
    written = json.loads(json.dumps(found.as_dict()))
    assert list(written["parts"]) == [*HISTORY_PARTS, "popularity"]
    assert sum(written["parts"].values()) == pytest.approx(written["score"])
    assert [one["item_id"] for one in written["history"]] == found.history
    for past in written["history"]:
        assert past["share"] == pytest.approx(sum(past[part] for part in HISTORY_PARTS))


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="lacks the item 'gone'"):
        explain_recommendations(shop(), TEXTS, HISTORY, ["i1", "gone"])
    with pytest.raises(InputError, match="12 items need as many texts, not 1"):
        explain_recommendations(shop(), TEXTS[:1], HISTORY, ["i1"])
