"""What the lexical score knows of a whole catalogue, whichever of its items an index holds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from serving.lexical.bm25 import FieldTerms, TermCounts
from serving.lexical.catalog_words import CatalogWords
from serving.lexical.stems import StemTable, stem_words
from towers.errors import InputError


@dataclass(frozen=True)
class LexicalStatistics:
    """Counts over the items of a catalogue.

    They add up: the statistics of a catalogue are the `total` of those of its parts. An index of
    some items that is built with the statistics of all of them gives these items the scores that
    an index of all gives them, spelling corrected alike.

    Attributes:
        item_count: number of items.
        words: word to how often it occurs in the fields, in the order of the alphabet.
        stem_items: stem to the number of items that have it in any field.
        field_words: field name to the number of its words, stop words left out.
        field_items: field name to the number of items that have such a word in it.
    """

    item_count: int
    words: dict[str, int]
    stem_items: dict[str, int]
    field_words: dict[str, int]
    field_items: dict[str, int]

    @classmethod
    def of(cls, found: CatalogWords) -> LexicalStatistics:
        """Counts the words of items."""
        stems, of_word = stem_words(found.words)
        fields = []
        occurrences = np.zeros(len(found.words), np.int64)
        for name, word_ids in found.word_ids.items():
            terms = of_word[word_ids]
            fields.append(FieldTerms(found.items[name][terms >= 0], terms[terms >= 0], 1.0))
            occurrences += np.bincount(word_ids, minlength=len(occurrences))
        counts = TermCounts.of(fields, item_count=found.item_count, term_count=len(stems))
        names = list(found.word_ids)
        return cls(
            found.item_count,
            dict(zip(found.words, occurrences.tolist(), strict=True)),
            dict(zip(stems, counts.document_frequencies.tolist(), strict=True)),
            dict(zip(names, counts.field_words.tolist(), strict=True)),
            dict(zip(names, counts.field_items.tolist(), strict=True)),
        )

    @classmethod
    def total(cls, parts: Iterable[LexicalStatistics]) -> LexicalStatistics:
        """The statistics of a catalogue, from those of parts that have no item in common."""
        item_count = 0
        words, stems, lengths, items = (Counter[str]() for _ in range(4))
        for part in parts:
            item_count += part.item_count
            words.update(part.words)
            stems.update(part.stem_items)
            lengths.update(part.field_words)
            items.update(part.field_items)
        return cls(item_count, dict(sorted(words.items())), dict(stems), dict(lengths), dict(items))

    @cached_property
    def stems(self) -> StemTable:
        """The stems of the words."""
        return StemTable.build(list(self.words))

    def rows_of(self, words: Sequence[str]) -> np.ndarray:
        """Places of words among those of the catalogue, int64.

        Raises:
            InputError: a word is not among them.
        """
        places = self._places
        try:
            return np.array([places[word] for word in words], np.int64)
        except KeyError as error:
            raise InputError(
                f"the statistics are of another catalogue: they lack the word {error.args[0]!r}"
            ) from error

    def term_counts(self, fields: Iterable[str]) -> TermCounts:
        """The counts that BM25 needs, by the stems' places in `stems`, of these fields in order."""
        names = list(fields)
        return TermCounts(
            self.item_count,
            np.array([self.stem_items[stem] for stem in self.stems.stems], np.int64),
            np.array([self.field_words[name] for name in names]),
            np.array([self.field_items[name] for name in names]),
        )

    def digest(self) -> str:
        """SHA-256 of all counts: equal iff scores of items may stand in one ranking."""
        parts = (self.words, self.stem_items, self.field_words, self.field_items)
        facts = [self.item_count, *(sorted(counts.items()) for counts in parts)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {word: row for row, word in enumerate(self.words)}
