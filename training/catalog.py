"""The product catalogue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towers.errors import InputError
from towers.item_text import VECTOR, ItemTemplate
from training.columns import Kind
from training.tables import content_sha256, place, read_table

IMAGE = "image_embedding"

REQUIRED: dict[str, Kind] = {"item_id": "id", "title": "text"}
OPTIONAL: dict[str, Kind] = {
    "description": "text",
    "brand": "text",
    "category": "text",
    "price": "price",
    IMAGE: "vector",
}


@dataclass(frozen=True)
class Catalog:
    """Items, one a row, in file order.

    Attributes:
        table: Columns `item_id` and `title` without nulls; of `description`, `brand`, `category`
            (text), `price` (float64) and `image_embedding` (fixed-size list of float32) those that
            the file has; every other column of the file as text, an attribute.
        path: The file, for messages.
        sha256: see `training.tables.content_sha256`.
    """

    table: pa.Table = field(repr=False)
    path: str
    sha256: str

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Catalog:
        """Reads a catalogue in any format of `training.tables`.

        Raises:
            InputError: The file cannot be read, an item has no id or no title, two items have the
                same id, a price is not a number of 0 or more, embeddings differ in width; the
                message names the line and the column.
        """
        table = read_table(path, required=REQUIRED, optional=OPTIONAL, keep_other=True)
        _require_distinct_ids(path, table.column("item_id").combine_chunks())
        return cls(table, os.fspath(path), content_sha256(path))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def item_ids(self) -> np.ndarray:
        """Ids as an array of `str` objects, shape [items]."""
        return np.array(self.table.column("item_id").to_pylist(), dtype=object)

    def column(self, name: str) -> list[str | None]:
        """Returns a column as text, None where an item has no value.

        A price is written as short as it can be: `12.5`, and `12` for 12.0.

        Raises:
            InputError: There is no such column, or it holds vectors.
        """
        if name not in self.table.column_names or name == IMAGE:
            texts = [text for text in self.table.column_names if text != IMAGE]
            raise InputError(f"{self.path}: no text column {name!r}; there are {', '.join(texts)}")
        values = self.table.column(name).to_pylist()
        if name == "price":
            return [None if price is None else f"{price:.15g}" for price in values]
        return values

    def vectors(self, name: str) -> list[np.ndarray | None]:
        """Returns the column `image_embedding`, float32 `[width]` each, None for none.

        Raises:
            InputError: There is no such column of vectors.
        """
        if name != IMAGE or name not in self.table.column_names:
            raise InputError(
                f"{self.path}: no column of vectors {name!r}; a catalogue may have {IMAGE}"
            )
        column = self.table.column(name).combine_chunks()
        given = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.drop_null().flatten().to_numpy().reshape(-1, column.type.list_size)
        rows = iter(values)
        return [next(rows) if there else None for there in given]

    def row_of(self, item_ids: Sequence[str] | np.ndarray | pa.Array) -> np.ndarray:
        """Returns the row of each item id as int64, -1 where the id is unknown; same shape, [n]."""
        wanted = pa.array(item_ids, pa.large_string())
        known = self.table.column("item_id").combine_chunks().dictionary_decode()
        return pc.fill_null(pc.index_in(wanted, known), -1).to_numpy().astype(np.int64)


def render_items(template: ItemTemplate, catalog: Catalog) -> list[str]:
    """The item text of every catalogue row, with attributes behind it where the template has some.

    Raises:
        InputError: the template names a column the catalogue lacks, or a value of an attribute is
            not of its kind.
    """
    columns: dict[str, Sequence[object]] = {}
    for name, kind in template.attributes.items():
        columns[name] = catalog.vectors(name) if kind == VECTOR else catalog.column(name)
    columns |= {name: catalog.column(name) for name in template.columns}
    try:
        return template.render(columns)
    except InputError as error:
        raise InputError(f"{catalog.path}: {error}") from error


def _require_distinct_ids(path: str | os.PathLike[str], ids: pa.DictionaryArray) -> None:
    codes = ids.indices.to_numpy()  # [rows]
    rows = np.arange(len(codes))
    first = np.zeros(len(ids.dictionary), np.int64)
    first[codes[::-1]] = rows[::-1]  # the last write is the first row
    repeats = np.flatnonzero(first[codes] != rows)
    if len(repeats):
        row = int(repeats[0])
        more = f" (rows that repeat an id: {len(repeats)})" if len(repeats) > 1 else ""
        raise InputError(
            f"{path}: item_id {ids[row].as_py()!r} in {place(path, row)} is already in"
            f" {place(path, int(first[codes[row]]))}; ids must be unique{more}"
        )
