"""The words of items, field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from serving.lexical.words import split_words

_TEXTS_AT_A_TIME = 8_192


@dataclass(frozen=True)
class CatalogWords:
    """Every occurrence of a word in the fields of items.

    Attributes:
        item_count: number of items.
        words: the distinct words of all fields, in the order of the alphabet: what is made of them
            then does not depend on the order of the items.
        word_ids: field name to the place of each occurrence's word in `words`, int64 ``[T]``.
        items: field name to the item of each occurrence, int64 ``[T]``.
    """

    item_count: int
    words: list[str]
    word_ids: dict[str, np.ndarray]
    items: dict[str, np.ndarray]

    @classmethod
    def read(cls, fields: Mapping[str, Sequence[str]]) -> CatalogWords:
        """Splits texts into words.

        Args:
            fields: field name to its text for each item, ``[N]``.
        """
        ids: dict[bytes, int] = {}
        found, items = {}, {}
        for name, texts in fields.items():
            of_field: list[int] = []
            lengths = [np.zeros(0, np.int64)]
            for start in range(0, len(texts), _TEXTS_AT_A_TIME):
                words = split_words(tf.constant(list(texts[start : start + _TEXTS_AT_A_TIME])))
                lengths.append(words.row_lengths().numpy())
                of_field += [ids.setdefault(word, len(ids)) for word in words.flat_values.numpy()]
            found[name] = np.array(of_field, np.int64)
            items[name] = np.repeat(np.arange(len(texts)), np.concatenate(lengths))
        names = [word.decode() for word in ids]
        order = sorted(range(len(names)), key=names.__getitem__)
        place = np.empty(len(names), np.int64)
        place[order] = np.arange(len(names))
        return cls(
            len(next(iter(fields.values()))),
            [names[row] for row in order],
            {name: place[rows] for name, rows in found.items()},
            items,
        )
