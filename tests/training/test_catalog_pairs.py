"""Pairs made of a catalogue: what each kind holds, and what no batch may hold."""

from __future__ import annotations

import numpy as np
import pytest

from towers.errors import InputError
from training.catalog_pairs import make_catalog_pairs

TITLES = [f"garden hose number{chr(97 + n)} made of rubber" for n in range(24)]
TEXTS = [f"{title}. {'a long description of it ' * 3}" for title in TITLES]


def test_three_kinds() -> None:
    made = make_catalog_pairs(TITLES, TEXTS, 90, seed=2)
    assert len(made) == len(made.item_row) == len(made.weight) == len(made.grade) <= 90
    assert len(set(made.queries)) == len(made.queries)
    kinds = {"title": 0, "crop": 0, "words": 0}
    for query_row, row in zip(made.query_row.tolist(), made.item_row.tolist(), strict=True):
        query, text = made.queries[query_row], made.item_texts[row]
        if query == TITLES[row]:
            assert query not in text
            assert text.split()[-2:] == ["of", "it"]
            kinds["title"] += 1
        else:
            assert text == TEXTS[row]  # such an item is never in two texts
            is_crop = query in text
            kinds["crop" if is_crop and len(query.split()) > 4 else "words"] += 1
    assert kinds["title"] == 8  # a third of the 24
    assert min(kinds.values()) >= 8


def test_a_title_that_is_all_there_is_has_no_rest() -> None:
    made = make_catalog_pairs(TITLES, TITLES, 60)
    assert made.item_texts == TITLES
    assert len(made) > 40


def test_same_seed_same_pairs() -> None:
    one, two, other = (make_catalog_pairs(TITLES, TEXTS, 60, seed=seed) for seed in (1, 1, 2))
    assert one.queries == two.queries
    np.testing.assert_array_equal(one.item_row, two.item_row)
    assert one.queries != other.queries


@pytest.mark.parametrize("titles", [["Kettle"], ["Kettle one", "Kettle one"], ["", ""], ["5", "6"]])
def test_nothing_to_learn_from(titles: list[str]) -> None:
    with pytest.raises(InputError, match="two different items are needed"):
        make_catalog_pairs(titles, titles, 50)
