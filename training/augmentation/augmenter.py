"""Several changes of a text, each with a probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.augmentation.back_translation import BackTranslation
from training.augmentation.synonyms import WORDNET, Synonyms
from training.augmentation.typos import misspell
from training.augmentation.units import respell_unit
from training.augmentation.word_dropout import drop_words
from training.augmentation.word_swap import swap_words

if TYPE_CHECKING:
    from training.config import AugmentConfig

Augmentation = Callable[[str, np.random.Generator], str]
"""From a text and a random generator to a changed text, or the same where nothing can change."""


@dataclass(frozen=True)
class Change:
    """An augmentation, and how often it happens.

    Attributes:
        probability: from 0 to 1.
        augmentation: the function.
    """

    probability: float
    augmentation: Augmentation


@dataclass(frozen=True)
class Augmenter:
    """Changes of a text one after the other, each with its probability: itself an `Augmentation`.

    Attributes:
        changes: in their order.
    """

    changes: Sequence[Change]

    @classmethod
    def from_config(cls, config: AugmentConfig, texts: Sequence[str]) -> Augmenter | None:
        """The changes that a configuration asks for; None where there are none.

        Whole texts are changed first, then words, then letters: a misspelt word has no synonym.

        Args:
            config: probabilities.
            texts: those that will be changed.

        Raises:
            InputError: synonyms or the translator cannot be had.
        """
        changes = list[Change]()
        if config.back_translation:
            assert config.translator is not None  # AugmentConfig sees to it
            translate = BackTranslation.load(config.translator)
            translation = BackTranslation(translate, texts, name=config.translator)
            changes.append(Change(config.back_translation, translation))
        if config.synonyms:
            assert config.synonyms_from is not None
            if config.synonyms_from == WORDNET:
                synonyms = Synonyms.from_wordnet({word for text in texts for word in text.split()})
            else:
                synonyms = Synonyms.read(config.synonyms_from)
            changes.append(Change(config.synonyms, synonyms))
        changes += [
            Change(config.units, respell_unit),
            Change(config.word_dropout, drop_words),
            Change(config.word_swap, swap_words),
            Change(config.typos, misspell),
        ]
        changes = [change for change in changes if change.probability]
        return cls(changes) if changes else None

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The changed text."""
        for change in self.changes:
            if rng.random() < change.probability:
                text = change.augmentation(text, rng)
        return text
