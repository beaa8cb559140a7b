"""Where a table is, and what columns are called there: ``products.csv:item_id=sku,title=name``."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    def of(cls, given: str | os.PathLike[str] | TableSource) -> TableSource:
        """Reads ``FILE`` or ``FILE:NAME=COLUMN,NAME=COLUMN``; a file that is called so is one.

        Raises:
            InputError: what follows the colon is not of this form, or names something twice.
        """
        if isinstance(given, TableSource):
            return given
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
                raise InputError(
                    f"{self.file}: no column {column!r} to be read as {name!r}; "
                    f"{described(columns, did_you_mean(column, columns))}"
                )
        return self.names_of(columns)

    def shown(self, name: str) -> str:
        """What a column is called in messages: by the file's own name, and the one that counts."""
        own = [column for column, other in self.names.items() if other == name and column != name]
        return f"column {own[0]!r}, read as {name!r}," if own else f"column {name!r}"

    def with_name(self, name: str, column: str) -> str | None:
        """This source, with a further column named; None where that cannot be written."""
        if "," in column or column != column.strip():
            return None
        pairs = [*((name, own) for own, name in self.names.items()), (name, column)]
        return f"{self.file}:{','.join('='.join(pair) for pair in pairs)}"

    def names_of(self, columns: Sequence[str]) -> list[str]:
        """As `rename`, of some columns of the file."""
        taken = set(self.names.values())
        return [self.names.get(name, "" if name in taken else name) for name in columns]


def described(columns: Sequence[str], hint: str) -> str:
    """The columns of a file and a hint, for a message; or that the delimiter is a wrong one."""
    shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
    if len(columns) == 1 and (other := re.search(r"[;|\t,]", columns[0])):
        hint = f": is {other[0]!r} the delimiter? .csv files need ',', .tsv files a tab"
    return f"the columns are {shown}{hint}"


def near_columns(missing: str, columns: Sequence[str], others: Iterable[str] = ()) -> list[str]:
    """Columns that are called nearly so, the nearest first.

    Args:
        missing: what is looked for.
        columns: what there is.
        others: what else may be looked for: what is one of these by all but its case ("Title") is
            not to become this one.
    """
    plain = {name: re.sub(r"[\W_]", "", name).lower() for name in (missing, *others, *columns)}
    taken = {plain[name] for name in others} - {plain[missing]}
    by_letters = {plain[name]: name for name in columns if plain[name] not in taken}
    near = [plain[missing]] if plain[missing] in by_letters else []
    near = near or difflib.get_close_matches(plain[missing], by_letters, n=3, cutoff=0.5)
    return [by_letters[letters] for letters in near]


def did_you_mean(missing: str, columns: Sequence[str], others: Iterable[str] = ()) -> str:
    """A question about the nearest columns; empty where none is near."""
    near = near_columns(missing, columns, others)
    return f". Did you mean {' or '.join(map(repr, near))}?" if near else ""
