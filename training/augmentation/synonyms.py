"""Words in place of words that mean the same."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from towers.errors import InputError
from training.tables import read_table

WORDNET = "wordnet"
"""The name that stands for WordNet in place of a file."""


class Synonyms:
    """Replaces one word, or phrase, by another of its meaning.

    Reference: Wei & Zou 2019, "EDA", EMNLP (synonym replacement, of one word).

    Args:
        synonyms: by word or phrase in lower case, those that may stand in its place.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]]) -> None:
        self.synonyms = {text: list(others) for text, others in synonyms.items() if others}
        texts = sorted(map(re.escape, self.synonyms), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(texts)})(?!\w)") if texts else None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Synonyms:
        """Reads a table of the columns ``text`` and ``synonym``, which hold both ways.

        Args:
            path: in any format of `training.tables`; a text may stand in several rows.

        Raises:
            InputError: the file cannot be read, or is not such a table.
        """
        table = read_table(
            path, required={"text": "text", "synonym": "text"}, optional={}, keep_other=False
        )
        found = defaultdict[str, list[str]](list)
        rows = zip(table["text"].to_pylist(), table["synonym"].to_pylist(), strict=True)
        for one, other in rows:
            one, other = one.lower(), other.lower()
            for text, synonym in ((one, other), (other, one)):
                if text != synonym and synonym not in found[text]:
                    found[text].append(synonym)
        return cls(found)

    @classmethod
    def from_wordnet(cls, words: Iterable[str]) -> Synonyms:
        """The synonyms of some words in the WordNet that NLTK finds on this machine.

        Of each word the first meaning counts, its most frequent one: nothing says which is meant.

        Args:
            words: words of the texts that will be changed.

        Raises:
            InputError: NLTK is not installed, or has no WordNet here; nothing is downloaded.
        """
        try:
            from nltk.corpus import wordnet

            wordnet.ensure_loaded()
        except ImportError as error:
            raise InputError(
                "synonyms of WordNet need NLTK: pip install 'fewshot-towers[augment]', "
                "or name a file of synonyms"
            ) from error
        except LookupError as error:
            raise InputError(
                "NLTK finds no WordNet on this machine: python -m nltk.downloader wordnet, "
                "or name a file of synonyms"
            ) from error
        found = {}
        for word in {word.lower() for word in words if word.isalpha()}:
            meanings = wordnet.synsets(word)
            names = meanings[0].lemma_names() if meanings else []
            found[word] = [name.lower().replace("_", " ") for name in names if name.lower() != word]
        return cls(found)

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The text with one word or phrase replaced; as it was where none has a synonym."""
        lower = text.lower()
        # Lower case of some letters is longer: then places would not be those of the text.
        if self._pattern is None or len(lower) != len(text):
            return text
        matches = list(self._pattern.finditer(lower))
        if not matches:
            return text
        match = matches[int(rng.integers(len(matches)))]
        other = str(rng.choice(self.synonyms[match.group()]))
        return text[: match.start()] + other + text[match.end() :]
