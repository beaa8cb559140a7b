from __future__ import annotations

import pytest
import snowballstemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.lexical.stems import StemTable

# Each word with forms a searcher may write of it.
FORMS = {
    "drill": ["drills", "drilled", "drilling"],
    "store": ["stores", "stored", "storing"],
    "battery": ["batteries"],
    "dry": ["dries", "dried", "drying"],
    "trim": ["trims", "trimmed", "trimming"],
    "box": ["boxes", "boxed"],
    "mount": ["mounting", "mounted", "mounts"],
    "cutting": ["cut", "cuts"],
    "shelving": ["shelve", "shelved"],
    "glasses": ["glass"],
}


def lookup(words: list[str]) -> dict[str, str]:
    table = StemTable.build(words)
    return {form: table.stems[stem] for form, stem in zip(table.forms, table.of_form, strict=True)}


@pytest.mark.parametrize(("word", "forms"), FORMS.items())
def test_forms_of_a_word_have_its_stem(word, forms):
    stem_of = lookup([word])
    assert {stem_of.get(form) for form in forms} == {stem_of[word]}


def test_every_form_has_the_stem_that_snowball_gives_it():
    # The pure Python Snowball: another implementation than the one under test.
    stemmer = snowballstemmer.stemmer("english")
    stem_of = lookup(sorted(FORMS))
    assert len(stem_of) > 2 * len(FORMS)
    assert {form: stemmer.stemWord(form) for form in stem_of} == stem_of


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abdegilnrsty", min_size=3, max_size=8), min_size=1, unique=True))
def test_regular_plurals_of_any_word_are_known(words):
    stemmer = snowballstemmer.stemmer("english")
    stem_of = lookup(words)
    for word in words:
        plural = word + "s"
        if stemmer.stemWord(plural) == stemmer.stemWord(word):
            assert stem_of.get(plural, stem_of.get(word)) == stem_of.get(word)
            assert plural in stem_of or word not in stem_of


def test_stop_words_have_no_stem_and_numbers_are_their_own():
    table = StemTable.build(["the", "3/4", "mug"])
    assert table.stems == ["3/4", "mug"]
    assert table.of_word.tolist() == [-1, 0, 1]
    assert "the" not in table.forms
    assert "3/4s" not in table.forms
