"""The words of items, field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from serving.lexical.words import split_words

_TEXTS_AT_A_TIME = 32_768


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
            of_field, items_of_field = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
            for start in range(0, len(texts), _TEXTS_AT_A_TIME):
                words, rows = _words(texts[start : start + _TEXTS_AT_A_TIME], ids)
                of_field.append(words)
                items_of_field.append(start + rows)
            found[name] = np.concatenate(of_field)
            items[name] = np.concatenate(items_of_field)
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


def _words(texts: Sequence[str], ids: dict[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
    """The id of every word of the texts, and its text's place, int64 ``[T]``; adds new words' ids.

    No word holds white space, and catalogues repeat themselves: what stands between white space is
    split into words once, however often it occurs.
    """
    pieces = tf.strings.split(tf.constant(list(texts)))  # [N, (pieces)]
    distinct, place = tf.unique(pieces.flat_values)
    words = split_words(distinct)  # [distinct, (words)]
    place = place.numpy()
    id_of = [ids.setdefault(word, len(ids)) for word in words.flat_values.numpy()]
    starts, lengths = words.row_starts().numpy()[place], words.row_lengths().numpy()[place]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = np.repeat(pieces.value_rowids().numpy(), lengths)
    return np.array(id_of, np.int64)[np.repeat(starts, lengths) + within], rows
