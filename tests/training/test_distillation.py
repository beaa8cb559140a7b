"""Distillation: the teacher's scores, what a batch holds, and that the towers learn it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from towers.errors import InputError
from towers.retriever import Retriever
from training.catalog import Catalog
from training.config import FitConfig
from training.distillation import DistillationBatches, distil
from training.fit import adapt
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer
from training.teacher import make_teacher

Make = Callable[..., Retriever]
WEIGHT = 0.4


@pytest.fixture
def texts(tiny_catalog: dict[str, list[str]]) -> list[str]:
    return [*tiny_catalog["title"], tiny_catalog["title"][0]]  # the first one twice


@pytest.fixture
def lexical(texts: list[str]) -> LexicalScorer:
    """The share of the query's words that an item has, best item 1."""

    def score(queries: Sequence[str]) -> np.ndarray:
        found = [
            [len({*q.lower().split()} & {*text.lower().split()}) for text in texts] for q in queries
        ]
        scores = np.array(found, np.float32).reshape(len(queries), len(texts))
        return scores / np.maximum(scores.max(axis=1, keepdims=True), 1)

    return score


@pytest.fixture
def pairs(tmp_path: Path, texts: list[str]) -> Interactions:
    (tmp_path / "catalog.csv").write_text(
        "item_id,title\n" + "".join(f'i{n},"{text}"\n' for n, text in enumerate(texts)), "utf-8"
    )
    rows = [f"boil {n} water,i{n % 5}\n" for n in range(10)] + ["boil 0 water,i6\n"]
    (tmp_path / "pairs.csv").write_text("query,item_id\n" + "".join(rows), "utf-8")
    catalog = Catalog.read(tmp_path / "catalog.csv")
    return Interactions.read(tmp_path / "pairs.csv", catalog)


def make_batches(
    retriever: Retriever,
    pairs: Interactions | None,
    texts: list[str],
    lexical: LexicalScorer,
    seed: int = 0,
) -> DistillationBatches:
    return DistillationBatches(
        retriever, pairs, texts, texts, lexical, WEIGHT, pseudo_queries=40, seed=seed
    )


def test_a_teacher_scores_as_an_export_does(
    tiny_retriever: Retriever, texts: list[str], lexical: LexicalScorer
) -> None:
    queries = ["red hose", "boil water", "zzz"]
    rows = np.array([0, 2, 3, 5, 7])
    teacher = make_teacher(tiny_retriever, queries, texts, rows, lexical, WEIGHT, depth=3)
    items = tiny_retriever.encode_items([texts[row] for row in rows])
    cosine = tiny_retriever.encode_queries(queries) @ items.T
    expected = (1 - WEIGHT) * cosine + WEIGHT * lexical(queries)[:, rows]
    np.testing.assert_allclose(teacher.scores, expected, atol=5e-3)  # bfloat16 and float16
    for query in range(3):
        for near, scores in zip(teacher.near[query], (expected, cosine), strict=True):
            worst_kept = scores[query][near].min()
            assert worst_kept >= np.sort(scores[query])[-3] - 0.01
    assert make_teacher(tiny_retriever, queries, texts, rows, None, 0.9).near.shape == (3, 2, 5)


def test_what_a_batch_holds(
    tiny_retriever: Retriever, pairs: Interactions, texts: list[str], lexical: LexicalScorer
) -> None:
    batches = make_batches(tiny_retriever, pairs, texts, lexical)
    vectors = tiny_retriever.encode_items(texts)
    by_tokens = {
        tuple(row[row != 0].tolist()): text
        for text in texts
        for row in tiny_retriever.tokenizer([text], max_length=48)["token_ids"].numpy()
    }
    known = {
        (pairs.queries[q], texts[i]) for q, i in zip(pairs.query_row, pairs.item_row, strict=True)
    }
    pseudo = 0
    for x, _, weight in batches.dataset().as_numpy_iterator():
        own, mined = len(x["item_ids"]), len(x["negative_ids"])
        labelled = int((weight > 0).sum())
        assert len(x["query"]["token_ids"]) == own == len(weight)
        assert (weight[:labelled] == 1).all()
        assert not set(x["item_ids"]) & set(x["negative_ids"]) or mined == 1
        assert len(set(x["negative_ids"].tolist())) == mined
        ids = np.concatenate([x["item_ids"], x["negative_ids"]])
        tokens = [*x["item"]["token_ids"], *x["negatives"]["token_ids"]]
        items = [by_tokens[tuple(row[row != 0].tolist())] for row in tokens]
        assert len(set(items)) == len(set(ids.tolist()))  # equal texts are one item
        queries = [
            next(
                q for q in pairs.queries if (q, items[row]) in known and is_row(batches, x, row, q)
            )
            for row in range(labelled)
        ]
        vectors_of = dict(zip(texts, vectors, strict=True))
        cosine = tiny_retriever.encode_queries(queries) @ np.array([vectors_of[i] for i in items]).T
        words = lexical(queries)[:, [texts.index(item) for item in items]]
        expected = (1 - WEIGHT) * cosine + WEIGHT * words
        for row, query in enumerate(queries):
            positive = np.array([(query, item) in known for item in items])
            expected[row, positive] = np.minimum(expected[row, positive] + 0.3, 1.2)
            # Negatives are the other pairs' items alone, unless they are positives too.
            allowed = [j < labelled and not positive[j] for j in range(len(items))]
            np.testing.assert_array_equal(~x["ignored"][row], allowed)
        np.testing.assert_allclose(x["teacher_scores"][:labelled], expected, atol=5e-3)
        assert x["ignored"][labelled:].all()
        pseudo += own - labelled
    assert pseudo >= 16 * 16


