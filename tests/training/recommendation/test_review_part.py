"""Reviews in the score: the formula, what was known when, and the weight that they get."""

from __future__ import annotations

import json

import numpy as np
import pytest

from towers import Recommender
from towers.errors import InputError
from towers.recommender import REVIEWS_TO_TEXT
from towers.review_sentiment import ReviewSentiment
from training.catalog import Catalog
from training.histories import Histories
from training.recommendation.fit import RecommenderSettings, fit_recommender
from training.recommendation.review_part import ReviewPart, UserReviews
from training.recommendation.user_training import UserTraining
from training.reviews import Reviews

ITEMS = 40
DIM = 16
QUICK = RecommenderSettings(user_tower=UserTraining(epochs=0))


@pytest.fixture(scope="module")
def vectors():
    draw = np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32)
    return draw / np.linalg.norm(draw, axis=1, keepdims=True)


@pytest.fixture
def shop(tmp_path):
    """Writes files and joins them: (histories, reviews) to what `fit_recommender` is given."""
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("item_id,title\n" + "".join(f"i{n},thing\n" for n in range(ITEMS)))

    def join(histories: str, reviews: str, name: str = "h.jsonl") -> tuple[Histories, UserReviews]:
        products = Catalog.read(catalog)
        (tmp_path / name).write_text(histories)
        (tmp_path / "reviews.csv").write_text(reviews)
        people = Histories.read(tmp_path / name, products)
        return people, UserReviews.of(Reviews.read(tmp_path / "reviews.csv", products), people)

    return join


def test_user_vector_is_the_formula():
    draw = np.random.default_rng(1)
    reviews = draw.normal(size=(6, DIM)).astype(np.float32)
    kernel, bias = draw.normal(size=DIM).astype(np.float32), 0.4
    ratings = np.array([5, 1, 3, 0, np.nan, 2.5])
    praise = 1 / (1 + np.exp(-(reviews @ kernel + bias)))
    by_text = praise - (1 - praise)
    assert by_text[3] * by_text[4] < 0  # one of either kind
    s = np.array([1, -1, 0, by_text[3], by_text[4], -0.25])
    s = np.where(s < 0, s / 4, s)
    expected = (s[:, None] * reviews).sum(axis=0) / np.abs(s).sum()
    sentiment = ReviewSentiment(kernel, bias)
    nothing = np.zeros((0, DIM), np.float32)
    found = sentiment.user_vectors([reviews, nothing, reviews[2:3]], [ratings, [], [3]])
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert not found[1:].any()  # nothing written, and nothing said
    assert sentiment(reviews[:3], np.array([9.0, -2, 4])).tolist() == [1, -0.25, 0.5]


def test_an_unlearned_tone_is_mildly_liked():
    sentiment = ReviewSentiment.unlearned(DIM)
    found = sentiment(np.ones((2, DIM), np.float32), np.array([0, np.nan]))
    np.testing.assert_allclose(found, [0.5, 0.5], rtol=1e-6)


def test_known_is_what_was_written_before_of_other_items(shop):
    lists = (
        '{"user_id": "ann", "items": ["i1", "i2", "i3", "i2"]}\n{"user_id": "bob", "items": []}\n'
    )
    reviews = "user_id,item_id,review\nann,i1,a\nann,i3,b\nann,i2,c\nzoe,i1,d\nann,i9,e\n"
    people, written = shop(lists, reviews)
    history = people.items(0)
    assert [rows.tolist() for rows in written.of_user] == [[0, 1, 2, 4], []]
    assert written.known(0, history, 1, history[1]).tolist() == [0]  # i2 is next
    assert written.known(0, history, 2, history[2]).tolist() == [0, 2]  # i3 is next
    assert written.known(0, history, 3, history[3]).tolist() == [
        0,
        1,
    ]  # i2 again: its review is no hint


