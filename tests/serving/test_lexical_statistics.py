"""Statistics of a catalogue: they add up, and parts built with them score as the whole does."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from serving.lexical import LexicalIndex, LexicalStatistics
from serving.lexical.catalog_words import CatalogWords
from towers.errors import InputError

TITLES = ["Red mug", "The red garden rakes", "Garden rake, red red", "", "Lawnmower 20v", "Muggs"]
BRANDS = ["Harrow", "", "Oakfield Harrow", "Mug", "", ""]
QUERIES = ["mug", "red rake", "gardn", "lawn mower harrow", "zzz"]


def _fields(rows: list[int]) -> dict[str, list[str]]:
    return {"title": [TITLES[row] for row in rows], "brand": [BRANDS[row] for row in rows]}


def _statistics(rows: list[int]) -> LexicalStatistics:
    return LexicalStatistics.of(CatalogWords.read(_fields(rows)))


def test_counts_worked_out_by_hand() -> None:
    found = _statistics(list(range(6)))
    assert found.item_count == 6
    assert found.words["red"] == 4
    assert found.words["the"] == 1
    assert list(found.words) == sorted(found.words)
    # "rakes" and "rake" are one stem, "red red" is one item; "Mug" is a brand of the fourth.
    stems = {stem: found.stem_items[stem] for stem in ("red", "rake", "mug", "harrow", "garden")}
    assert stems == {"red": 3, "rake": 2, "mug": 2, "harrow": 2, "garden": 2}
    assert "the" not in found.stem_items  # a stop word
    # Red mug, red garden rakes, garden rake red red, lawnmower 20 v, muggs: no "the".
    assert found.field_words == {"title": 13, "brand": 4}
    assert found.field_items == {"title": 5, "brand": 3}


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5]], [[5, 0], [3], [4, 2, 1]]])
def test_parts_add_up_and_score_as_the_whole(parts: list[list[int]]) -> None:
    whole = _statistics(list(range(6)))
    total = LexicalStatistics.total(_statistics(rows) for rows in parts)
    assert total == whole
    assert list(total.words) == list(whole.words)
    assert total.digest() == whole.digest()
    assert total.digest() != _statistics([0, 1]).digest()

    expected = LexicalIndex.build(_fields(list(range(6)))).scores(tf.constant(QUERIES)).numpy()
    assert (expected[:4].max(axis=1) > 0).all()
    best = np.zeros(len(QUERIES))
    for rows in parts:
        index = LexicalIndex.build(_fields(rows), statistics=total)
        np.testing.assert_allclose(
            index.scores(tf.constant(QUERIES)), expected[:, rows], rtol=1e-6, atol=1e-7
        )
        best = np.maximum(best, index.best(tf.constant(QUERIES)))
    np.testing.assert_allclose(best, expected.max(axis=1), rtol=1e-6)


def test_statistics_of_another_catalogue_are_refused() -> None:
    with pytest.raises(InputError, match="lack the word '20'"):
        LexicalIndex.build(_fields([4]), statistics=_statistics([0, 1]))
