"""The forms in which a searcher may write an English word."""

from __future__ import annotations

_VOWELS = "aeiou"
_SUFFIXES = ("s", "es", "ed", "ing", "er", "ers", "or", "ors", "est", "ly", "able", "ment", "ness")
_AFTER_E = ("ed", "er", "ers", "ing", "able")  # "store": "stored", "storing"
_AFTER_Y = ("ies", "ied", "ier", "iest", "iers", "ily", "iness")  # "dry": "dries", "drier"
_AFTER_DOUBLING = ("ed", "ing", "er", "ers", "est")  # "trim": "trimmed", "trimming"


def inflections(stem_or_word: str) -> set[str]:
    """Candidate spellings of forms of a word, itself included; many are not English.

    The caller keeps those that a stemmer leads back to the word, so what is made up here does no
    harm: nobody types it.

    Args:
        stem_or_word: lower-case; a Snowball stem ("batteri", "stor") or a word.
    """
    bases = {stem_or_word}
    if stem_or_word.endswith("i"):
        bases.add(stem_or_word[:-1] + "y")
    elif not stem_or_word.endswith(("e", "y")):
        bases.add(stem_or_word + "e")
    forms = set(bases)
    for base in bases:
        forms.update(base + suffix for suffix in _SUFFIXES)
        if base.endswith("e"):
            forms.update(base[:-1] + suffix for suffix in _AFTER_E)
        if base.endswith("y"):
            forms.update(base[:-1] + suffix for suffix in _AFTER_Y)
        if len(base) >= 3 and base[-1] not in _VOWELS + "wxy" and base[-2] in _VOWELS:
            forms.update(base + base[-1] + suffix for suffix in _AFTER_DOUBLING)
    return forms
