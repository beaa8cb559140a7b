"""A file of texts, one a row."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import pyarrow as pa

from towers.errors import InputError
from towers.item_text import ItemTemplate
from training.tables import content_sha256, read_table


@dataclass(frozen=True)
class TextTable:
    """A table of which a template makes one text a row.

    Attributes:
        table: all columns of the file, as text.
        texts: one a row, empty where all its columns are.
        path: the file, for messages.
        sha256: see `training.tables.content_sha256`.
    """

    table: pa.Table = field(repr=False)
    texts: list[str] = field(repr=False)
    path: str
    sha256: str

    @classmethod
    def read(cls, path: str | os.PathLike[str], template: ItemTemplate) -> TextTable:
        """Reads a table in any format of `training.tables`.

        Raises:
            InputError: the file cannot be read, or lacks a column that the template names.
        """
        table = read_table(path, required={}, optional={}, keep_other=True)
        whole = cls(table, [], os.fspath(path), content_sha256(path))
        columns = {name: whole.column(name) for name in template.columns}
        return replace(whole, texts=template.render(columns))

    def column(self, name: str) -> list[str | None]:
        """A column, None where a row has no value.

        Raises:
            InputError: the file has no such column.
        """
        if name not in self.table.column_names:
            there = ", ".join(map(repr, self.table.column_names))
            raise InputError(f"{self.path}: no column {name!r}; the columns are {there}")
        return self.table.column(name).to_pylist()
