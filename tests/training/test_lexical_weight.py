"""Choosing the lexical weight: oracles from the formula, hand-worked cases, properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from training.catalog import Catalog
from training.interactions import Interactions
from training.lexical_weight import (
    PRIOR_WEIGHT,
    choose_lexical_weight,
    fused,
    likeliest_weight,
    log_likelihood,
)

QUERIES, ITEMS = 60, 300


@pytest.fixture
def positive() -> np.ndarray:
    """One positive a query."""
    rng = np.random.default_rng(1)
    mask = np.zeros((QUERIES, ITEMS), bool)
    mask[np.arange(QUERIES), rng.integers(ITEMS, size=QUERIES)] = True
    return mask


def good_cosine(positive: np.ndarray, seed: int = 2) -> np.ndarray:
    """Like that of towers: a positive stands .35 above the rest."""
    noise = np.random.default_rng(seed).normal(0.2, 0.1, positive.shape)
    return (noise + 0.35 * positive).astype(np.float32)


def noise_cosine(shape: tuple[int, int], seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.2, 0.1, shape).astype(np.float32)


def noise_words(shape: tuple[int, int], seed: int = 4) -> np.ndarray:
    """Like BM25: a few items of each query, the best with 1."""
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random(shape) < 0.05, rng.random(shape), 0)
    return (scores / scores.max(axis=1, keepdims=True)).astype(np.float32)


def good_words(positive: np.ndarray) -> np.ndarray:
    return np.maximum(noise_words(positive.shape) * 0.8, positive).astype(np.float32)


def oracle(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Item by item, in float64: softmax at .07 of each positive against itself and the rest."""
    values = []
    for row, mask in zip(scores.astype(np.float64), positive, strict=True):
        others = np.exp(row[~mask] / 0.07).sum()
        own = np.exp(row[mask] / 0.07)
        values.append(np.log(own / (own + others)).mean())
    return np.array(values)


def test_log_likelihood_is_the_formula(positive: np.ndarray) -> None:
    positive[:, :2] = True  # several positives a query, which do not compete
    cosine, words = good_cosine(positive), noise_words(positive.shape)
    for weight in (0.0, 0.35, 1.0):
        scores = fused(cosine, words, weight)
        np.testing.assert_allclose(
            log_likelihood(scores, positive), oracle(scores, positive), rtol=1e-4
        )


def test_log_likelihood_by_hand() -> None:
    # .07 times ln 3 above two others: 3 / (3 + 1 + 1). Three equal: 1 / 3. Nothing else: 1.
    ahead = [0.07 * np.log(3), 0, 0]
    scores = np.array([ahead, [0.5, 0.5, 0.5], [0.1, 0.9, 0.4]], np.float32)
    positive = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1]], bool)
    expected = [np.log(3 / 5), np.log(1 / 3), 0]
    np.testing.assert_allclose(log_likelihood(scores, positive), expected, atol=1e-6)


def test_a_hopeless_positive_has_a_finite_likelihood() -> None:
    scores = np.array([[-1e3, 1e3], [1e3, -1e3]], np.float32)
    values = log_likelihood(scores, np.array([[1, 0], [1, 0]], bool))
    assert np.isfinite(values).all()
    assert values[0] < -50
    assert values[1] == 0


def test_the_weight_is_the_best_of_the_grid(positive: np.ndarray) -> None:
    cosine, words = good_cosine(positive), good_words(positive)
    grid = [step / 20 for step in range(21)]
    posterior = [
        oracle((1 - w) * cosine + w * words, positive).sum() - (w - 0.25) ** 2 / (2 * 0.1**2)
        for w in grid
    ]
    assert likeliest_weight([cosine], words, positive) == grid[int(np.argmax(posterior))]


