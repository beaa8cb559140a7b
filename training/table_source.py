"""Where a table is, and what columns are called there: ``products.csv:item_id=sku,title=name``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from towers.errors import InputError

FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
"""Endings of the names of files that are tables."""

_ENDINGS = "|".join(map(re.escape, FORMATS))
_WITH_NAMES = re.compile(rf"(?P<file>.+?(?:{_ENDINGS})):(?P<names>.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class TableSource:
    """A file, with the names that count here for columns that it calls otherwise.

    Attributes:
        file: the file, as it was given.
        names: the file's name of a column to the one that counts.
    """

    file: str
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: str | os.PathLike[str]) -> TableSource:
        """Reads ``FILE`` or ``FILE:NAME=COLUMN,NAME=COLUMN``; a file that is called so is one.

        Raises:
            InputError: what follows the colon is not of this form, or names something twice.
        """
        found = None if os.path.exists(given) else _WITH_NAMES.fullmatch(os.fspath(given))
        if found is None:
            return cls(os.fspath(given))
        pairs = [pair.split("=", 1) for pair in found["names"].split(",")]
        for pair in pairs:
            if len(pair) != 2 or not all(map(str.strip, pair)):
                raise InputError(
                    f"{os.fspath(given)}: {'='.join(pair)!r} is not of the form NAME=COLUMN; right "
                    f"would be {found['file']}:item_id=sku,title=name, to read the column sku as "
                    "item_id and name as title"
                )
        named = [(name.strip(), column.strip()) for name, column in pairs]
        for words in ([name for name, _ in named], [column for _, column in named]):
            twice = [word for word, count in Counter(words).items() if count > 1]
            if twice:
                raise InputError(f"{os.fspath(given)}: {twice[0]!r} is named twice")
        return cls(found["file"], {column: name for name, column in named})

    @property
    def path(self) -> Path:
        """The file on this machine."""
        return Path(self.file)

    @property
    def layout(self) -> str:
        """The ending of the file's name, without ``.gz``: .csv, .tsv, .jsonl or .parquet.

        Raises:
            InputError: it is none of `FORMATS`.
        """
        for ending in FORMATS:
            if self.file.lower().endswith(ending):
                return ending.removesuffix(".gz")
        raise InputError(
            f"{self.file}: unknown file format; the name must end in one of {', '.join(FORMATS)}"
        )

    def rename(self, columns: Sequence[str]) -> list[str]:
        """The names that count of all columns of the file, in its order.

        A column that is called as another one is to be, and has no new name itself, makes way: its
        name is empty, so that it is ignored.

        Raises:
            InputError: the file lacks a column that is to have another name.
        """
        for column, name in self.names.items():
            if column not in columns:
                shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
                raise InputError(
                    f"{self.file}: no column {column!r} to be read as {name!r}; the columns are "
                    f"{shown}"
                )
        return self.names_of(columns)

    def names_of(self, columns: Sequence[str]) -> list[str]:
        """As `rename`, of some columns of the file."""
        taken = set(self.names.values())
        return [self.names.get(name, "" if name in taken else name) for name in columns]
