"""The weight of a term in an item, from counts: BM25 over several fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FieldTerms:
    """The terms of one field of every item.

    Attributes:
        items: integer ``[T]``, the item of each occurrence of a term.
        terms: integer ``[T]``, its term.
        weight: how much an occurrence in this field counts.
    """

    items: np.ndarray
    terms: np.ndarray
    weight: float


@dataclass(frozen=True)
class TermCounts:
    """What BM25 has to know of a catalogue as a whole. Counts of parts of it add up.

    Attributes:
        item_count: number of items, N.
        document_frequencies: integer ``[terms]``, how many items have a term in any field.
        field_words: integer ``[fields]``, the lengths of a field, added up over items.
        field_items: integer ``[fields]``, how many items have a field.
    """

    item_count: int
    document_frequencies: np.ndarray
    field_words: np.ndarray
    field_items: np.ndarray

    @classmethod
    def of(cls, fields: Sequence[FieldTerms], *, item_count: int, term_count: int) -> TermCounts:
        """Counts the terms of items; see `bm25_impacts`."""
        pairs = [field.terms.astype(np.int64) * item_count + field.items for field in fields]
        lengths = [np.bincount(field.items, minlength=item_count) for field in fields]
        return cls(
            item_count,
            np.bincount(np.unique(np.concatenate(pairs)) // item_count, minlength=term_count),
            np.array([of_field.sum() for of_field in lengths]),
            np.array([np.count_nonzero(of_field) for of_field in lengths]),
        )


def bm25_impacts(
    fields: Sequence[FieldTerms],
    *,
    item_count: int,
    term_count: int,
    k1: float,
    b: float,
    counts: TermCounts | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each term adds to the score of each item that has it.

    BM25F (Robertson, Zaragoza and Taylor 2004, "Simple BM25 extension to multiple weighted
    fields"): counts are divided by the field's length norm, weighted and added up over fields, and
    only their sum is saturated::

        tf = sum over fields of weight * count / (1 - b + b * length / mean length)
        impact = ln(1 + (N - df + .5) / (df + .5)) * tf / (tf + k1)

    With one field of weight 1 this is Lucene's BM25 ("Which BM25 do you mean?", Kamphuis et al.
    2020). Mean lengths are over items that have the field, as in Lucene.

    Args:
        fields: the fields.
        item_count: number of items, N.
        term_count: number of terms.
        k1: how soon further occurrences cease to count, above 0.
        b: how far longer texts are discounted, from 0 to 1.
        counts: of the catalogue that the items are a part of; of the items alone if None.

    Returns:
        Of each pair of a term and an item that has it: the term and the item, int64 ``[P]``, and
        the impact, float32 ``[P]``.
    """
    counts = counts or TermCounts.of(fields, item_count=item_count, term_count=term_count)
    pairs, frequencies = [], []
    for place, field in enumerate(fields):
        lengths = np.bincount(field.items, minlength=item_count)  # [N]
        mean = counts.field_words[place] / max(1, counts.field_items[place])
        pair, count = np.unique(
            field.terms.astype(np.int64) * item_count + field.items, return_counts=True
        )
        norm = 1 - b + b * lengths[pair % item_count] / mean if len(pair) else 1.0
        pairs.append(pair)
        frequencies.append(field.weight * count / norm)
    pair, entry = np.unique(np.concatenate(pairs), return_inverse=True)
    frequency = np.bincount(entry, np.concatenate(frequencies), minlength=len(pair))  # [P]
    terms, items = np.divmod(pair, item_count)
    df = counts.document_frequencies
    idf = np.log1p((counts.item_count - df + 0.5) / (df + 0.5))  # [terms]
    impacts = idf[terms] * frequency / (frequency + k1)
    return terms, items, impacts.astype(np.float32)
