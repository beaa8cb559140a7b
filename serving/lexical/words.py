"""Splitting text into words, the same way for items at build time and queries in the graph."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_text as tf_text

# A word is a run of letters, or a number with its decimals or fraction: "20v" is two words, "3/4"
# and "1.5" one (docs/lexical.md has what other ways of splitting were worth).
_NUMBER = r"[0-9]+(?:[./][0-9]+)*"
_LETTERS = r"[\p{L}\p{Mc}]+"
_WORD_OR_OTHER = rf"(?s)({_NUMBER}|{_LETTERS})|."
_NUMBER_SYMBOL = r"(\p{No})"  # "½", "²"
_SYMBOL = r"\p{So}"  # "™", "°"
_NON_SPACING_MARK = r"\p{Mn}"
_FRACTION_SLASH = "\u2044"
_CJK = r"([\p{Han}\p{Hiragana}\p{Katakana}])"


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """Words of texts: lower case, without accents, in order.

    Compatibility decomposition (NFKD) where the towers' tokenizer uses NFD: what looks alike is to
    match, so the ligature "ﬁ" is "fi" and "2½" is "2" and "1/2". Chinese and Japanese characters
    are words of their own.

    Args:
        texts: string ``[N]``, bytes of any kind; what is not UTF-8 separates words.

    Returns:
        string ragged ``[N, (words)]``.
    """
    # A NUL would end the text: the normaliser reads no further.
    x = tf.strings.unicode_transcode(
        texts, "UTF-8", "UTF-8", errors="replace", replace_control_characters=True
    )
    x = tf.strings.lower(x, encoding="utf-8")
    # Else "2½" would become "21/2", and "Kindle™" "kindletm".
    x = tf.strings.regex_replace(x, _NUMBER_SYMBOL, r" \1 ")
    x = tf.strings.regex_replace(x, _SYMBOL, " ")
    x = tf_text.normalize_utf8(x, "NFKD")
    x = tf.strings.lower(x, encoding="utf-8")  # some symbols decompose into capitals
    x = tf.strings.regex_replace(x, _NON_SPACING_MARK, "")
    x = tf.strings.regex_replace(x, _FRACTION_SLASH, "/")
    x = tf.strings.regex_replace(x, _CJK, r" \1 ")
    # What the group did not match is replaced by a space alone.
    return tf.strings.split(tf.strings.regex_replace(x, _WORD_OR_OTHER, r"\1 "))


def is_letters(words: tf.Tensor) -> tf.Tensor:
    """Whether each word of `split_words` is made of letters and not a number: bool ``[N]``."""
    return tf.strings.regex_full_match(words, _LETTERS)
