from __future__ import annotations

import unicodedata

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.lexical import catalog_words
from serving.lexical.catalog_words import CatalogWords
from serving.lexical.words import is_letters, split_words


def split(text: str | bytes) -> list[str]:
    return [word.decode() for word in split_words(tf.constant([text])).flat_values.numpy()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("20V DeWALT", ["20", "v", "dewalt"]),
        ('3/4" x 12.5 ft.', ["3/4", "x", "12.5", "ft"]),
        ("1-1/2 in.", ["1", "1/2", "in"]),
        ("2½ in", ["2", "1/2", "in"]),
        ("Café CRÈME", ["cafe", "creme"]),
        ("ﬁne ＭＵＧ ５", ["fine", "mug", "5"]),
        ("m²", ["m", "2"]),
        ("men's", ["men", "s"]),
        ("Kindle™ 20°", ["kindle", "20"]),
        ("電気kettle", ["電", "気", "kettle"]),
        ("a\tb\nc\u00a0d\x00e", ["a", "b", "c", "d", "e"]),
        (b"red\xffmug", ["red", "mug"]),
        ("-- $ //", []),
        ("", []),
    ],
)
def test_words(text, words):
    assert split(text) == words


def test_rows_stay_apart():
    assert split_words(tf.constant(["a b", "", "c"])).to_list() == [[b"a", b"b"], [], [b"c"]]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_words_have_neither_case_nor_accents_nor_blanks(text):
    for word in split(text):
        assert word == word.lower()
        assert not any(unicodedata.category(c) in ("Mn", "Zs", "Po", "Cc") for c in word) or (
            word[0].isdigit()
        )


def test_letters_are_told_from_numbers():
    words = tf.constant(["mug", "3/4", "12", "電", "ß"])
    assert is_letters(words).numpy().tolist() == [True, False, False, True, True]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20) | st.just(" Red\tmug, ½in ΟΔΟΣ 漢字\x00 "), min_size=1))
def test_words_of_a_catalogue_are_those_of_its_texts_one_by_one(texts):
    catalog_words._TEXTS_AT_A_TIME, whole = 3, catalog_words._TEXTS_AT_A_TIME
    try:
        found = CatalogWords.read({"title": texts})
    finally:
        catalog_words._TEXTS_AT_A_TIME = whole
    words: list[list[str]] = [[] for _ in texts]
    for item, word in zip(found.items["title"], found.word_ids["title"], strict=True):
        words[item].append(found.words[word])
    assert words == [split(text) for text in texts]
