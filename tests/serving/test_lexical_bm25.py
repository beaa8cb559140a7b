from __future__ import annotations

import math

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.lexical.bm25 import FieldTerms, bm25_impacts


def field(texts: list[list[int]], weight: float = 1.0) -> FieldTerms:
    items = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    return FieldTerms(items, np.array([t for text in texts for t in text], int), weight)


def matrix(fields: list[FieldTerms], items: int, terms: int, k1: float, b: float) -> np.ndarray:
    result = np.zeros((terms, items))
    of_term, of_item, impact = bm25_impacts(fields, item_count=items, term_count=terms, k1=k1, b=b)
    result[of_term, of_item] = impact
    return result


def test_against_the_formula_worked_out_by_hand():
    found = matrix([field([[0, 0, 1], [1]])], 2, 2, k1=1.5, b=0.75)
    idf_of_0 = math.log(1 + 1.5 / 1.5)  # one of two items
    idf_of_1 = math.log(1 + 0.5 / 2.5)  # both
    # Lengths 3 and 1, mean 2.
    expected = [
        [idf_of_0 * 2 / (2 + 1.5 * (0.25 + 0.75 * 1.5)), 0],
        [
            idf_of_1 * 1 / (1 + 1.5 * (0.25 + 0.75 * 1.5)),
            idf_of_1 * 1 / (1 + 1.5 * (0.25 + 0.75 * 0.5)),
        ],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_fields_are_added_before_saturation():
    # Term 0: once in a field of weight 1, once in one of weight 0.5; all lengths are the mean.
    found = matrix([field([[0], [1]]), field([[0], [1]], 0.5)], 2, 2, k1=1.2, b=0.75)
    assert found[0, 0] == pytest.approx(math.log(2) * 1.5 / (1.5 + 1.2), rel=1e-6)


def test_mean_length_is_of_the_items_that_have_the_field():
    found = matrix([field([[0, 0], [], []])], 3, 1, k1=1.0, b=1.0)
    assert found[0, 0] == pytest.approx(math.log(1 + 2.5 / 1.5) * 2 / (2 + 1), rel=1e-6)


def test_no_terms_at_all():
    assert not matrix([field([[], []])], 2, 3, k1=1.5, b=0.75).any()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=2, max_size=12),
    st.floats(0.1, 3),
    st.floats(0, 1),
)
def test_one_field_against_bm25s(texts, k1, b):
    peer = bm25s.BM25(method="lucene", k1=k1, b=b)
    peer.index([[str(t) for t in text] for text in texts], show_progress=False)
    found = matrix([field(texts)], len(texts), 10, k1, b)
    for term in range(10):
        if any(term in text for text in texts):
            np.testing.assert_allclose(found[term], peer.get_scores([str(term)]), atol=1e-4)
