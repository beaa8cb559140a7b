"""The place of a text that holds a word, short enough to be read in passing."""

from __future__ import annotations

import re

from training.profile.stems import words_with_stems

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_LONGEST = 100


def quotation(text: str, stem: str, longest: int = _LONGEST) -> str:
    """The first sentence with a word of the stem, cut at spaces around it where it is long.

    Args:
        text: what was written.
        stem: of a word in it.
        longest: characters, the marks of what was left out aside.
    """
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
        found = next((word for word, of in words_with_stems(sentence) if of == stem), None)
        if found is not None:
            return _around(sentence, found, longest)
    return _around(" ".join(text.split()), "", longest)


def _around(sentence: str, word: str, longest: int) -> str:
    if len(sentence) <= longest:
        return sentence
    at = max(sentence.lower().replace("’", "'").find(word), 0)
    first = max(0, min(at + (len(word) - longest) // 2, len(sentence) - longest))
    cut = sentence[first : first + longest]
    before, after = first > 0, first + longest < len(sentence)
    if before and sentence[first - 1] != " ":
        cut = cut.partition(" ")[2] or cut
    if after and sentence[first + longest] != " ":
        cut = cut.rpartition(" ")[0] or cut
    return f"{'… ' if before else ''}{cut.strip()}{' …' if after else ''}"