def test_known_by_time(shop):
    rows = "user_id,item_id,timestamp\nann,i1,10\nann,i2,20\nann,i3,30\n"
    reviews = (
        "user_id,item_id,review,timestamp\n"
        "ann,i1,on time,15\nann,i1,after i2,25\nann,i9,of another item,5\nann,i3,ahead,1\n"
        "ann,i1,at the same second,20\nann,i1,no time,\nann,i2,no time,\n"
    )
    people, written = shop(rows, reviews, "h.csv")
    history = people.items(0)
    assert written.known(0, history, 1, history[1]).tolist() == [0, 2, 3, 5]
    assert written.known(0, history, 2, history[2]).tolist() == [0, 1, 2, 4, 5, 6]
    assert written.known(0, history, 1, 3).tolist() == [0, 2, 5]  # i3 is looked for, after i2


def reviewed_world(shop, vectors, of: str, *, users: int = 60):
    """Random histories; a user's review has the vector of the next item, and nothing else has."""
    draw = np.random.default_rng(3)
    lines, rows, told = [], [], {}
    for user in range(users):
        items = draw.permutation(ITEMS)[:2]
        lines.append(json.dumps({"user_id": f"u{user}", "items": [f"i{n}" for n in items]}))
        rows.append(f"u{user},i{items[0 if of == 'past' else 1]},review {user},5")
        told[f"review {user}"] = vectors[items[1]]
    table = "user_id,item_id,review,rating\n" + "\n".join(rows) + "\n"
    people, written = shop("\n".join(lines) + "\n", table)

    def encode(texts):
        return np.array([told[text] for text in texts], np.float32).reshape(-1, DIM)

    ids = [f"i{n}" for n in range(ITEMS)]
    settings = {"reviews": written, "encode_reviews": encode, "seed": 1}
    return fit_recommender(
        people.sequences(), ids, ["thing"] * ITEMS, vectors, QUICK, **settings
    ), ids


def test_reviews_that_tell_get_weight(shop, vectors):
    fit, ids = reviewed_world(shop, vectors, "past")
    weights = fit.recommender.weights
    assert fit.reviewers == 60
    assert weights.reviews > 5 * weights.text
    assert fit.log_likelihood > fit.uniform + 1
    over = fit.recommender.over(ids, ["thing"] * ITEMS, vectors)
    wanted = fit.recommender.review_vectors([vectors[7:8], vectors[7:8]], [[5], [1]])
    best = over.recommend([[], []], k=ITEMS, review_vectors=wanted)
    assert best[0][0][0] == "i7"
    assert best[1][-1][0] == "i7"  # pushed away


def test_a_review_of_the_item_that_is_looked_for_does_not_count(shop, vectors):
    fit, _ = reviewed_world(shop, vectors, "target")
    weights = fit.recommender.weights
    assert fit.reviewers == 0
    assert weights.reviews == pytest.approx(REVIEWS_TO_TEXT * weights.text)
    # Two random items: nothing can be known of the second but that it is not the first.
    assert fit.log_likelihood < fit.uniform + 0.3


def test_few_reviewers_get_the_multiple_of_the_text(shop, vectors):
    fit, _ = reviewed_world(shop, vectors, "past", users=15)
    assert fit.reviewers == 0
    assert fit.recommender.weights.reviews == REVIEWS_TO_TEXT * fit.recommender.weights.text