def test_two_towers_weigh_the_same(positive: np.ndarray) -> None:
    """The untrained towers are noise, the trained ones good: the sum of both decides."""
    before, after = noise_cosine(positive.shape), good_cosine(positive)
    words = np.maximum(noise_words(positive.shape), 0.5 * positive).astype(np.float32)
    grid = [step / 20 for step in range(21)]
    posterior = [
        sum(oracle((1 - w) * cosine + w * words, positive).sum() for cosine in (before, after)) / 2
        - (w - 0.25) ** 2 / (2 * 0.1**2)
        for w in grid
    ]
    weight = likeliest_weight([before, after], words, positive)
    assert weight == grid[int(np.argmax(posterior))]
    alone = [likeliest_weight([cosine], words, positive) for cosine in (after, before)]
    assert alone[0] < alone[1]
    assert alone[0] <= weight <= alone[1]


@pytest.mark.parametrize("seed", range(5))
def test_words_that_are_noise_get_no_weight(positive: np.ndarray, seed: int) -> None:
    cosine, words = good_cosine(positive, seed), noise_words(positive.shape, 10 + seed)
    assert likeliest_weight([cosine], words, positive) <= 0.05


@pytest.mark.parametrize("seed", range(5))
def test_towers_that_are_noise_leave_it_to_the_words(positive: np.ndarray, seed: int) -> None:
    weight = likeliest_weight([noise_cosine(positive.shape, seed)], good_words(positive), positive)
    assert weight >= 0.75


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.2, 0.3, 0.5, 1.0])
def test_many_shots_are_not_likelier_without_the_words(
    positive: np.ndarray, strength: float
) -> None:
    cosine = good_cosine(positive)
    words = np.maximum(noise_words(positive.shape), strength * positive)
    weight = likeliest_weight([cosine], words, positive)
    chosen, without = (
        log_likelihood(fused(cosine, words, w), positive).sum() for w in (weight, 0.0)
    )
    # What the prior may cost in favour of some weight: (.25 / .1) ** 2 / 2 over all queries.
    assert chosen >= without - 3.125


def test_a_single_shot_moves_it_little(positive: np.ndarray) -> None:
    for words in (noise_words(positive.shape), good_words(positive)):
        for row in range(20):
            one = slice(row, row + 1)
            weight = likeliest_weight([good_cosine(positive)[one]], words[one], positive[one])
            assert abs(weight - PRIOR_WEIGHT) <= 0.25


def test_shots_without_a_known_word_say_nothing(positive: np.ndarray) -> None:
    # Without a lexical score the weight only scales the cosine; it must not run to 1.
    weight = likeliest_weight([good_cosine(positive)], np.zeros(positive.shape), positive)
    assert weight <= PRIOR_WEIGHT


# From texts to a choice


