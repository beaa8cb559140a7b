from __future__ import annotations

import re

import bm25s
import numpy as np
import pytest
import snowballstemmer
import tensorflow as tf

from serving.lexical import LexicalIndex
from towers.errors import InputError

TITLES = [
    "Cordless lawnmower, 20-Volt",
    "Lawn edging, 3/4 in. x 20 ft.",
    "Stainless steel kitchen faucet",
    "Garden rake with steel tines",
    "Red mug",
    "Crème brûlée torch",
    "",
    "4-Volt mower for the lawn",
]


@pytest.fixture(scope="module")
def index() -> LexicalIndex:
    return LexicalIndex.build({"title": TITLES})


def found(index: LexicalIndex, query: str) -> list[int]:
    """Rows with a score, best first."""
    scores = index.scores(tf.constant([query])).numpy()[0]
    order = np.argsort(-scores, kind="stable")
    return [int(row) for row in order if scores[row] > 0]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("raking", [3]),
        ("BRULEE", [5]),
        ("fauucet", [2]),
        ("fraction 3/4", [1]),
        ("3", []),
        ("20v", [0, 1]),
        ("kitchenfaucet", [2]),
        ("the", []),
    ],
)
def test_what_is_found(index, query, rows):
    assert sorted(found(index, query)) == rows


def test_neighbours_count_as_the_word_they_make(index):
    assert set(found(index, "lawn mower")) == {0, 1, 7}
    plain = LexicalIndex.build({"title": TITLES}, correct_spelling=False)
    assert set(found(plain, "lawn mower")) == {1, 7}


def test_without_correction_unknown_words_find_nothing():
    plain = LexicalIndex.build({"title": TITLES}, correct_spelling=False)
    assert found(plain, "faucit") == []
    assert found(plain, "raking") == [3]


def test_scores_equal_those_of_bm25s(index):
    rng = np.random.default_rng(0)
    vocabulary = ["drilling", "drill", "batteries", "boxes", "red", "steel", "hose", "3/4", "20"]
    titles = [" ".join(rng.choice(vocabulary, rng.integers(1, 9))) for _ in range(60)]
    queries = [" ".join(rng.choice(vocabulary, rng.integers(1, 5))) for _ in range(20)]
    stemmer = snowballstemmer.stemmer("english")

    def tokens(text: str) -> list[str]:
        return [stemmer.stemWord(word) for word in text.split()]

    peer = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    peer.index([tokens(title) for title in titles], show_progress=False)
    expected = [peer.get_scores(tokens(query)) for query in queries]
    ours = LexicalIndex.build({"title": titles}, correct_spelling=False, k1=1.5, b=0.75)
    np.testing.assert_allclose(ours.scores(tf.constant(queries)), expected, atol=1e-4)


def test_every_word_of_the_catalogue_finds_its_items(index, tiny_catalog):
    texts = tiny_catalog["title"]
    ours = LexicalIndex.build({"title": texts})
    for row, text in enumerate(texts):
        for word in re.findall(r"[A-Za-z]{3,}", text):
            for form in (word, word + "s", word.upper()):
                if word not in ("for", "with"):
                    assert row in found(ours, form), form


def test_title_counts_more_than_description():
    fields = {"title": ["mug", "rake"], "description": ["rake", "mug"]}
    assert found(LexicalIndex.build(fields), "mug") == [0, 1]
    upside_down = LexicalIndex.build(fields, field_weights={"title": 0.1, "description": 1.0})
    assert found(upside_down, "mug") == [1, 0]
    titles_only = LexicalIndex.build(fields, field_weights={"title": 2.0})
    assert found(titles_only, "mug") == [0]


def test_any_single_field_counts_in_full(index):
    queries = tf.constant(["lawn mower", "faucit"])
    other = LexicalIndex.build({"name": TITLES})
    np.testing.assert_array_equal(other.scores(queries), index.scores(queries))


def test_a_batch_scores_as_its_queries_do(index):
    queries = ["lawn mower", "", "faucit", "steel"]
    one_by_one = [index.scores(tf.constant([query]))[0] for query in queries]
    np.testing.assert_array_equal(index.scores(tf.constant(queries)), one_by_one)


def test_awkward_queries_are_scored_with_finite_numbers(index, golden_texts):
    queries = [*golden_texts, "x" * 1_000_000, "mug " * 250_000, b"\xff\xfe", b"\x00"]
    scores = index.scores(tf.constant(queries)).numpy()
    assert scores.shape == (len(queries), len(TITLES))
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()


def test_nothing_asked_nothing_answered(index):
    assert index.scores(tf.zeros([0], tf.string)).shape == (0, len(TITLES))
    assert not index.scores(tf.constant(["", "the", "!?", "   "])).numpy().any()


@pytest.mark.parametrize("texts", [["", ""], ["3/4", "1"], ["the", "of"]])
def test_catalogues_with_next_to_no_words(texts):
    scores = LexicalIndex.build({"title": texts}).scores(tf.constant(["mug 1"])).numpy()
    assert scores.tolist() == [[0.0, pytest.approx(scores[0, 1])]]


def test_export_and_reload(index, tmp_path):
    module = tf.Module()
    module.index = index
    module.scores = tf.function(
        index.scores, input_signature=[tf.TensorSpec([None], tf.string, "query")]
    )
    tf.saved_model.save(module, str(tmp_path))
    queries = tf.constant(["lawn mower", "faucit", "", "raking"])
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.scores(queries), index.scores(queries))


def test_parameters_say_what_was_built(index):
    assert index.item_count == len(TITLES)
    assert index.parameters["field_weights"] == {"title": 1.0}
    assert index.parameters["word_forms"] > index.parameters["stems"] > 10


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {}, "a field of text"),
        ({"title": []}, {}, "an item"),
        ({"title": ["a"], "brand": ["b", "c"]}, {}, "one text for each item"),
        ({"title": ["a"]}, {"field_weights": {"brand": 1.0}}, "no field 'brand'"),
        ({"title": ["a"]}, {"field_weights": {"title": 0.0}}, "'title' must be above 0"),
        ({"title": ["a"]}, {"field_weights": {}}, "names no field"),
        ({"title": ["a"]}, {"k1": 0.0}, "k1 must be above 0"),
        ({"title": ["a"]}, {"b": 1.5}, "b from 0 to 1"),
    ],
)
def test_bad_input_is_named(fields, options, message):
    with pytest.raises(InputError, match=message):
        LexicalIndex.build(fields, **options)