def test_scores_are_the_formula_and_the_same_after_loading(shop, vectors, tmp_path):
    fit, ids = reviewed_world(shop, vectors, "past")
    draw = np.random.default_rng(5)
    written = [draw.normal(size=(count, DIM)).astype(np.float32) for count in (3, 0)]
    ratings = [[4, 0, 1], []]
    fit.recommender.sentiment = ReviewSentiment(vectors[0], -0.5)
    fit.recommender.save(tmp_path / "people")
    for learned in (fit.recommender, Recommender.load(tmp_path / "people")):
        over = learned.over(ids, ["thing"] * ITEMS, vectors)
        histories = [np.array([3, 4]), np.array([9])]
        found = over(histories, review_vectors=learned.review_vectors(written, ratings))
        s = np.array([0.5, np.tanh((written[0][1] @ vectors[0] - 0.5) / 2), -1])
        s = np.where(s < 0, s / 4, s)
        part = (s @ written[0] @ vectors.T) / np.abs(s).sum()
        np.testing.assert_allclose(
            found[0], over(histories)[0] + learned.weights.reviews * part, rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(found[1], over(histories)[1], atol=1e-5)


def test_a_recommender_from_before_reviews_and_recent_events_loads(shop, vectors, tmp_path):
    fit, _ = reviewed_world(shop, vectors, "past")
    fit.recommender.save(tmp_path / "old")
    path = tmp_path / "old" / "recommender.json"
    settings = json.loads(path.read_text())
    del settings["sentiment_bias"], settings["weights"]["reviews"]
    path.write_text(json.dumps(settings))
    arrays = dict(np.load(tmp_path / "old" / "items.npz"))
    del arrays["sentiment"], arrays["recent"]
    np.savez_compressed(tmp_path / "old" / "items.npz", **arrays)
    old = Recommender.load(tmp_path / "old")
    assert old.weights.reviews == REVIEWS_TO_TEXT * old.weights.text
    assert old.sentiment(vectors[:1], np.array([0.0]))[0] == pytest.approx(0.5)
    np.testing.assert_array_equal(old.recent, fit.recommender.counts)


def test_tone_is_learned_from_ratings_of_others(shop):
    """Praise points one way, complaint the other; the user left out gave all the wrong ratings."""
    draw = np.random.default_rng(8)
    tone = np.repeat([1.0, -1.0], 40)
    told = draw.normal(size=(90, 4)) * 0.3
    told[:80, 0] += tone
    told[80:, 0] += 1
    told = (told / np.linalg.norm(told, axis=1, keepdims=True)).astype(np.float32)
    rows = [f"w{n},i1,{n},{4 if t > 0 else 2}" for n, t in enumerate(tone)]
    rows += [f"ann,i1,{n},1" for n in range(80, 90)]
    _, written = shop(
        '{"user_id": "ann", "items": ["i1", "i2"]}\n',
        "user_id,item_id,review,rating\n" + "\n".join(rows) + "\n",
    )
    part = ReviewPart(written, np.array([0]), lambda texts: told[[int(x) for x in texts]])
    none = np.full(90, np.nan)
    found = part.sentiment(without=[0])(told, none)
    assert (np.sign(found[:80]) == tone).mean() > 0.9
    assert (found[80:] > 0).mean() > 0.9
    assert part.sentiment()(told, none)[80:].mean() < found[80:].mean()


def test_few_complaints_teach_no_tone(shop):
    rows = [f"w{n},i1,{n},{1 if n < 7 else 5}" for n in range(60)]
    _, written = shop(
        '{"user_id": "ann", "items": ["i1", "i2"]}\n',
        "user_id,item_id,review,rating\n" + "\n".join(rows) + "\n",
    )
    draw = np.random.default_rng(0)
    part = ReviewPart(
        written, np.array([0]), lambda texts: draw.normal(size=(len(texts), 4)).astype(np.float32)
    )
    assert not part.sentiment().kernel.any()


def test_wrong_input_is_named(shop, vectors):
    fit, ids = reviewed_world(shop, vectors, "past", users=15)
    over = fit.recommender.over(ids, ["thing"] * ITEMS, vectors)
    with pytest.raises(InputError, match="as many ratings"):
        fit.recommender.review_vectors([vectors[:2]], [[5]])
    with pytest.raises(InputError, match=r"must be \(2, 16\)"):
        over.recommend([[], []], review_vectors=np.zeros((1, DIM), np.float32))
