"""Queries with items that were shown for them, and whether they were clicked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from towers.errors import InputError
from training.catalog import Catalog
from training.heads.click_head import PairFeatures
from training.interactions import UnknownItems, count_unknown
from training.tables import bad_cell, content_sha256, place, read_table, require_values

_NUMBER = "a number such as 12.5"


@dataclass(frozen=True)
class ClickPairs:
    """Shown pairs, one a row of a file; unlike `training.Interactions`, a pair may be repeated.

    Attributes:
        table: all rows and columns of the file.
        row: int64 ``[n]``, the rows of the table whose item the catalogue has.
        queries: distinct queries of the file.
        query_row: int32 ``[n]``, index into `queries`.
        item_row: int64 ``[n]``, row of the catalogue.
        clicked: bool ``[n]``; None where the file does not say.
        weight: float32 ``[n]``, above 0.
        catalog: the catalogue.
        unknown_items: rows left out.
        path: the file, for messages.
        sha256: see `training.tables.content_sha256`.
    """

    table: pa.Table = field(repr=False)
    row: np.ndarray = field(repr=False)
    queries: list[str] = field(repr=False)
    query_row: np.ndarray = field(repr=False)
    item_row: np.ndarray = field(repr=False)
    clicked: np.ndarray | None = field(repr=False)
    weight: np.ndarray = field(repr=False)
    catalog: Catalog = field(repr=False)
    unknown_items: UnknownItems
    path: str
    sha256: str

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        catalog: Catalog,
        *,
        click_column: str = "grade",
        min_grade: int = 1,
        strict: bool = False,
    ) -> ClickPairs:
        """Reads pairs in any format of `training.tables`.

        Args:
            path: the file: columns ``query`` and ``item_id``, the click column, ``weight`` (1 where
                it is absent), and any others, which may serve as features.
            catalog: rows whose item it lacks are left out and counted.
            click_column: a column of whole numbers.
            min_grade: the lowest of them that is a click.
            strict: whether an unknown item is an error.

        Raises:
            InputError: the file cannot be read, a value is not right, or no item is known.
        """
        table = read_table(
            path,
            required={"query": "text", "item_id": "id"},
            optional={click_column: "grade", "weight": "weight"},
            keep_other=True,
        )
        query = table.column("query").combine_chunks()
        item = table.column("item_id").combine_chunks()
        query_row = query.indices.to_numpy()
        item_row = catalog.row_of(item.dictionary)[item.indices.to_numpy()]
        known = item_row >= 0
        unknown = count_unknown(item, known, group=query_row)
        if unknown.rows and (strict or not known.any()):
            first = place(path, int(np.argmin(known)))
            raise InputError(f"{path}: {unknown}; first in {first}; catalogue: {catalog.path}")
        row = np.flatnonzero(known)
        clicked = None
        if click_column in table.column_names:
            grades = table.column(click_column).combine_chunks()
            require_values(path, click_column, grades)
            clicked = grades.to_numpy()[row] >= min_grade
        weight = np.ones(len(row), np.float32)
        if "weight" in table.column_names:
            given = table.column("weight").combine_chunks().fill_null(1)
            weight = given.to_numpy()[row].astype(np.float32)
        return cls(
            table=table,
            row=row,
            queries=query.dictionary.to_pylist(),
            query_row=query_row[row],
            item_row=item_row[row],
            clicked=clicked,
            weight=weight,
            catalog=catalog,
            unknown_items=unknown,
            path=os.fspath(path),
            sha256=content_sha256(path),
        )

    def __len__(self) -> int:
        return len(self.row)

    def require_clicks(self, click_column: str) -> np.ndarray:
        """`clicked`, or `InputError` where the file does not say or all pairs are alike."""
        if self.clicked is None:
            there = ", ".join(map(repr, self.table.column_names))
            raise InputError(
                f"{self.path}: no column {click_column!r} that says what was clicked; the columns "
                f"are {there}"
            )
        if self.clicked.all() or not self.clicked.any():
            what = "every pair is a click" if self.clicked.all() else "no pair is a click"
            raise InputError(
                f"{self.path}: {what} by column {click_column!r}; a probability needs items that "
                "were shown and clicked, and items that were shown and not clicked"
            )
        return self.clicked

    def features(
        self,
        scores: dict[str, np.ndarray],
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
    ) -> PairFeatures:
        """The features of each pair.

        Args:
            scores: floating ``[n]`` by name, see `training.heads.score_features`.
            numeric: columns of numbers, of the file or else of the catalogue.
            categorical: columns of names, likewise.

        Raises:
            InputError: there is no such column, it has the name of a score or is named twice, or a
                value is not a number.
        """
        names = [*scores, *numeric, *categorical]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"feature {twice!r} is there twice; {', '.join(scores)} are always")
        return PairFeatures(
            {**scores, **{name: self._numbers(name) for name in numeric}},
            {name: self._column(name)[0] for name in categorical},
        )

    def _column(self, name: str) -> tuple[list[str | None], str, np.ndarray]:
        """A column's value for each pair, with the file it is from and its rows there."""
        if name in self.table.column_names:
            values, path, rows = self.table.column(name).to_pylist(), self.path, self.row
            values = [None if value is None else str(value) for value in values]
        elif name in self.catalog.table.column_names:
            values, path, rows = self.catalog.column(name), self.catalog.path, self.item_row
        else:
            raise InputError(
                f"no column {name!r}, neither in {self.path} nor in {self.catalog.path}"
            )
        return [values[row] for row in rows.tolist()], path, rows

    def _numbers(self, name: str) -> np.ndarray:
        texts, path, rows = self._column(name)
        numbers = np.full(len(texts), np.nan)
        for pair, text in enumerate(texts):
            if text is not None:
                with contextlib.suppress(ValueError):
                    numbers[pair] = float(text)
                if not np.isfinite(numbers[pair]):
                    raise bad_cell(path, int(rows[pair]), name, text, _NUMBER)
        return numbers
