"""Co-occurrence, blend and the whole fit, against formulas and hand-made worlds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from towers import Recommender
from towers.errors import InputError
from towers.item_neighbours import ItemNeighbours, word_neighbours
from towers.recommender import newest, popularity_prior, recency_matrix
from towers.review_sentiment import ReviewSentiment
from training.recommendation.blend import choose_blend, fit_blend
from training.recommendation.choices import choose_settings
from training.recommendation.co_occurrence import fit_co_occurrence
from training.recommendation.fit import RecommenderSettings, fit_recommender
from training.recommendation.held_out import hold_out
from training.recommendation.popularity import recent_counts
from training.recommendation.ranks import next_ranks
from training.recommendation.user_training import UserTraining

QUICK = UserTraining(epochs=2, negatives=16, batch_size=32)


def world(users: int = 120, seed: int = 0):
    """Items in chains 0-1-2-3, 4-5-6-7, ...: who takes one takes the next. Texts are all alike."""
    draw = np.random.default_rng(seed)
    starts = 4 * draw.integers(0, 10, users) + draw.integers(0, 2, users)
    histories = [start + np.arange(3) for start in starts]
    vectors = draw.normal(size=(42, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return histories, [f"i{row}" for row in range(42)], ["thing"] * 42, vectors


@pytest.mark.parametrize("users", [6, 60])  # fewer and more than items: both ways to invert
def test_co_occurrence_is_the_constrained_least_squares(users):
    draw = np.random.default_rng(users)
    histories = [draw.permutation(12)[: draw.integers(2, 6)] for _ in range(users)]
    x = np.zeros((users, 12))
    for user, rows in enumerate(histories):
        x[user, rows] = 1
    expected = np.zeros((12, 12))
    for j in range(12):  # each column by itself: ridge on all other items
        others = np.delete(np.arange(12), j)
        gram = x[:, others].T @ x[:, others] + 2.0 * np.eye(11)
        expected[others, j] = np.linalg.solve(gram, x[:, others].T @ x[:, j])
    found = fit_co_occurrence(histories, 12, strength=2.0).matrix().toarray()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_co_occurrence_keeps_the_largest_and_leaves_out_the_rare():
    histories = [np.array([0, 1])] * 5 + [np.array([0, 2])] * 3 + [np.array([3, 4])]
    found = fit_co_occurrence(histories, 6, strength=1.0, neighbours=1, max_items=3)
    assert found.rows[0].tolist() == [1]
    assert (found.rows[3:] == -1).all()
    assert fit_co_occurrence([np.array([1])], 3).rows.shape == (3, 0)


def test_largest_entries_of_a_matrix_of_either_sign():
    matrix = np.array([[9.0, 1, 3, -2], [0, 9, 0, 0], [2, 1, 9, 4], [0, 0, -5, 9]])
    for found in (
        ItemNeighbours.largest(sp.csr_matrix(matrix), 2),
        ItemNeighbours.of_dense(matrix, 2),
    ):
        expected = [[0, 0, 3, -2], [0, 0, 0, 0], [2, 0, 0, 4], [0, 0, -5, 0]]
        np.testing.assert_array_equal(found.matrix().toarray(), expected)


def test_neighbours_move_to_another_catalogue():
    near = ItemNeighbours(
        np.array([[1, 2], [0, -1], [0, -1]]), np.array([[2.0, 1], [3, 0], [4, 0]])
    )
    moved = near.moved(np.array([3, -1, 0]), 5).matrix().toarray()
    expected = np.zeros((5, 5))
    expected[3, 0], expected[0, 3] = 1.0, 4.0
    np.testing.assert_array_equal(moved, expected)


def test_words_find_the_same_series():
    texts = ["HP 74 ink black", "HP 75 ink colour", "garden rake", "HP 74 ink colour pack"]
    near = word_neighbours(texts, count=2)
    assert near.rows[0][0] == 3
    assert 2 not in near.rows[0]
    assert word_neighbours(["", "."]).rows.shape == (2, 0)


def test_recency_weights_by_hand():
    found = recency_matrix([np.array([2, 0, 2]), np.array([], int)], 0.5, 3).toarray()
    np.testing.assert_allclose(found, [[2 / 7, 0, 5 / 7], [0, 0, 0]], rtol=1e-6)
    assert newest(np.array([-1, 4, 5, -1, 6]), 2).tolist() == [5, 6]


def test_prior_of_an_uncounted_item_is_the_mean():
    found = popularity_prior(np.array([0, 1, 3]))
    np.testing.assert_allclose(found, [np.log(8) / 2, np.log(2), np.log(4)], rtol=1e-6)
    assert (popularity_prior(np.zeros(3, int)) == 0).all()


def test_ranks_leave_out_the_seen_and_halve_ties():
    scores = np.array([[5.0, 4, 3, 3], [1, 2, 3, 4]])
    ranks = next_ranks(scores, [np.array([0]), np.array([3])], np.array([2, 3]))
    assert ranks[0] == 1.5  # after item 1, beside item 3
    assert np.isnan(ranks[1])


def test_blend_finds_the_weights_that_made_the_choices():
    draw = np.random.default_rng(0)
    parts = [draw.normal(size=(4000, 20)).astype(np.float32) * s for s in (1.0, 0.1, 3.0)]
    logits = 2.0 * parts[0] + 10.0 * parts[1]  # the third part says nothing
    seen = draw.random((4000, 20)) < 0.1
    noise = draw.gumbel(size=logits.shape)
    target = np.where(seen, -np.inf, logits + noise).argmax(axis=1)
    weights, likelihood = fit_blend(parts, target, seen)
    np.testing.assert_allclose(weights, [2.0, 10.0, 0.0], rtol=0.08, atol=0.03)
    assert -3 < likelihood < -1


def test_blend_without_a_user_that_counts():
    weights, _ = fit_blend([np.ones((2, 3), np.float32)], np.array([0, 1]), np.ones((2, 3), bool))
    assert weights.tolist() == [0.0]


def test_the_choice_is_for_the_top_and_its_scale_the_likeliest():
    """A third of the users follow a sharp signal, the others what is popular."""
    draw = np.random.default_rng(0)
    sharp = draw.exponential(size=(900, 300)).astype(np.float32)
    popular = np.broadcast_to(draw.normal(size=300), (900, 300)).astype(np.float32)
    sharp[:300] **= 2
    target = np.where(
        np.arange(900) < 300,
        sharp.argmax(axis=1),
        draw.choice(300, 900, p=np.exp(popular[0]) / np.exp(popular[0]).sum()),
    )
    seen = np.zeros((900, 300), bool)

    def ndcg(weights: np.ndarray) -> float:
        logits = weights[0] * sharp + weights[1] * popular
        ranks = (-logits).argsort(axis=1).argsort(axis=1)[np.arange(900), target]
        return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())

    def likelihood(weights: np.ndarray) -> float:
        logits = weights[0] * sharp + weights[1] * popular
        chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return float(np.log(chance[np.arange(900), target]).mean())

    likeliest, _ = fit_blend([sharp, popular], target, seen)
    chosen, found = choose_blend([sharp, popular], target, seen)
    assert ndcg(chosen) >= ndcg(likeliest)
    assert found == pytest.approx(likelihood(chosen), abs=1e-4)
    assert likelihood(chosen) >= max(likelihood(0.9 * chosen), likelihood(1.1 * chosen))
    assert likelihood(likeliest) >= likelihood(chosen) - 1e-3


@pytest.fixture(scope="module")
def fitted():
    histories, ids, texts, vectors = world()
    return fit_recommender(
        histories, ids, texts, vectors, RecommenderSettings(user_tower=QUICK), seed=1
    )


def test_what_goes_together_is_found_and_weighs_most(fitted):
    _, ids, texts, vectors = world()
    shop = fitted.recommender.over(ids, texts, vectors)
    answers = shop.recommend([["i8", "i9"], ["i21"]], k=2)
    assert answers[0][0][0] in ("i10", "i11")
    assert {item_id for item_id, _ in answers[1]} <= {"i20", "i22", "i23"}
    weights = fitted.recommender.weights
    assert weights.co_occurrence > weights.text
    assert fitted.log_likelihood > fitted.uniform


def test_scores_are_the_formula(fitted):
    _, ids, texts, vectors = world()
    learned = fitted.recommender
    shop = learned.over(ids, texts, vectors)
    history = np.array([4, 5, 30])
    recency = learned.decay ** np.array([2.0, 1, 0])
    recency /= recency.sum()
    tower = {"history": vectors[history][None], "known": np.ones((1, 3), bool)}
    user = np.array(learned.user_tower(tower))[0]
    place = {item_id: row for row, item_id in enumerate(learned.item_ids)}
    near = learned.co_occurrence.matrix().toarray()
    counts = np.array([learned.counts[place[i]] if i in place else 0 for i in ids])
    logs = np.log1p(counts)
    prior = np.where(counts > 0, logs, logs[counts > 0].mean())
    # New items borrow from the five nearest by text, in proportion to the cosine to the 8th.
    lent = np.eye(len(ids))
    for row in np.flatnonzero(counts == 0):
        cosine = np.where(counts > 0, vectors @ vectors[row], -1)
        lenders = np.argsort(-cosine)[:5]
        shares = np.maximum(cosine[lenders], 0) ** 8
        lent[lenders, row] = shares / shares.sum()
    known = [place.get(item_id, -1) for item_id in ids]
    pairs = np.pad(near, (0, 1))[np.ix_(known, known)]
    pairs = lent.T @ pairs @ lent
    np.fill_diagonal(pairs, 0)
    w = learned.weights
    expected = []
    for row in range(len(ids)):
        together = recency @ pairs[history, row]
        words = recency @ (history != row)  # all texts are equal: their cosine is 1
        expected.append(
            w.text * user @ vectors[row]
            + w.co_occurrence * together
            + w.words * words
            + w.popularity * prior[row]
        )
    np.testing.assert_allclose(shop([history])[0], expected, rtol=1e-3, atol=1e-3)


def test_probabilities_sum_to_one_over_what_is_offered(fitted):
    _, ids, texts, vectors = world()
    shop = fitted.recommender.over(ids, texts, vectors)
    asked = [*ids, "unknown"]
    chances = shop.probabilities([["i4", "i5"]], [asked])[0]
    offered = [row for row, item_id in enumerate(ids) if item_id not in ("i4", "i5")]
    assert chances[offered].sum() == pytest.approx(1, abs=1e-5)
    assert chances[-1] == 0
    assert (chances >= 0).all()
    assert (chances <= 1).all()


def test_a_new_item_is_recommended_by_its_text(fitted):
    _, ids, texts, vectors = world()
    shop = fitted.recommender.over(
        [*ids, "new"], [*texts, "thing"], np.vstack([vectors, vectors[9]])
    )
    text_only = Recommender(
        **{**vars(fitted.recommender), "weights": type(fitted.recommender.weights)(5.0)}
    )
    alone = text_only.over([*ids, "new"], [*texts, "thing"], np.vstack([vectors, vectors[9]]))
    assert alone.recommend([["i9"]], k=1)[0][0][0] == "new"
    assert "new" in {item_id for item_id, _ in shop.recommend([["i9"]], k=43)[0]}


def test_the_seen_is_left_out_unless_it_is_everything(fitted):
    shop = fitted.recommender.over(["i0", "i1"], ["a", "b"], np.eye(2, 8, dtype=np.float32))
    assert [item_id for item_id, _ in shop.recommend([["i0", "zz"]], k=5)[0]] == ["i1"]
    assert len(shop.recommend([["i0", "i1"]], k=5)[0]) == 2
    assert len(shop.recommend([[]], k=5)[0]) == 2


def test_saved_and_loaded_it_is_the_same(fitted, tmp_path):
    _, ids, texts, vectors = world()
    learned = replace(
        fitted.recommender,
        recent=fitted.recommender.counts / np.arange(1, len(fitted.recommender.counts) + 1),
        sentiment=ReviewSentiment(np.linspace(-1, 1, vectors.shape[1], dtype=np.float32), 0.3),
    )
    learned.save(tmp_path / "people")
    again = Recommender.load(tmp_path / "people")
    histories = [np.array([1, 2]), np.array([], int), np.array([40, -1, 3])]
    np.testing.assert_array_equal(
        again.over(ids, texts, vectors)(histories), learned.over(ids, texts, vectors)(histories)
    )
    reviews = [vectors[:3]], [[0, 5, 1]]
    np.testing.assert_array_equal(again.review_vectors(*reviews), learned.review_vectors(*reviews))


def test_neighbours_of_the_chosen_strength_are_handed_on():
    histories, ids, texts, vectors = world(60)
    held_out = hold_out(histories, None, folds=3, seed=1)
    words = word_neighbours(texts).matrix()
    choices, near = choose_settings(held_out, histories, vectors, words, longest=50, order=False)
    for part, found in zip(held_out, near, strict=True):
        fitted = fit_co_occurrence(part.histories, len(ids), strength=choices.strength).matrix()
        assert (found != fitted).nnz == 0
    settings = RecommenderSettings(order=False)
    chosen = fit_recommender(histories, ids, texts, vectors, settings, seed=1)
    settings = RecommenderSettings(order=False, choices=choices)
    given = fit_recommender(histories, ids, texts, vectors, settings, seed=1)
    assert chosen.as_dict() == given.as_dict()


def test_without_co_occurrence_words_choose_the_decay(monkeypatch):
    """Three items of one kind, two of another, and again one of the first.

    `d^4 + d^3 + d^2 > d + 1` for 0.9 and more of the decays that are tried.
    """

    def refused(*_, **__):
        raise AssertionError("co-occurrence is no part of the score")

    monkeypatch.setattr("training.recommendation.choices.fit_co_occurrence", refused)
    monkeypatch.setattr("training.recommendation.fit.fit_co_occurrence", refused)
    histories = [10 * (n % 4) + np.array([0, 1, 2, 10, 11, 3]) for n in range(12)]
    vectors, texts = np.eye(50, dtype=np.float32), [f"kind{row // 10}" for row in range(50)]
    (part, *_) = hold_out(histories, None, folds=3, seed=0)
    part = replace(
        part,
        users=np.arange(12),
        places=np.full(12, 5),
        target=np.array([history[5] for history in histories]),
        seen=[history[:5] for history in histories],
    )
    words = word_neighbours(texts).matrix()
    choices, near = choose_settings(
        [part], histories, vectors, words, longest=50, co_occurrence=False
    )
    assert (choices.decay, near) == (0.9, [])

    settings = RecommenderSettings(parts=("words", "popularity"), order=False)
    ids = [f"i{row}" for row in range(50)]
    fit = fit_recommender(histories, ids, texts, vectors, settings)
    assert fit.recommender.weights.co_occurrence == 0 < fit.recommender.weights.words


def test_order_off_ignores_order():
    histories, ids, texts, vectors = world(60)
    learned = fit_recommender(
        histories, ids, texts, vectors, RecommenderSettings(order=False), seed=1
    ).recommender
    shop = learned.over(ids, texts, vectors)
    one, other = shop([np.array([1, 9, 30]), np.array([30, 1, 9])])
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def days(*numbers: int) -> np.ndarray:
    return np.datetime64("2026-01-01", "s") + np.array(numbers) * np.timedelta64(1, "D")


def test_by_time_the_latest_tenth_is_held_out_and_new_items_are_asked_for():
    # 60 people take two items on day 0 to 8, and on day 10 one of these again and two others.
    histories = [np.array([u % 5, 5 + u % 3, u % 5, 8 + u % 4, 12]) for u in range(60)]
    times = [days(u % 9, 8, 10, 10, 10) for u in range(60)]
    times[0] = days(0, 8, 8, 8, 8)  # nothing later
    histories[1], times[1] = histories[1][2:], times[1][2:]  # nothing earlier
    (part,) = hold_out(histories, times, folds=3, seed=0)
    assert set(part.users.tolist()) == set(range(60)) - {0, 1}
    for user, place, target, seen in zip(
        part.users, part.places, part.target, part.seen, strict=True
    ):
        assert place == 2
        assert target in histories[user][3:]
        assert sorted(seen) == sorted(set(histories[user]) - {target})
        assert part.histories[user].tolist() == histories[user][:2].tolist()
    assert len(set(zip(part.users.tolist(), part.target.tolist(), strict=True))) == 116
    assert part.times is not None
    assert max(when.max() for when in part.times if len(when)) == days(8)[0]


def test_without_times_or_with_few_later_events_users_are_held_out_in_turn():
    histories = [np.array([u % 5, 5 + u % 7, u % 3]) for u in range(30)]
    for times in (None, [days(0, 1, 2 if u else 3) for u in range(30)]):
        parts = hold_out(histories, times, folds=3, seed=0)
        assert sorted(np.unique(np.concatenate([part.users for part in parts]))) == [*range(30)]
        for part in parts:
            assert len(part.histories) == 20
            for user, place, target in zip(part.users, part.places, part.target, strict=True):
                assert histories[user][place] == target
    assert hold_out(histories[:11], None, folds=3, seed=0) == []


def test_recent_counts_by_hand():
    histories = [np.array([0, 1, 0]), np.array([1]), np.array([], int)]
    times = [days(0, 2, 4), days(0), days()]
    found = recent_counts(histories, times, 3, np.timedelta64(2, "D"))
    np.testing.assert_allclose(found, [1.0, 0.5 + 0.25, 0.0], atol=2e-6)
    ages = recent_counts(histories, times, 3, np.timedelta64(1, "s"))
    assert ages[1] > 0 == ages[2]  # long ago is not never


def test_where_fashions_change_recent_popularity_is_chosen():
    """Each season has items of its own that everybody takes; one item was all there was once."""
    draw = np.random.default_rng(0)
    histories, times = [], []
    for _ in range(200):
        weeks = np.sort(draw.choice(40, 4, replace=False))
        items = 5 * (weeks // 8) + draw.integers(0, 5, 4)  # a fashion lasts eight weeks
        histories.append(np.where(weeks < 12, 50, items))
        times.append(days(*(7 * weeks)))
    held_out = hold_out(histories, times, folds=3, seed=0)
    vectors = np.eye(60, dtype=np.float32)
    no_words = sp.csr_matrix((60, 60), dtype=np.float32)
    choices, _ = choose_settings(held_out, histories, vectors, no_words, longest=50)
    assert choices.half_life is not None
    span = (max(t[-1] for t in held_out[0].times) - days(0)[0]) / np.timedelta64(1, "D")
    assert choices.half_life < span / 4
    fit = fit_recommender(
        histories,
        [f"i{row}" for row in range(60)],
        ["thing"] * 60,
        vectors,
        RecommenderSettings(user_tower=QUICK),
        times=times,
    )
    learned = fit.recommender
    assert learned.recent[learned.item_ids.index("i50")] < 0.1 < 30 < learned.counts.max()
    best = learned.over([f"i{row}" for row in range(60)], ["thing"] * 60, vectors)
    assert {item_id for item_id, _ in best.recommend([[]], k=5)[0]} == {
        f"i{row}" for row in range(20, 25)
    }


def test_where_order_says_nothing_old_items_count_as_much():
    """Everybody likes one of ten groups of items and takes of it in any order."""
    draw = np.random.default_rng(0)
    histories = [10 * (user % 10) + draw.permutation(10)[:6] for user in range(300)]
    mixed = [np.where(draw.random(6) < 0.4, draw.integers(0, 100, 6), rows) for rows in histories]
    vectors = np.repeat(np.eye(10, dtype=np.float32), 10, axis=0)
    held_out = hold_out(mixed, None, folds=3, seed=0)
    no_words = sp.csr_matrix((100, 100), dtype=np.float32)
    choices, _ = choose_settings(held_out, mixed, vectors, no_words, longest=50)
    assert choices.decay >= 0.9
    assert choices.text_decay >= 0.9
    assert choices.half_life is None


def test_unknown_users_get_what_is_popular_where_it_tells_nothing_of_others(monkeypatch):
    fitted = np.array([2.0, 3.0, 1.0, 0.0])  # of RecommenderSettings.parts, popularity the last
    monkeypatch.setattr("training.recommendation.fit.choose_blend", lambda *_: (fitted, -1.0))
    histories, ids, texts, vectors = world()
    histories += [np.array([row, 41]) for row in range(41)]
    learned = fit_recommender(histories, ids, texts, vectors, RecommenderSettings(user_tower=QUICK))
    shop = learned.recommender.over(ids, texts, vectors)
    assert shop.recommend([[], ["unknown"]], k=1)[0][0][0] == "i41"
    assert 0 < learned.recommender.weights.popularity < 0.01


def test_few_users_get_the_weights_of_no_data():
    histories, ids, texts, vectors = world(3)
    fit = fit_recommender(histories, ids, texts, vectors)
    assert fit.recommender.weights.text > 0
    assert np.isfinite(fit.recommender.over(ids, texts, vectors)([np.array([1])])).all()


def test_wrong_input_is_named(fitted, tmp_path):
    histories, ids, texts, vectors = world(20)
    with pytest.raises(InputError, match="'magic' is no part"):
        fit_recommender(histories, ids, texts, vectors, RecommenderSettings(parts=("magic",)))
    with pytest.raises(InputError, match="42 items need embeddings"):
        fitted.recommender.over(ids, texts, vectors[:, :4])
    with pytest.raises(InputError, match="holds no recommender"):
        Recommender.load(tmp_path)