def is_row(batches: DistillationBatches, x: dict, row: int, query: str) -> bool:
    """Whether a row of a batch holds a query."""
    tokens = batches.retriever.tokenizer([query], max_length=16)["token_ids"].numpy()[0]
    found = x["query"]["token_ids"][row]
    return found[found != 0].tolist() == tokens[tokens != 0].tolist()


def test_the_order_depends_on_seed_and_epoch_alone(
    tiny_retriever: Retriever, pairs: Interactions, texts: list[str], lexical: LexicalScorer
) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = make_batches(tiny_retriever, pairs, texts, lexical, seed)
        batches.epoch = epoch
        return [x["item_ids"].tolist() for x, _, _ in batches.dataset().as_numpy_iterator()]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert len(order(0, 0)) == len(order(0, 3)) == 16


def test_towers_learn_what_the_teacher_says(
    make_tiny_retriever: Make, texts: list[str], lexical: LexicalScorer, tmp_path: Path
) -> None:
    """Without any label, the divergence from the teacher falls on queries never trained on."""
    retriever = make_tiny_retriever()
    student, record = distil(
        retriever,
        None,
        texts,
        FitConfig(epochs=4, learning_rate=3e-3, pseudo_queries=200),
        titles=texts,
        lexical=lexical,
        lexical_weight=0.6,
        folder=tmp_path,
    )
    assert len(record.losses) == 4
    assert record.losses[-1] < record.losses[0]
    queries = [" ".join(text.split()[1:3]) for text in texts[:8]]

    def divergence(of: Retriever) -> float:
        before = retriever.encode_queries(queries) @ retriever.encode_items(texts).T
        teacher = softmax((0.4 * before + 0.6 * lexical(queries)) / 0.05, axis=1)
        cosine = of.encode_queries(queries) @ of.encode_items(texts).T
        return float(rel_entr(teacher, softmax(cosine / 0.05, axis=1)).sum(axis=1).mean())

    assert divergence(student) < 0.7 * divergence(retriever)


def test_distilled_follows_on_full(
    make_tiny_retriever: Make,
    pairs: Interactions,
    texts: list[str],
    lexical: LexicalScorer,
    tmp_path: Path,
    tiny_vocabulary: tuple[str, ...],
) -> None:
    config = FitConfig(epochs=2, learning_rate=1e-3, held_out=0.0, pseudo_queries=40)
    options = {"folder": tmp_path, "method": "distilled", "lexical": lexical, "titles": texts}
    result = adapt(make_tiny_retriever(), pairs, texts, config, **options)
    assert len(result.losses) == result.best_epoch == 4
    # All of a BERT of one layer, 32 wide, 64 inside, 64 positions, two segments.
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 2 * 32
    assert result.trained_parameters == (len(tiny_vocabulary) + 64 + 2 + 2) * 32 + layer
    again = adapt(make_tiny_retriever(), pairs, texts, config, **options)  # finished: nothing to do
    for a, b in zip(
        result.retriever.model.get_weights(), again.retriever.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_distilled_needs_words(
    make_tiny_retriever: Make, pairs: Interactions, texts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="distilled needs the lexical score"):
        adapt(make_tiny_retriever(), pairs, texts, method="distilled", folder=tmp_path)


def test_titles_that_make_no_query(
    make_tiny_retriever: Make, texts: list[str], lexical: LexicalScorer, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no query can be made from the titles"):
        distil(
            make_tiny_retriever(),
            None,
            texts,
            FitConfig(),
            titles=["12"] * len(texts),
            lexical=lexical,
            lexical_weight=0.5,
            folder=tmp_path,
        )
