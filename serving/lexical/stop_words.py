"""English words that carry no meaning in a search."""

from __future__ import annotations

# fmt: off
ENGLISH_STOP_WORDS = frozenset(
    [
        "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is",
        "it", "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there",
        "these", "they", "this", "to", "was", "will", "with",
    ]
)
# fmt: on
"""Lucene's ``EnglishAnalyzer.ENGLISH_STOP_WORDS_SET``, which bm25s uses too."""