class Towers:
    """Towers with given vectors for given texts."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors
        self.encoded: list[str] = []  # the items last encoded

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts])

    def encode_items(
        self,
        texts: Sequence[str],
        dtype: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        self.encoded = list(texts)
        if progress is not None:
            progress(len(texts), len(texts))
        return self.encode_queries(texts)


def shop(folder: Path, items: int, queries: int) -> tuple[Interactions, list[str]]:
    ids = [f"i{row}" for row in range(items)]
    (folder / "catalog.csv").write_text(
        "item_id,title\n" + "".join(f"{item},Item {item}\n" for item in ids)
    )
    rows = [f"query {n},i{(7 * n) % items},{1 + n % 2}\n" for n in range(queries)]
    rows += [f"query {n},i{(7 * n + 3) % items},1\n" for n in range(0, queries, 3)]
    (folder / "pairs.csv").write_text("query,item_id,grade\n" + "".join(rows))
    catalog = Catalog.read(folder / "catalog.csv")
    return Interactions.read(folder / "pairs.csv", catalog), [f"Item {item}" for item in ids]


def vectors(texts: Sequence[str], dim: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {text: rng.normal(size=dim) for text in texts}
    return {text: (x / np.linalg.norm(x)).astype(np.float32) for text, x in found.items()}


def answers(shots: Interactions, items: int) -> np.ndarray:
    gains = np.zeros((len(shots.queries), items))
    gains[shots.query_row, shots.item_row] = shots.grade
    return gains


def test_without_shots_it_is_the_prior(tmp_path: Path) -> None:
    shots, texts = shop(tmp_path, 20, 5)
    none = shots.select_rows(np.array([], int))
    for nothing in (None, none):
        choice = choose_lexical_weight(SimpleNamespace(), nothing, texts, lambda queries: None)
        assert choice.weight == PRIOR_WEIGHT == 0.25
        assert choice.reason == "no shots to choose it from"
        assert choice.as_dict()["queries"] == 0


def test_words_that_know_the_answers_win(tmp_path: Path) -> None:
    shots, texts = shop(tmp_path, 200, 40)
    towers = Towers(vectors([*texts, *shots.queries]))
    gains = answers(shots, 200)
    asked: list[str] = []

    def words(queries: Sequence[str]) -> np.ndarray:
        asked.extend(queries)
        return (gains[[shots.queries.index(query) for query in queries]] > 0).astype(np.float32)

    choice = choose_lexical_weight(towers, shots, texts, words)
    assert choice.weight >= 0.6
    assert sorted(asked) == sorted(shots.queries)
    assert (choice.queries, choice.candidates) == (40, 200)
    # All answers stand first at weight 1; a query's grades may stand in the wrong order.
    assert 0.85 <= choice.ndcg["1"] <= 1

    # nDCG@10 at weight 0, written out.
    cosine = towers.encode_queries(shots.queries) @ towers.encode_items(texts).T
    values = []
    for scores, gain in zip(cosine, gains, strict=True):
        best = np.argsort(-scores)[:10]
        discount = 1 / np.log2(np.arange(2, 12))
        values.append((gain[best] * discount).sum() / (np.sort(gain)[::-1][:10] * discount).sum())
    assert choice.ndcg["0"] == pytest.approx(np.mean(values), abs=1e-6)
    assert f"among 200 items {choice.ndcg[f'{choice.weight:g}']:.3f}" in choice.reason
    assert "on 40 shot queries" in choice.reason


def test_towers_before_and_after_training_are_asked(tmp_path: Path) -> None:
    shots, texts = shop(tmp_path, 200, 40)
    before = Towers(vectors([*texts, *shots.queries]))
    answer = dict(zip(shots.query_row.tolist(), shots.item_row.tolist(), strict=True))
    learned = {shots.queries[row]: before.vectors[texts[item]] for row, item in answer.items()}
    after = Towers({**before.vectors, **learned})
    scores = np.maximum(noise_words((40, 200)), 0.5 * (answers(shots, 200) > 0))

    def words(queries: Sequence[str]) -> np.ndarray:
        return scores[[shots.queries.index(query) for query in queries]]

    told: list[tuple[int, int]] = []
    alone = choose_lexical_weight(before, shots, texts, words)
    both = choose_lexical_weight(
        before, shots, texts, words, adapted=after, progress=lambda *step: told.append(step)
    )
    assert both.weight < alone.weight
    assert both.ndcg["0"] == alone.ndcg["0"]  # after training it would be flattery
    assert "before training" in both.reason
    assert told == [(200, 400), (400, 400)]


def test_a_large_catalogue_is_sampled(tmp_path: Path) -> None:
    shots, texts = shop(tmp_path, 6_000, 1_100)
    towers = Towers(vectors([*texts, *shots.queries], 4))
    empty = np.zeros((1, 6_000), np.float32)
    asked: list[str] = []

    def words(queries: Sequence[str]) -> np.ndarray:
        asked.extend(queries)
        return np.repeat(empty, len(queries), axis=0)

    choice = choose_lexical_weight(towers, shots, texts, words, seed=5)
    assert (choice.queries, choice.candidates) == (1_000, 5_000)
    assert len(set(asked)) == len(asked) == 1_000
    assert len(set(towers.encoded)) == 5_000
    looked_at = set(asked)
    for query, item in zip(shots.query_row.tolist(), shots.item_row.tolist(), strict=True):
        if shots.queries[query] in looked_at:
            assert texts[item] in towers.encoded
    assert choose_lexical_weight(towers, shots, texts, words, seed=5) == choice
