"""Known words that look like an unknown one."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from serving.lexical.postings import Postings

# Chosen on Home Depot's train and valid queries; see docs/lexical.md.
_CANDIDATES = 3
_MIN_SIMILARITY = 0.4
_FREQUENCY_BONUS = 0.02
_MAX_LETTERS = 40


class SpellingCorrector(tf.Module):
    """Finds words that share most letter pairs with a word that is in no list.

    The similarity is Dice's coefficient of the sets of letter pairs, the ends of the word counted
    as letters (Angell, Freund and Willett 1983, "Automatic spelling correction using a trigram
    similarity measure"); a word that is e times as frequent gets `_FREQUENCY_BONUS` more. The best
    three count, with the square of their similarity: a doubtful correction counts less, and of
    "plasticbathroom" both parts are found.

    Args:
        words: distinct words made of letters, at least one.
        counts: integer ``[V]``, how often the catalogue has each.
    """

    def __init__(self, words: list[str], counts: np.ndarray) -> None:
        super().__init__(name="spelling")
        pairs = [sorted(_letter_pairs(word)) for word in words]
        sizes = np.array([len(of_word) for of_word in pairs])
        ids: dict[str, int] = {}
        keys = [ids.setdefault(pair, len(ids)) for of_word in pairs for pair in of_word]
        self._postings = Postings(
            np.array(keys),
            np.repeat(np.arange(len(words)), sizes),
            np.ones(len(keys)),
            key_count=len(ids),
            column_count=len(words),
        )
        self._pair_ids = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(ids)), tf.constant(list(ids.values()), tf.int32)
            ),
            default_value=-1,
        )
        self._sizes = tf.Variable(sizes.astype(np.float32), trainable=False)  # [V]
        bonus = (_FREQUENCY_BONUS * np.log(counts)).astype(np.float32)
        self._bonus = tf.Variable(bonus, trainable=False)  # [V]
        self.width = min(_CANDIDATES, len(words))

    def __call__(self, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The best corrections of each word.

        Args:
            words: string ``[U]``, made of letters; only the first 40 are looked at.

        Returns:
            Rows in the list of known words, int32 ``[U, width]``, and their weights, float32
            ``[U, width]``, which add up to 1 at most. Weight 0: not similar enough.
        """
        signature = (
            tf.TensorSpec([self.width], tf.int32),
            tf.TensorSpec([self.width], tf.float32),
        )
        # One after the other: all at once would need U rows as long as the list of words.
        return tf.map_fn(self._correct, words, fn_output_signature=signature, parallel_iterations=1)

    def _correct(self, word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        letters = tf.strings.unicode_split(word, "UTF-8")[:_MAX_LETTERS]
        letters = tf.concat([[" "], letters, [" "]], axis=0)
        pairs = tf.unique(letters[:-1] + letters[1:]).y
        ids = self._pair_ids.lookup(pairs)
        ids = tf.boolean_mask(ids, ids >= 0)
        shared = self._postings.weighted_sum(ids, tf.ones_like(ids, tf.float32))  # [V]
        size = tf.cast(tf.size(pairs), tf.float32)
        similarity = 2 * shared / (size + tf.convert_to_tensor(self._sizes))  # [V]
        similarity = tf.where(similarity >= _MIN_SIMILARITY, similarity, 0.0)
        preference = tf.where(similarity > 0, similarity + tf.convert_to_tensor(self._bonus), 0.0)
        rows = tf.math.top_k(preference, self.width).indices
        weights = tf.square(tf.gather(similarity, rows))
        return rows, weights / tf.maximum(1.0, tf.reduce_sum(weights))


def _letter_pairs(word: str) -> set[str]:
    padded = f" {word} "
    return {padded[i : i + 2] for i in range(len(padded) - 1)}
