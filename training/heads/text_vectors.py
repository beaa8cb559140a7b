"""What a head reads: texts as vectors of one tower of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from towers.encoding import BatchEncoder, Progress
from towers.errors import InputError
from towers.fingerprint import fingerprint
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.tokenizer import Tokenizer
from training.run_folder import RunFolder

Tower = Literal["query", "item"]

# Reviews are longer than queries; what most encoders were trained with.
_MAX_LENGTH = 128


@dataclass(frozen=True)
class TextVectors:
    """One tower of a model, used to encode any texts.

    Attributes:
        model: what it was loaded from.
        tower: ``query`` or ``item``.
        max_length: longest text in tokens, ``[CLS]`` and ``[SEP]`` included.
        prefix: put before every text; the query tower's own.
        encoder: the tower.
        tokenizer: its tokenizer.
    """

    model: str
    tower: Tower
    max_length: int
    prefix: str
    encoder: TextEncoder
    tokenizer: Tokenizer

    @classmethod
    def load(
        cls, model: str, *, tower: Tower = "query", max_length: int | None = None
    ) -> TextVectors:
        """Loads a tower.

        Args:
            model: a run folder of `towers train`, a model folder, or any preset of
                `towers.checkpoint`.
            tower: which one; they differ where they were trained apart.
            max_length: in tokens; 128, or what the encoder has positions for, if None.

        Raises:
            InputError: there is no such model, or `max_length` is below 3 or over the encoder's
                positions.
        """
        encoder, tokenizer, prefix = _load_tower(model, tower)
        positions = int(encoder.backbone.max_sequence_length)
        if max_length is None:
            max_length = min(_MAX_LENGTH, positions)
        if not 3 <= max_length <= positions:
            raise InputError(
                f"max length {max_length}: expected 3 to {positions}, the positions of the encoder"
            )
        return cls(model, tower, max_length, prefix, encoder, tokenizer)

    def encode(
        self,
        texts: Sequence[str],
        *,
        dtype: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Encodes texts to unit vectors, float32 ``[len(texts), d]``.

        Args:
            texts: any number of strings.
            dtype: see `towers.encoding.BatchEncoder`.
            progress: told about the progress.
        """
        return BatchEncoder(self.encoder, self.tokenizer, dtype).encode(
            [self.prefix + text for text in texts], max_length=self.max_length, progress=progress
        )

    def fingerprint(self) -> str:
        """SHA-256 of all that decides a vector."""
        settings = f"{self.max_length} {self.prefix!r} {fingerprint(self.encoder, self.tokenizer)}"
        return hashlib.sha256(settings.encode()).hexdigest()


def _load_tower(model: str, tower: Tower) -> tuple[TextEncoder, Tokenizer, str]:
    """A tower with its tokenizer and the prefix of its texts."""
    path = Path(model)
    if (path / "run.json").is_file():
        retriever = RunFolder.existing(path).load_retriever()
    elif (path / "towers.keras").is_file():
        retriever = Retriever.load(path)
    else:
        return TextEncoder.from_preset(model), Tokenizer.from_preset(model), ""
    if tower == "query":
        return retriever.model.query_tower, retriever.tokenizer, retriever.text.query_prefix
    return retriever.model.item_tower, retriever.tokenizer, ""
