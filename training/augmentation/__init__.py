"""Changed texts: each change is a function of a text and a random generator, one a file."""

from __future__ import annotations

from training.augmentation.augmenter import Augmentation, Augmenter, Change
from training.augmentation.back_translation import BackTranslation
from training.augmentation.synonyms import Synonyms
from training.augmentation.typos import misspell
from training.augmentation.units import respell_unit
from training.augmentation.word_dropout import drop_words
from training.augmentation.word_swap import swap_words

__all__ = [
    "Augmentation",
    "Augmenter",
    "BackTranslation",
    "Change",
    "Synonyms",
    "drop_words",
    "misspell",
    "respell_unit",
    "swap_words",
]
