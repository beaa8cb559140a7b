"""Texts with words left out."""

from __future__ import annotations

import numpy as np

_SHARE = 0.1


def drop_words(text: str, rng: np.random.Generator) -> str:
    """Leaves out a tenth of the words, at least one.

    Reference: Wei & Zou 2019, "EDA", EMNLP (random deletion, alpha .1; here of a fixed number of
    words, because a search of three words would hardly ever lose one).

    Args:
        text: words separated by spaces.
        rng: decides which.

    Returns:
        The other words in their order; the text as it was where it has fewer than two words.
    """
    words = text.split()
    if len(words) < 2:
        return text
    dropped = rng.choice(len(words), max(1, round(_SHARE * len(words))), replace=False)
    return " ".join(np.delete(np.array(words, object), dropped))
