"""What was measured: one file for each system, number of shots and draw.

A file is written at once when its cell is finished, so that a report that was stopped goes on where
it was, and draws can be added later. Its name ends in a hash of everything that the numbers depend
on: with other data or settings a cell is another one, and the old file is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from towers.errors import InputError
from training.atomic_file import atomic_file

View = Literal["dense", "hybrid", "lexical"]
"""Ranking by the towers alone, by towers and words, by words alone."""

TITLES = 3
"""Items of each query that are kept, to be shown."""


@dataclass(frozen=True, order=True)
class Cell:
    """A system, adapted to one draw of shots.

    Attributes:
        system: a method of adaptation, ``bm25`` or ``sentence-transformers``.
        shots: positive pairs; 0 for no training.
        seed: of the draw, and of everything else that is random.
    """

    system: str
    shots: int = 0
    seed: int = 0

    def __str__(self) -> str:
        if not self.shots:
            return self.system
        return f"{self.system}, {self.shots:,} shots, seed {self.seed}"


class Ranking(BaseModel):
    """How good one ranking is, query by query.

    Attributes:
        values: the measure of each test query, None where it has nothing to find.
        first: ids of the first items of each query.
    """

    model_config = ConfigDict(frozen=True)

    values: list[float | None]
    first: list[list[str]]


class Measurement(BaseModel):
    """What a cell holds.

    Attributes:
        views: the rankings.
        lexical_weight: of the words in the hybrid ranking; None where there is none.
        trained_parameters: weights that training may change.
        seconds: of the whole adaptation, choices included; None where it was interrupted.
        peak_memory: bytes of the process, at most, while adapting; None where nothing was adapted.
        training: what training said about itself.
        identity: what the numbers depend on.
        packages: versions it was measured with.
        when: ISO 8601, UTC.
    """

    model_config = ConfigDict(frozen=True)

    views: dict[View, Ranking]
    lexical_weight: float | None = None
    trained_parameters: int = 0
    seconds: float | None = None
    peak_memory: int | None = None
    training: dict[str, Any] = {}
    identity: dict[str, Any]
    packages: dict[str, str]
    when: str


@dataclass(frozen=True)
class CellStore:
    """The folder of finished cells.

    Args:
        folder: made when the first cell is written.
    """

    folder: Path

    def path(self, cell: Cell, identity: Mapping[str, Any]) -> Path:
        """Where a cell of this identity is, or will be."""
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.folder / f"{cell.system}-{cell.shots}-{cell.seed}-{digest}.json"

    def read(self, cell: Cell, identity: Mapping[str, Any]) -> Measurement | None:
        """A finished cell, or None.

        Raises:
            InputError: its file is not what was written.
        """
        path = self.path(cell, identity)
        if not path.is_file():
            return None
        try:
            return Measurement.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InputError(
                f"{path} is damaged: remove it, and its cell is measured anew"
            ) from error

    def write(self, cell: Cell, measurement: Measurement) -> None:
        """Writes a finished cell, whole or not at all."""
        with atomic_file(self.path(cell, measurement.identity)) as partial:
            partial.write_text(measurement.model_dump_json(), "utf-8")
