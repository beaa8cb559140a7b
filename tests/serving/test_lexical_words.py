from __future__ import annotations

import unicodedata

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

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
