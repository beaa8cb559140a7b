"""Shares of words against keras-hub's own BERT and NumPy, and against leaving words out."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from towers import InputError, Retriever, TextEncoder, TextSettings
from towers.explain import explain, history_shares, mean_shares

ITEMS = ["Electric kettle boils water fast", "Travel mug keeps coffee hot", "Red mug"]
QUERY = "keeps coffee hot"


@pytest.fixture(scope="module")
def make(make_tiny_encoder: Callable[..., object], tiny_vocabulary: tuple[str, ...]) -> Callable:
    """Towers with weights of their own, so that no mistake about whose they are goes unseen."""
    from towers import Tokenizer, TwoTower

    @functools.cache
    def build(
        pooling: str = "mean", prefix: str = "", width: int | None = 16, context: bool = True
    ) -> Retriever:
        query_tower, item_tower = (
            make_tiny_encoder(seed, layers=2, pooling=pooling, projection_dim=width)
            for seed in (0, 1)
        )
        if not context:
            for tower in (query_tower, item_tower):
                forget_context(tower)
        text = TextSettings("{title}", 12, 24, prefix)
        return Retriever(TwoTower(query_tower, item_tower), Tokenizer(tiny_vocabulary), text)

    return build


def forget_context(tower: TextEncoder) -> None:
    """Makes attention add nothing: a token then stands for itself alone."""
    for layer in tower.backbone.transformer_layers:
        for weight in layer._self_attention_layer._output_dense.weights:
            weight.assign(tf.zeros_like(weight))


def scores(retriever: Retriever, query: str, items: list[str]) -> np.ndarray:
    """Cosines by the towers' own call, float32 [items]."""
    query_ids = retriever.tokenizer(tf.constant([query]), retriever.text.query_max_length)
    item_ids = retriever.tokenizer(tf.constant(items), retriever.text.item_max_length)
    vectors = retriever.model.query_tower(query_ids), retriever.model.item_tower(item_ids)
    return np.asarray(vectors[0])[0] @ np.asarray(vectors[1]).T


def token_parts(tower: TextEncoder, ids: list[int]) -> np.ndarray:
    """From keras-hub's backbone: what each token adds to the pooled and projected vector."""
    inputs = {
        "token_ids": np.array([ids]),
        "padding_mask": np.ones((1, len(ids)), int),
        "segment_ids": np.zeros((1, len(ids)), int),
    }
    tokens = np.asarray(tower.backbone(inputs)["sequence_output"])[0].astype(np.float64)
    if tower.pooling.mode == "mean":
        tokens = tokens / len(ids)
    else:
        tokens = tokens * (tokens == tokens.max(axis=0))
    kernel = np.eye(32) if tower.projection is None else np.asarray(tower.projection.kernel)
    return tokens @ kernel


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("width", [None, 16])
def test_shares_of_pairs_by_the_formula(make: Callable, pooling: str, width: int | None) -> None:
    retriever = make(pooling, width=width)
    # One piece a word, so that words are tokens.
    found = explain(retriever, QUERY, ["red mug"])[0]
    assert found.query_words == ["[CLS]", "keeps", "coffee", "hot", "[SEP]"]
    assert found.item_words == ["[CLS]", "red", "mug", "[SEP]"]
    number = {piece: i for i, piece in enumerate(retriever.tokenizer.vocabulary)}
    query = token_parts(retriever.model.query_tower, [number[w] for w in found.query_words])
    item = token_parts(retriever.model.item_tower, [number[w] for w in found.item_words])
    norms = np.linalg.norm(query.sum(axis=0)) * np.linalg.norm(item.sum(axis=0))
    np.testing.assert_allclose(found.pairs, query @ item.T / norms, atol=2e-4)
    np.testing.assert_allclose(found.query_shares, found.pairs.sum(axis=1))
    np.testing.assert_allclose(found.item_shares, found.pairs.sum(axis=0))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_shares_add_up_to_what_search_scores(
    make: Callable, golden_texts: list[str], pooling: str
) -> None:
    retriever = make(pooling, prefix="red ")
    for query in ("", "Café crème, brûlée!"):
        expected = scores(retriever, "red " + query, golden_texts)
        for score, found in zip(expected, explain(retriever, query, golden_texts), strict=True):
            assert found.method == "split"
            assert found.query_words[:2] == ["[CLS]", "red"]
            for total in (found.query_shares, found.item_shares, found.pairs, found.score):
                assert np.sum(total) == pytest.approx(score, abs=1e-5)


