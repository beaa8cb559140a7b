"""Queries made from titles, and their misspellings."""

from __future__ import annotations

import numpy as np
import pytest

from training.augmentation.typos import misspell
from training.pseudo_queries import make_pseudo_queries

TITLES = [
    "Stainless Steel Electric Kettle 1.7 l (Pack of 2)",
    "Garden Hose 25 m, Green/Black",
    "LED Head Torch, rechargeable",
    "Wasserkocher für Camping, faltbar",
    "5 x 7",  # nothing in it to search for
    "Lamp",
]


def is_part(words: list[str], title: list[str]) -> bool:
    """Whether the words stand in the title in this order."""
    rest = iter(title)
    return all(word in rest for word in words)


def test_queries_are_words_of_their_title_in_order() -> None:
    made = make_pseudo_queries(TITLES, 300, seed=1)
    assert len(made.texts) == len(made.misspelt) == len(made.item_row) == 300
    for text, row in zip(made.texts, made.item_row.tolist(), strict=True):
        title = TITLES[row].lower().replace(",", "").replace("(pack of 2)", "").split()
        words = text.split()
        assert 1 <= len(words) <= 4
        assert is_part(words, title), (text, title)
        assert any(len(word) >= 4 and word.isalpha() for word in words)
    assert set(made.item_row.tolist()) == {0, 1, 2, 3}
    assert any("für" in text for text in made.texts)
    assert not any("pack" in text for text in made.texts)


def test_lengths_are_as_documented() -> None:
    letters = [chr(97 + n % 26) for n in range(500)]
    titles = [f"alpha{letter} beta gamma delta epsilon zeta" for letter in letters]
    made = make_pseudo_queries(titles, 4000, seed=0)
    words = [len(text.split()) for text in made.texts]
    shares = np.bincount(words, minlength=5)[1:] / len(words)
    # Words in every title do not make a query, so single words are rarer than .08 here.
    assert 0 < shares[0] < 0.08
    assert shares[1] < shares[2]


def test_common_words_alone_are_no_query() -> None:
    titles = [f"premium quality widget{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(200)]
    made = make_pseudo_queries(titles, 400, seed=0)
    assert len(made.texts) == 400
    assert all("widget" in text for text in made.texts)


def test_same_seed_same_queries() -> None:
    one, two, other = (make_pseudo_queries(TITLES, 50, seed=seed) for seed in (3, 3, 4))
    assert one.texts == two.texts
    assert one.misspelt == two.misspelt
    assert one.texts != other.texts


@pytest.mark.parametrize("titles", [["12 34", "5 x 7"], ["", ""], ["x"]])
def test_titles_without_words_give_none(titles: list[str]) -> None:
    made = make_pseudo_queries(titles, 20)
    assert made.texts == []
    assert made.item_row.shape == (0,)


def edits(a: str, b: str) -> int:
    """Optimal string alignment distance, in which a swap of neighbours is one edit."""
    d = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = d[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, change)
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a), len(b)]


def test_one_slip_is_one_edit() -> None:
    rng = np.random.default_rng(0)
    slips = [misspell("garden hose with nozzle", rng) for _ in range(400)]
    distances = [edits("garden hose with nozzle", slip) for slip in slips]
    assert set(distances) <= {0, 1}  # 0: two equal letters changed places
    assert np.mean(distances) > 0.95
    assert len(set(slips)) > 60
    joined = [slip for slip in slips if len(slip.split()) != 4]
    assert 0.1 < len(joined) / len(slips) < 0.3
    assert {slip[0] for slip in slips} == {"g"}


def test_short_words_and_numbers_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    assert all(misspell("5 x 7 in. rug", rng) == "5 x 7 in. rug" for _ in range(20))
    assert misspell("", rng) == ""
