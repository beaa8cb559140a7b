"""Texts with words in another order."""

from __future__ import annotations

import numpy as np

_SHARE = 0.1


def swap_words(text: str, rng: np.random.Generator) -> str:
    """Lets two words change places, once for every ten words, at least once.

    Reference: Wei & Zou 2019, "EDA", EMNLP (random swap, alpha .1).

    Args:
        text: words separated by spaces.
        rng: decides which.

    Returns:
        The same words; the text as it was where it has fewer than two.
    """
    words = text.split()
    if len(words) < 2:
        return text
    for _ in range(max(1, round(_SHARE * len(words)))):
        one, other = rng.choice(len(words), 2, replace=False).tolist()
        words[one], words[other] = words[other], words[one]
    return " ".join(words)
