"""Queries made from titles: what a shop can train on before anybody has searched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.augmentation.typos import misspell

# Numbers of words, about those of real product searches.
_LENGTHS = (1, 2, 3, 4)
_LENGTH_SHARES = (0.08, 0.40, 0.37, 0.15)
_WORD = re.compile(r"\w(?:[\w./'-]*\w)?")
_ASIDE = re.compile(r"\([^)]*\)")  # "(12-Pack)": nobody types it
_TITLE_WORDS = 24
# A word says something about an item if it has letters and not every second title has it.
_MOST_COMMON = 0.05
_ATTEMPTS = 20


@dataclass(frozen=True)
class PseudoQueries:
    """Queries made from titles.

    Attributes:
        texts: the queries, lower case.
        misspelt: each with one slip.
        item_row: int64 ``[queries]``, row of the title that each was made from.
    """

    texts: list[str]
    misspelt: list[str]
    item_row: np.ndarray


def make_pseudo_queries(titles: Sequence[str], count: int, *, seed: int = 0) -> PseudoQueries:
    """Makes queries of one to four words out of random titles.

    Half of them are words that stand side by side, half words from all over the title in their
    order. A query holds at least one word of four letters or more that is not in over 5% of the
    titles (in a catalogue of under 100 items, in over 5 of them).

    Args:
        titles: of all items.
        count: number of queries; fewer come back where hardly a title has enough words.
        seed: same seed, same queries.
    """
    rng = np.random.default_rng([seed, 77])
    words = [_words(title) for title in titles]
    found = Counter(word for title in words for word in set(title))
    limit = max(5.0, _MOST_COMMON * len(titles))

    def telling(word: str) -> bool:
        return len(word) >= 4 and word.isalpha() and found[word] <= limit

    texts, rows = list[str](), list[int]()
    for _ in range(count * _ATTEMPTS):
        if len(texts) == count:
            break
        row = int(rng.integers(len(titles)))
        title = words[row]
        length = int(rng.choice(_LENGTHS, p=_LENGTH_SHARES))
        if len(title) < max(length, 2):
            continue
        if rng.random() < 0.5:
            start = int(rng.integers(len(title) - length + 1))
            chosen = title[start : start + length]
        else:
            places = np.sort(rng.choice(len(title), length, replace=False))
            chosen = [title[place] for place in places]
        if any(map(telling, chosen)):
            texts.append(" ".join(chosen))
            rows.append(row)
    misspelt = [misspell(text, rng) for text in texts]
    return PseudoQueries(texts, misspelt, np.array(rows, np.int64))


def _words(title: str) -> list[str]:
    return _WORD.findall(_ASIDE.sub(" ", title.lower()))[:_TITLE_WORDS]