def test_pieces_are_joined_and_cut_as_the_towers_read(make: Callable) -> None:
    found = explain(make(), "Kettlx a mug", ["mug " * 40])[0]
    assert found.query_words == ["[CLS]", "kettlx", "a", "mug", "[SEP]"]
    assert found.item_words == ["[CLS]", *["mug"] * 22, "[SEP]"]
    assert len(found.query_shares) == len(found.query_words)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_leaving_words_out(make: Callable, pooling: str) -> None:
    """The share of a word is what the score loses; what pools by the first token, loses nothing."""
    retriever = make(pooling, context=False)
    found = explain(retriever, QUERY, ITEMS, method="leave-one-out")
    whole = scores(retriever, QUERY, ITEMS)
    assert [one.score for one in found] == pytest.approx(whole.tolist(), abs=1e-5)
    if pooling == "cls":
        for one in found:  # all is in the first token
            assert np.abs(one.query_shares[1:]).max() < 1e-6
    assert all(one.pairs is None for one in found)


def test_the_split_is_faithful(make: Callable) -> None:
    """A word's share is what the sum of tokens loses without it; the cosine follows in most."""
    retriever = make(width=None, context=False)
    number = {piece: i for i, piece in enumerate(retriever.tokenizer.vocabulary)}
    split = explain(retriever, QUERY, ITEMS, method="split")
    left_out = explain(retriever, QUERY, ITEMS, method="leave-one-out")
    ids = retriever.tokenizer(tf.constant([QUERY]), 12)
    query = np.asarray(retriever.model.query_tower(ids))[0]
    agreement = []
    for text, shares, losses in zip(ITEMS, split, left_out, strict=True):
        assert shares.item_words == ["[CLS]", *text.lower().split(), "[SEP]"]
        parts = token_parts(retriever.model.item_tower, [number[w] for w in shares.item_words])
        total, norm = parts.sum(axis=0), np.linalg.norm(parts.sum(axis=0))
        for place, share in enumerate(shares.item_shares):
            without = np.delete(parts, place, axis=0).sum(axis=0)
            assert share == pytest.approx((total - without) @ query / norm, abs=2e-4)
            cosine = without @ query / np.linalg.norm(without)
            assert losses.item_shares[place] == pytest.approx(shares.score - cosine, abs=2e-4)
        agreement.append(stats.spearmanr(shares.item_shares, losses.item_shares).statistic)
    assert np.mean(agreement) > 0.5


