"""Paraphrases by translation into another language and back, by a function of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from towers.errors import InputError

Translator = Callable[[list[str]], Sequence[str]]
"""From texts to texts that say the same, one for each."""


class BackTranslation:
    """Replaces a text by its paraphrase. All texts are translated once, when this is made.

    Reference: Sennrich et al. 2016, "Improving Neural Machine Translation Models with Monolingual
    Data", ACL; as augmentation: Yu et al. 2018, "QANet", ICLR.

    Args:
        translate: the function.
        texts: those that will be changed.
        name: of the function, for messages.

    Raises:
        InputError: it does not return one text for each.
    """

    def __init__(
        self, translate: Translator, texts: Sequence[str], *, name: str = "the translator"
    ) -> None:
        texts = list(dict.fromkeys(texts))
        found = translate(texts) if texts else []
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise InputError(f"{name} returned {type(found).__name__}, not a list of texts")
        if len(found) != len(texts) or not all(isinstance(text, str) for text in found):
            raise InputError(
                f"{name} must return a text for each of its {len(texts)}; it returned "
                f"{len(found)} values of {', '.join(sorted({type(x).__name__ for x in found}))}"
            )
        self._paraphrases = dict(zip(texts, found, strict=True))

    @staticmethod
    def load(name: str) -> Translator:
        """The function that ``module:function`` names.

        Raises:
            InputError: there is no such module or function.
        """
        module, _, function = name.partition(":")
        if not module or not function:
            raise InputError(f"{name!r} names no function: write module:function")
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"{name!r} cannot be imported ({error}): the module must be installed, or lie in a "
                "folder of PYTHONPATH"
            ) from error
        if not callable(found):
            raise InputError(f"{name!r} is no function")
        return found

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The paraphrase; the text as it was where it is unknown or its paraphrase empty."""
        return self._paraphrases.get(text, "").strip() or text
