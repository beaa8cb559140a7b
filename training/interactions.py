"""Queries with their judged items, joined to a catalogue."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towers.errors import InputError
from training.catalog import Catalog
from training.columns import Kind
from training.tables import content_sha256, place, read_table

_REQUIRED: dict[str, Kind] = {"query": "text", "item_id": "id"}
_OPTIONAL: dict[str, Kind] = {
    "grade": "grade",
    "user_id": "id",
    "timestamp": "timestamp",
    "weight": "weight",
}
_LISTED = 10


@dataclass(frozen=True)
class UnknownItems:
    """Rows left out because the catalogue does not have their item.

    Attributes:
        rows: Number of such rows.
        items: Number of distinct ids in them.
        first: The first ten of those ids, in file order.
        queries: Number of queries (users, in histories) that have no other row.
    """

    rows: int = 0
    items: int = 0
    first: tuple[str, ...] = ()
    queries: int = 0

    def __str__(self) -> str:
        listed = ", ".join(self.first) + (", ..." if self.items > len(self.first) else "")
        return f"rows whose item the catalogue lacks: {self.rows}, ids: {self.items} ({listed})"


@dataclass(frozen=True)
class Interactions:
    """Judged (query, item) pairs, each pair once: parallel arrays, one entry a row.

    Attributes:
        queries: Distinct query texts, in order of first appearance.
        query_row: int32 [rows], index into `queries`.
        item_row: int32 [rows], row of the catalogue.
        grade: int32 [rows], 0 is a judged negative.
        weight: float32 [rows], above 0.
        catalog: The catalogue that `item_row` points into.
        path: The file, for messages.
        sha256: see `training.tables.content_sha256`.
        unknown_items: What was left out at reading.
        repeated_rows: Number of rows left out at reading because their pair has a better one.
        users: Distinct user ids, in order of first appearance; empty without a `user_id` column.
        user_row: int32 [rows], index into `users`, -1 where a row has no user; None without a
            `user_id` column.
        timestamp: datetime64[s] [rows], UTC, NaT where a row has none; None without a `timestamp`
            column.
    """

    queries: list[str] = field(repr=False)
    query_row: np.ndarray = field(repr=False)
    item_row: np.ndarray = field(repr=False)
    grade: np.ndarray = field(repr=False)
    weight: np.ndarray = field(repr=False)
    catalog: Catalog = field(repr=False)
    path: str
    sha256: str
    unknown_items: UnknownItems = field(default_factory=UnknownItems)
    repeated_rows: int = 0
    users: list[str] = field(default_factory=list, repr=False)
    user_row: np.ndarray | None = field(default=None, repr=False)
    timestamp: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], catalog: Catalog, *, strict: bool = False
    ) -> Interactions:
        """Reads interactions in any format of `training.tables`.

        A row without a grade has grade 1, one without a weight weight 1. Of several rows of one
        query and item, the one with the highest grade is kept, among those the one with the
        highest weight, then the first: repeating a row changes nothing, and whoever wants counts
        to matter says so in `weight`.

        Args:
            path: The file: columns `query` and `item_id`, and any of `grade`, `user_id`,
                `timestamp` (seconds, or ISO 8601) and `weight`; others are ignored.
            catalog: Rows whose item it lacks are left out and counted in `unknown_items`.
            strict: Whether such a row is an error.

        Raises:
            InputError: The file cannot be read, a value is not right, or no item is known.
        """
        table = read_table(path, required=_REQUIRED, optional=_OPTIONAL, keep_other=False)
        query = table.column("query").combine_chunks()
        item = table.column("item_id").combine_chunks()
        query_code = query.indices.to_numpy()  # [rows of the file]
        item_row = catalog.row_of(item.dictionary)[item.indices.to_numpy()].astype(np.int32)
        known = item_row >= 0
        unknown = count_unknown(item, known, group=query_code)
        if unknown.rows and (strict or not known.any()):
            first = place(path, int(np.argmin(known)))
            raise InputError(f"{path}: {unknown}; first in {first}; catalogue: {catalog.path}")

        rows = len(table)
        grade = _filled(table, "grade", 1, rows, np.int32)
        weight = _filled(table, "weight", 1, rows, np.float32)
        known_rows = np.flatnonzero(known)
        best = _best_rows(query_code, item_row, grade, weight, known_rows)
        users: list[str] = []
        user_row = timestamp = None
        if "user_id" in table.column_names:
            user = table.column("user_id").combine_chunks()
            users = user.dictionary.to_pylist()
            user_row = pc.fill_null(user.indices, -1).to_numpy()
        if "timestamp" in table.column_names:
            timestamp = table.column("timestamp").to_numpy()
        whole = cls(
            queries=query.dictionary.to_pylist(),
            query_row=query_code,
            item_row=item_row,
            grade=grade,
            weight=weight,
            catalog=catalog,
            path=os.fspath(path),
            sha256=content_sha256(path),
            unknown_items=unknown,
            repeated_rows=len(known_rows) - len(best),
            users=users,
            user_row=user_row,
            timestamp=timestamp,
        )
        return whole.select_rows(best)

    def __len__(self) -> int:
        """Returns the number of judged pairs."""
        return len(self.query_row)

    def select_rows(self, rows: np.ndarray) -> Interactions:
        """Returns the given rows, in the given order, with only their queries and users.

        Args:
            rows: Row numbers, or a mask of shape [rows].
        """
        rows = _as_numbers(rows)
        queries, query_row = _used(self.queries, self.query_row[rows])
        users, user_row = self.users, self.user_row
        if user_row is not None:
            users, user_row = _used(self.users, user_row[rows])
        return replace(
            self,
            queries=queries,
            query_row=query_row,
            item_row=self.item_row[rows],
            grade=self.grade[rows],
            weight=self.weight[rows],
            users=users,
            user_row=user_row,
            timestamp=None if self.timestamp is None else self.timestamp[rows],
        )

    def select_queries(self, queries: np.ndarray | Sequence[int]) -> Interactions:
        """Returns all rows of the given queries, in the order they have here.

        Args:
            queries: Indices into `queries`, or a mask of shape [queries].
        """
        chosen = np.zeros(len(self.queries), bool)
        chosen[_as_numbers(np.asarray(queries))] = True
        return self.select_rows(chosen[self.query_row])

    def of_queries(self, texts: Iterable[str]) -> Interactions:
        """Returns the rows of the given queries, in any spelling; there may be none."""
        return self.select_queries(self._are_among(texts))

    def without_queries(self, texts: Iterable[str]) -> Interactions:
        """Returns the rows of all queries but the given ones; there may be none."""
        return self.select_queries(~self._are_among(texts))

    def _are_among(self, texts: Iterable[str]) -> np.ndarray:
        wanted = set(map(spelling_key, texts))
        return np.array([spelling_key(query) in wanted for query in self.queries], bool)

    def with_one_spelling(self) -> Interactions:
        """Returns the judgements with queries that differ in case or white space made one.

        Towers and words cannot tell "Coffee  Press" from "coffee press". As two queries they would
        be each other's negatives, and one held out of training would be known from the other. The
        spelling with most rows stays, of equally many the first by the alphabet.
        """
        group: dict[str, int] = {}
        groups = [group.setdefault(spelling_key(query), len(group)) for query in self.queries]
        if len(group) == len(self.queries):
            return self
        rows = np.bincount(self.query_row, minlength=len(self.queries)).tolist()
        spelling: dict[int, tuple[int, str]] = {}
        for number, count, query in zip(groups, rows, self.queries, strict=True):
            spelling[number] = min(spelling.get(number, (0, query)), (-count, query))
        query_row = np.array(groups, np.int32)[self.query_row]
        every = np.arange(len(self))
        best = _best_rows(query_row, self.item_row, self.grade, self.weight, every)
        one = replace(
            self,
            queries=[spelling[number][1] for number in range(len(group))],
            query_row=query_row,
            repeated_rows=self.repeated_rows + len(self) - len(best),
        )
        return one.select_rows(best)

    def without_pairs(self, other: Interactions) -> Interactions:
        """Returns the rows whose query and item are not a pair of `other` too.

        Args:
            other: Judgements of the same catalogue.
        """
        row_of = {query: row for row, query in enumerate(self.queries)}
        rows = np.array([row_of.get(query, -1) for query in other.queries], np.int64)
        theirs = _pair_codes(rows[other.query_row], other.item_row)
        return self.select_rows(~np.isin(_pair_codes(self.query_row, self.item_row), theirs))

    def followed_by(self, newer: Interactions) -> Interactions:
        """Returns these judgements and newer ones, which alone count where both judge a pair.

        Users and times are left out.

        Args:
            newer: Judgements of the same catalogue.
        """
        older = self.without_pairs(newer)
        row_of = {query: row for row, query in enumerate(older.queries)}
        rows = [row_of.setdefault(query, len(row_of)) for query in newer.queries]
        return replace(
            self,
            queries=list(row_of),
            query_row=np.concatenate(
                [older.query_row, np.array(rows, np.int32)[newer.query_row]], dtype=np.int32
            ),
            item_row=np.concatenate([older.item_row, newer.item_row]),
            grade=np.concatenate([older.grade, newer.grade]),
            weight=np.concatenate([older.weight, newer.weight]),
            users=[],
            user_row=None,
            timestamp=None,
        )

    def positives(self, min_grade: int = 1) -> Interactions:
        """Returns the rows of at least this grade; there may be none."""
        return self.select_rows(self.grade >= min_grade)

    def require_positives(self, min_grade: int = 1) -> None:
        """Raises `InputError` unless a row has at least this grade."""
        if not (self.grade >= min_grade).any():
            highest = f"the highest grade is {self.grade.max()}" if len(self) else "it has no rows"
            raise InputError(
                f"{self.path}: no positive pair: a grade of {min_grade} or more is"
                f" needed, {highest}"
            )

    def qrels(self) -> dict[str, dict[str, int]]:
        """Returns the judgements as `{query: {item_id: grade}}`, the form that TREC tools take."""
        item_ids = self.catalog.item_ids
        qrels: dict[str, dict[str, int]] = {query: {} for query in self.queries}
        for query, item, grade in zip(
            self.query_row.tolist(), self.item_row.tolist(), self.grade.tolist(), strict=True
        ):
            qrels[self.queries[query]][item_ids[item]] = grade
        return qrels


def spelling_key(query: str) -> str:
    """What all spellings of a query have in common that differ in case or white space."""
    return " ".join(query.casefold().split())


def count_unknown(item: pa.DictionaryArray, known: np.ndarray, group: np.ndarray) -> UnknownItems:
    """Counts the rows that are not known.

    Args:
        item: Item id of each row.
        known: bool [rows].
        group: int [rows], the query or user of each row.
    """
    codes = pc.unique(item.indices.filter(pa.array(~known)))  # in order of first appearance
    lost = np.bincount(group) > 0
    lost[group[known]] = False
    return UnknownItems(
        rows=int(np.count_nonzero(~known)),
        items=len(codes),
        first=tuple(item.dictionary.take(codes[:_LISTED]).to_pylist()),
        queries=int(np.count_nonzero(lost)),
    )


def _best_rows(
    query: np.ndarray, item: np.ndarray, grade: np.ndarray, weight: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Returns, of the given rows, the best one of each (query, item), in ascending order."""
    pair = _pair_codes(query[rows], item[rows])
    # Last key first; lexsort is stable, so that the first row wins a tie.
    order = np.lexsort((-weight[rows], -grade[rows], pair))
    pair = pair[order]
    starts = np.ones(len(pair), bool)
    starts[1:] = pair[1:] != pair[:-1]
    return np.sort(rows[order[starts]])


def _pair_codes(query: np.ndarray, item: np.ndarray) -> np.ndarray:
    """One number for each (query, item), int64 [rows]; negative for query -1."""
    return query.astype(np.int64) << 32 | item


def _filled(table: pa.Table, name: str, default: int, rows: int, dtype: type) -> np.ndarray:
    if name not in table.column_names:
        return np.full(rows, default, dtype)
    return table.column(name).combine_chunks().fill_null(default).to_numpy().astype(dtype)


def _as_numbers(rows: np.ndarray) -> np.ndarray:
    return np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)


def _used(values: list[str], codes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Drops the values no code points to; the rest in order of first appearance, -1 stays -1."""
    order = pc.unique(pa.array(codes)).to_numpy()
    order = order[order >= 0]
    new = np.full(len(values) + 1, -1, np.int32)  # the last entry is what -1 points to
    new[order] = np.arange(len(order), dtype=np.int32)
    return [values[code] for code in order.tolist()], new[codes]