def without_token(tower: TextEncoder, ids: list[int], hidden: list[int]) -> np.ndarray:
    """A text's vector by keras-hub's backbone where some of its tokens cannot be seen."""
    seen = np.ones(len(ids), int)
    seen[hidden] = 0
    inputs = {
        "token_ids": np.array([ids]),
        "padding_mask": seen[None],
        "segment_ids": np.zeros((1, len(ids)), int),
    }
    tokens = np.asarray(tower.backbone(inputs)["sequence_output"])[0].astype(np.float64)
    tokens = tokens[seen == 1]
    pooled = tokens.mean(axis=0) if tower.pooling.mode == "mean" else tokens.max(axis=0)
    vector = pooled @ np.asarray(tower.projection.kernel)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_leaving_words_out_with_attention(make: Callable, pooling: str) -> None:
    """What the score loses where no token can look at the word: its neighbours change too."""
    retriever = make(pooling)
    number = {piece: i for i, piece in enumerate(retriever.tokenizer.vocabulary)}
    # Words as they are shown, with the places of their pieces.
    query = [("[CLS]", [0]), ("keeps", [1]), ("coffee", [2]), ("hot", [3]), ("[SEP]", [4])]
    query_ids = [number[word] for word, _ in query]
    item = [("[CLS]", [0]), ("red", [1]), ("mugs", [2, 3]), ("hot", [4]), ("[SEP]", [5])]
    item_ids = [number[p] for p in ("[CLS]", "red", "mug", "##s", "hot", "[SEP]")]

    found = explain(retriever, QUERY, ["Red mugs hot"], method="leave-one-out")[0]
    assert found.query_words == [word for word, _ in query]
    assert found.item_words == [word for word, _ in item]
    asks, answers = retriever.model.query_tower, retriever.model.item_tower
    whole = without_token(asks, query_ids, []), without_token(answers, item_ids, [])
    assert found.score == pytest.approx(whole[0] @ whole[1], abs=1e-5)
    losses = [
        [(whole[0] - without_token(asks, query_ids, places)) @ whole[1] for _, places in query],
        [(whole[1] - without_token(answers, item_ids, places)) @ whole[0] for _, places in item],
    ]
    np.testing.assert_allclose(found.query_shares, losses[0], atol=2e-5)
    np.testing.assert_allclose(found.item_shares, losses[1], atol=2e-5)
    # Nothing comes after the last word: without it is the text that ends before it.
    shorter = without_token(answers, item_ids[:-1], [])
    assert found.item_shares[-1] == pytest.approx((whole[1] - shorter) @ whole[0], abs=2e-5)

    if pooling == "mean":  # tokens as they are read beside the word would say something else
        parts = token_parts(answers, item_ids)
        for share, (_, places) in zip(found.item_shares, item, strict=True):
            rest = np.delete(parts, places, axis=0).sum(axis=0)
            assert abs(share - (found.score - rest @ whole[0] / np.linalg.norm(rest))) > 1e-3


def test_cls_towers_are_explained_by_leaving_out(make: Callable) -> None:
    retriever = make("cls")
    assert explain(retriever, QUERY, ITEMS[:1])[0].method == "leave-one-out"
    with pytest.raises(InputError, match="pool by 'cls' have no split"):
        explain(retriever, QUERY, ITEMS[:1], method="split")
    with pytest.raises(InputError, match="method 'gradients' is neither"):
        explain(retriever, QUERY, ITEMS[:1], method="gradients")


def test_as_json(make: Callable) -> None:
    found = explain(make(), QUERY, ITEMS[:1])[0]
    written = json.loads(json.dumps(found.as_dict()))
    assert written["cosine"] == found.score
    assert [one["word"] for one in written["item"]] == found.item_words
    assert sum(one["share"] for one in written["query"]) == pytest.approx(found.score)
    assert explain(make(), QUERY, []) == []


def test_the_past_items_of_a_mean() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(6, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    history, weights = np.array([3, 1, 1, 5]), np.array([0.1, 0.2, 0.4, 0.8])
    shares = mean_shares(weights, vectors[history], vectors[2])
    mean = sum(w * vectors[row] for w, row in zip(weights, history, strict=True))
    assert shares.sum() == pytest.approx(mean @ vectors[2] / np.linalg.norm(mean))
    assert shares[2] == pytest.approx(2 * shares[1])  # the same item with twice the weight
    assert shares[3] == pytest.approx(0.8 * vectors[5] @ vectors[2] / np.linalg.norm(mean))


def test_the_past_items_of_any_scorer() -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)

    def scorer(histories: list[np.ndarray]) -> np.ndarray:
        return np.stack([matrix[rows].sum(axis=0) for rows in histories])

    history = np.array([3, 1, 1, 5])
    # A sum: leaving an item out loses just what it adds.
    np.testing.assert_allclose(history_shares(scorer, history, 2), matrix[history, 2], atol=1e-5)
    assert history_shares(scorer, np.array([], int), 2).shape == (0,)
    assert history_shares(scorer, np.array([4]), 2) == pytest.approx(matrix[4, 2])
