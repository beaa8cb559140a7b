"""From the words of a catalogue, and their inflections, to stems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import Stemmer

from serving.lexical.inflections import inflections
from serving.lexical.stop_words import ENGLISH_STOP_WORDS


@dataclass(frozen=True)
class StemTable:
    """The stems of a catalogue, each with the words that lead to it.

    Snowball English (Porter 2001, "Snowball: a language for stemming algorithms") has no place in
    a graph of stock ops, so its results are listed: for every word of the catalogue, and for every
    inflection of those words whose stem the catalogue has. An unseen inflection therefore finds
    what it would find with the stemmer at hand.

    Attributes:
        stems: distinct stems; a stem's place is its id.
        of_word: int32 ``[words]``, id of the stem of each word asked about; -1 for a stop word.
        forms: word forms, no stop word among them: the words asked about and their inflections.
        of_form: int32 ``[forms]``, id of the stem of each form.
    """

    stems: list[str]
    of_word: np.ndarray
    forms: list[str]
    of_form: np.ndarray

    @classmethod
    def build(cls, words: Sequence[str]) -> StemTable:
        """Stems words that are distinct and lower-case; numbers stay what they are."""
        stemmer = _stemmer()
        stems, of_word = stem_words(words)
        ids = {stem: row for row, stem in enumerate(stems)}
        forms = {word: int(stem) for word, stem in zip(words, of_word, strict=True) if stem >= 0}
        seeds = {seed for seed in (*forms, *ids) if seed.isalpha()}
        candidates = sorted({form for seed in seeds for form in inflections(seed)})
        for form, stem in zip(candidates, stemmer.stemWords(candidates), strict=True):
            if stem in ids and form not in ENGLISH_STOP_WORDS:
                forms.setdefault(form, ids[stem])
        return cls(stems, of_word, list(forms), np.array(list(forms.values()), np.int32))


def stem_words(words: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct stems of distinct words, and the place of each word's, int32; -1 for a stop word."""
    ids: dict[str, int] = {}
    of_word = np.full(len(words), -1, np.int32)
    stems = _stemmer().stemWords(words)
    for row, (word, stem) in enumerate(zip(words, stems, strict=True)):
        if word not in ENGLISH_STOP_WORDS:
            of_word[row] = ids.setdefault(stem, len(ids))
    return list(ids), of_word


def _stemmer() -> Stemmer.Stemmer:
    """Without a cache, which costs more than it saves where no word comes twice."""
    return Stemmer.Stemmer("english", 0)
