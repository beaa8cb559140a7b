"""BM25 over a catalogue's words, inside a TensorFlow graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow as tf

from serving.lexical.bm25 import FieldTerms, bm25_impacts
from serving.lexical.catalog_words import CatalogWords
from serving.lexical.postings import Postings
from serving.lexical.spelling import SpellingCorrector
from serving.lexical.statistics import LexicalStatistics
from serving.lexical.stems import StemTable
from serving.lexical.stop_words import ENGLISH_STOP_WORDS
from serving.lexical.words import is_letters, split_words
from towers.errors import InputError
from towers.traced import traced_once

# Chosen on Home Depot's train and valid queries and ESCI's train queries; see docs/lexical.md.
DEFAULT_K1 = 0.5
DEFAULT_B = 0.5
MAIN_FIELD = "title"
OTHER_FIELD_WEIGHT = 0.1

_MAX_BYTES = 2_000
_MAX_WORDS = 32
_MIN_LETTERS_TO_JOIN = 2
_UNKNOWN = -1
_STOP_WORD = -2


class LexicalIndex(tf.Module):
    """Scores every item for a query by the words they share, misspelt ones included.

    Made of TensorFlow's own ops and TensorFlow Text's normaliser: an unmodified TensorFlow Serving
    loads it. Made by `build`; of a query it looks at the first 2,000 bytes and 32 words.

    - A word counts through its Snowball stem; a table knows the stems of all inflections of the
      catalogue's words (`StemTable`).
    - Two neighbouring words also count as the one they make: "lawn mower" finds "lawnmower".
    - A word that is not known counts as the known ones most like it (`SpellingCorrector`).

    Example:
        >>> index = LexicalIndex.build({"title": ["Red mug", "Garden rakes"]})
        >>> index.scores(tf.constant(["rake", "gardn", ""])).numpy().round(2)
        array([[0.  , 0.46],
               [0.  , 0.32],
               [0.  , 0.  ]], dtype=float32)
    """

    def __init__(
        self,
        postings: Postings,
        stems: StemTable,
        corrector: SpellingCorrector | None,
        correctable_stems: np.ndarray,
        parameters: dict[str, Any],
    ) -> None:
        super().__init__(name="lexical_index")
        # As a proxy, because a tf.Module would wrap a dict and save it.
        self._parameters = MappingProxyType(parameters)
        self._postings = postings
        self._corrector = corrector
        self._correctable_stems = tf.Variable(correctable_stems, trainable=False)  # [V]
        stop_words = sorted(ENGLISH_STOP_WORDS)
        stem_ids = np.concatenate([stems.of_form, np.full(len(stop_words), _STOP_WORD, np.int32)])
        self._stem_ids = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([*stems.forms, *stop_words]), tf.constant(stem_ids)
            ),
            default_value=_UNKNOWN,
        )
        self._scores_of_query = traced_once(self._scores_of_one, tf.TensorSpec([], tf.string))

    @classmethod
    def build(
        cls,
        fields: Mapping[str, Sequence[str]],
        *,
        field_weights: Mapping[str, float] | None = None,
        statistics: LexicalStatistics | None = None,
        correct_spelling: bool = True,
        k1: float = DEFAULT_K1,
        b: float = DEFAULT_B,
    ) -> LexicalIndex:
        """Indexes a catalogue.

        Args:
            fields: field name to its text for each item, ``[N]``, in the order of the rows; a text
                may be empty.
            field_weights: what a word in a field counts; only the fields named here are indexed.
                None: title 1 and every other field .1, or without a title all 1.
            statistics: of the catalogue that the items are a part of, its fields the indexed ones;
                of the items alone if None.
            correct_spelling: whether unknown words count as known ones that look like them, and
                neighbouring words as the one they make.
            k1: how soon a repeated word ceases to count; above 0.
            b: how far longer texts are discounted; from 0 to 1.

        Raises:
            InputError: no field or no item, columns of different lengths, a weight for a field that
                does not exist, a number out of its range, or statistics of another catalogue.
        """
        weights = _checked_weights(fields, field_weights)
        if not (0 < k1 < math.inf and 0 <= b <= 1):
            raise InputError(f"k1 must be above 0 and b from 0 to 1, not {k1} and {b}")
        found = CatalogWords.read({name: fields[name] for name in weights})
        statistics = statistics or LexicalStatistics.of(found)
        words, stems = list(statistics.words), statistics.stems
        place = statistics.rows_of(found.words)
        field_terms = []
        for name, weight in weights.items():
            terms = stems.of_word[place[found.word_ids[name]]]
            known = terms >= 0
            field_terms.append(FieldTerms(found.items[name][known], terms[known], weight))
        terms, rows, impacts = bm25_impacts(
            field_terms,
            item_count=found.item_count,
            term_count=len(stems.stems),
            k1=k1,
            b=b,
            counts=statistics.term_counts(weights),
        )
        postings = Postings(
            terms, rows, impacts, key_count=len(stems.stems), column_count=found.item_count
        )
        correctable = np.array(
            [row for row in np.flatnonzero(stems.of_word >= 0) if words[row].isalpha()], np.int64
        )
        corrector = None
        if correct_spelling and len(correctable):
            corrector = SpellingCorrector(
                [words[row] for row in correctable],
                np.array(list(statistics.words.values()))[correctable],
            )
        parameters = {
            "k1": k1,
            "b": b,
            "field_weights": weights,
            "correct_spelling": correct_spelling,
            "stems": len(stems.stems),
            "word_forms": len(stems.forms),
            "postings": len(postings),
        }
        return cls(postings, stems, corrector, stems.of_word[correctable], parameters)

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was built with and how large it is, for the manifest."""
        return dict(self._parameters)

    @property
    def item_count(self) -> int:
        """Number of items."""
        return self._postings.column_count

    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """BM25 of every item for each query; traceable inside a `tf.function`.

        Args:
            queries: string ``[N]``, bytes of any kind.

        Returns:
            float32 ``[N, items]``, 0 where query and item share nothing.
        """
        # One after the other: what a query needs beside its result then does not grow with N.
        return tf.map_fn(
            self._scores_of_query,
            queries,
            fn_output_signature=tf.TensorSpec([self.item_count], tf.float32),
            parallel_iterations=1,
        )

    def best(self, queries: tf.Tensor) -> tf.Tensor:
        """The highest BM25 of any item for each query: string ``[N]`` to float32 ``[N]``."""
        return tf.map_fn(
            lambda query: tf.reduce_max(self._scores_of_query(query)),
            queries,
            fn_output_signature=tf.TensorSpec([], tf.float32),
            parallel_iterations=1,
        )

    def _scores_of_one(self, query: tf.Tensor) -> tf.Tensor:
        query = tf.strings.substr(query, 0, _MAX_BYTES)
        words = split_words(query[None]).flat_values[:_MAX_WORDS]  # [W]
        stems = self._stem_ids.lookup(words)
        known = tf.boolean_mask(stems, stems >= 0)
        terms, weights = [known], [tf.ones_like(known, tf.float32)]
        if self._corrector is not None:
            letters = is_letters(words)
            joined = self._joined(words, letters & (stems != _STOP_WORD))
            terms.append(joined)
            weights.append(tf.ones_like(joined, tf.float32))
            rows, similarity = self._corrector(
                tf.boolean_mask(words, letters & (stems == _UNKNOWN))
            )
            correctable = tf.convert_to_tensor(self._correctable_stems)
            terms.append(tf.reshape(tf.gather(correctable, rows), [-1]))
            weights.append(tf.reshape(similarity, [-1]))
        return self._postings.weighted_sum(tf.concat(terms, 0), tf.concat(weights, 0))

    def _joined(self, words: tf.Tensor, joinable: tf.Tensor) -> tf.Tensor:
        """Stems of the known words that two neighbours make: int32 ``[J]``."""
        joinable &= tf.strings.length(words, unit="UTF8_CHAR") >= _MIN_LETTERS_TO_JOIN
        pairs = tf.boolean_mask(words[:-1] + words[1:], joinable[:-1] & joinable[1:])
        stems = self._stem_ids.lookup(pairs)
        return tf.boolean_mask(stems, stems >= 0)


def _checked_weights(
    fields: Mapping[str, Sequence[str]], field_weights: Mapping[str, float] | None
) -> dict[str, float]:
    """The weight of each field that is to be indexed, at least one."""
    counts = {name: len(texts) for name, texts in fields.items()}
    if not counts or not all(counts.values()):
        raise InputError("the lexical index needs a field of text and an item, and got none")
    if len(set(counts.values())) > 1:
        raise InputError(f"the fields must have one text for each item, not {counts}")
    if field_weights is None:
        other = OTHER_FIELD_WEIGHT if MAIN_FIELD in fields else 1.0
        return {name: 1.0 if name == MAIN_FIELD else other for name in fields}
    for name, weight in field_weights.items():
        if name not in fields:
            raise InputError(
                f"there is no field {name!r} to weight; fields are {', '.join(fields)}"
            )
        if not 0 < weight < math.inf:
            raise InputError(f"the weight of field {name!r} must be above 0, not {weight}")
    if not field_weights:
        raise InputError("field_weights names no field: there is nothing to index")
    return dict(field_weights)
