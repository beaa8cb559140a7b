"""Pairs made of the catalogue itself, for contrastive training before anybody has searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from towers.errors import InputError
from training.pseudo_queries import make_pseudo_queries

_CROP = (0.1, 0.5)  # of the words
_FEWEST_WORDS = 2


@dataclass(frozen=True)
class CatalogPairs:
    """Texts in the place of queries, each with what it was taken from.

    Its arrays are those of `training.interactions.Interactions`, one entry a pair.

    Attributes:
        queries: distinct texts.
        query_row: int32 ``[pairs]``, index into `queries`.
        item_row: int32 ``[pairs]``, index into `item_texts`.
        grade: int32 ``[pairs]``, 1.
        weight: float32 ``[pairs]``, 1.
        item_texts: the item texts of the catalogue, those that are paired with their own title
            without it.
    """

    queries: list[str] = field(repr=False)
    query_row: np.ndarray = field(repr=False)
    item_row: np.ndarray = field(repr=False)
    grade: np.ndarray = field(repr=False)
    weight: np.ndarray = field(repr=False)
    item_texts: list[str] = field(repr=False)

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.query_row)


def make_catalog_pairs(
    titles: Sequence[str], item_texts: Sequence[str], count: int, *, seed: int = 0
) -> CatalogPairs:
    """Makes pairs of three kinds, about as many of each as the catalogue allows.

    - a title with the rest of its item's text: description, brand, attributes;
    - a query made of words of a title (`make_pseudo_queries`), half of them misspelt, with the
      item;
    - a crop, a tenth to half of the words of an item's text in one piece, with the item
      (Izacard et al. 2022, "Contriever", TMLR, section 3.1: cropping).

    The first kind has items of its own, a third of those that have more than a title: an item that
    stood in a batch with two different texts would be its own negative.

    Args:
        titles: of all items.
        item_texts: of all items.
        count: number of pairs; fewer come back where the catalogue is too small.
        seed: same seed, same pairs.

    Raises:
        InputError: fewer than two different items have words to learn from.
    """
    rng = np.random.default_rng([seed, 78])
    texts = list(item_texts)
    found: dict[tuple[str, int], None] = {}  # in order, each once

    rest = [_without(title, text) for title, text in zip(titles, texts, strict=True)]
    described = rng.permutation([row for row, text in enumerate(rest) if _is_some(text)])
    alone = described[: min(len(described) // 3, count // 3)].tolist()
    for row in alone:
        texts[row] = rest[row]
        found[titles[row], row] = None

    others = np.setdiff1d(np.arange(len(texts)), alone)
    wanted = (count - len(alone)) // 2
    made = make_pseudo_queries([titles[row] for row in others.tolist()], wanted, seed=seed)
    misspelt = rng.random(len(made.texts)) < 0.5
    for place, row in enumerate(others[made.item_row].tolist()):
        query = made.misspelt[place] if misspelt[place] else made.texts[place]
        found[query, row] = None

    croppable = [row for row in others.tolist() if len(texts[row].split()) > _FEWEST_WORDS]
    for row in rng.choice(croppable, wanted).tolist() if croppable else []:
        found[_crop(texts[row], rng), row] = None

    if len({texts[row] for _, row in found}) < 2:
        raise InputError(
            "nothing to learn from in the catalogue: two different items are needed, with titles "
            "of two words or more"
        )
    queries: dict[str, int] = {}
    query_row = [queries.setdefault(query, len(queries)) for query, _ in found]
    return CatalogPairs(
        queries=list(queries),
        query_row=np.array(query_row, np.int32),
        item_row=np.array([row for _, row in found], np.int32),
        grade=np.ones(len(found), np.int32),
        weight=np.ones(len(found), np.float32),
        item_texts=texts,
    )


def _without(title: str, text: str) -> str:
    return " ".join(text.replace(title, " ", 1).split()) if title else text


def _is_some(text: str) -> bool:
    return sum(any(map(str.isalnum, word)) for word in text.split()) >= _FEWEST_WORDS


def _crop(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    length = max(_FEWEST_WORDS, round(rng.uniform(*_CROP) * len(words)))
    start = int(rng.integers(len(words) - length + 1))
    return " ".join(words[start : start + length])
