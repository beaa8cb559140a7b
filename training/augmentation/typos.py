"""Misspellings the way hands make them."""

from __future__ import annotations

import numpy as np

# Neighbours on a QWERTY keyboard, rows shifted as on the keys.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SHORTEST = 4  # people seldom misspell shorter words, and these become other words


def misspell(text: str, rng: np.random.Generator) -> str:
    """One slip in one of the words: a letter left out, doubled, struck beside, swapped; a space
    too many or too few.

    Args:
        text: words separated by spaces.
        rng: decides which.

    Returns:
        The text with one slip; as it was where no word has four letters or more.
    """
    words = text.split()
    candidates = [
        row for row, word in enumerate(words) if len(word) >= _SHORTEST and word.isalpha()
    ]
    if not len(candidates):
        return text
    row = int(rng.choice(candidates))
    word = words[row]
    place = int(rng.integers(1, len(word) - 1))  # first letters are seldom wrong
    before, letter, after = word[:place], word[place], word[place + 1 :]
    slip = int(rng.integers(5))
    if slip == 0:
        words[row] = before + after
    elif slip == 1:
        words[row] = before + letter + letter + after
    elif slip == 2:
        words[row] = before + after[0] + letter + after[1:]
    elif slip == 3:
        words[row] = before + str(rng.choice(_neighbours(letter))) + after
    elif row + 1 < len(words) and rng.random() < 0.5:
        words[row : row + 2] = [word + words[row + 1]]
    else:
        words[row] = f"{before}{letter} {after}" if place > 1 else f"{before} {letter}{after}"
    return " ".join(words)


def _neighbours(letter: str) -> list[str]:
    """Keys that touch a letter's key; the letter itself where it is on none."""
    found = []
    for number, keys in enumerate(_ROWS):
        place = keys.find(letter.lower())
        if place < 0:
            continue
        for other, shifts in ((number, (-1, 1)), (number - 1, (0, 1)), (number + 1, (-1, 0))):
            if 0 <= other < len(_ROWS):
                near = [place + shift for shift in shifts]
                found += [_ROWS[other][key] for key in near if 0 <= key < len(_ROWS[other])]
    return found or [letter]
