"""What users took, oldest first, joined to a catalogue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towers.errors import InputError
from training.catalog import Catalog
from training.columns import Kind
from training.interactions import UnknownItems, count_unknown
from training.tables import content_sha256, place, read_table, require_values

_REQUIRED: dict[str, Kind] = {"user_id": "id"}
_OPTIONAL: dict[str, Kind] = {"items": "ids", "item_id": "id", "timestamp": "timestamp"}


@dataclass(frozen=True)
class Histories:
    """One sequence of items a user, in two arrays.

    Attributes:
        users: Distinct user ids, in order of first appearance.
        offsets: int64 [users + 1]; the history of user `u` is at `offsets[u]:offsets[u + 1]`.
        item_row: int32 [events], rows of the catalogue, oldest first within a user.
        catalog: The catalogue that `item_row` points into.
        path: The file, for messages.
        sha256: see `training.tables.content_sha256`.
        unknown_items: What was left out at reading.
        timestamp: datetime64[s] [events], UTC, never falling within a user; None where the file
            has lists.
        columns: Further columns of the events, object [events]: texts, None where there is none.
    """

    users: list[str] = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    item_row: np.ndarray = field(repr=False)
    catalog: Catalog = field(repr=False)
    path: str
    sha256: str
    unknown_items: UnknownItems = field(default_factory=UnknownItems)
    timestamp: np.ndarray | None = field(default=None, repr=False)
    columns: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        catalog: Catalog,
        *,
        strict: bool = False,
        columns: Sequence[str] = (),
    ) -> Histories:
        """Reads histories: a list of items a user, or one row an event.

        Lists: columns `user_id` and `items`, each user once, oldest item first (JSONL or Parquet).
        Rows: columns `user_id`, `item_id` and `timestamp` in any format; they are sorted by time,
        rows of one second stay in file order. An item may come several times. Every user of the
        file is kept, with an empty history where the catalogue has none of the items.

        Args:
            path: The file.
            catalog: Events whose item it lacks are left out and counted in `unknown_items`.
            strict: Whether such an event is an error.
            columns: Further columns of rows to keep, as text.

        Raises:
            InputError: The file cannot be read, a value is not right, no item is known, or one of
                the further columns is not there or the file has lists.
        """
        further: dict[str, Kind] = dict.fromkeys(columns, "text")
        table = read_table(path, required=_REQUIRED, optional=further | _OPTIONAL, keep_other=False)
        for name in further:
            if "items" in table.column_names:
                raise InputError(
                    f"{path}: the column {name!r} of events needs histories as rows"
                    " of user_id, item_id and timestamp, not as lists"
                )
            if name not in table.column_names or name in {**_REQUIRED, **_OPTIONAL}:
                raise InputError(f"{path}: no further column {name!r} of the events")
        user = table.column("user_id").combine_chunks()
        user_of_row = user.indices.to_numpy()  # [rows]
        timestamp = None  # [rows]
        if "items" in table.column_names:
            _require_one_row_a_user(path, user)
            lists = table.column("items").combine_chunks()
            item = lists.flatten().dictionary_encode()  # [events]
            lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
            row = np.repeat(np.arange(len(table)), lengths)
            order = np.arange(len(row))
        else:
            for name in ("item_id", "timestamp"):
                if name not in table.column_names:
                    raise InputError(
                        f"{path}: histories need the columns user_id and items (a list), or"
                        f" user_id, item_id and timestamp; there is no {name!r}"
                    )
                require_values(path, name, table.column(name).combine_chunks())
            item = table.column("item_id").combine_chunks()
            row = np.arange(len(table))
            timestamp = table.column("timestamp").to_numpy()
            order = np.lexsort((timestamp, user_of_row))  # stable
        item_row = catalog.row_of(item.dictionary).astype(np.int32)[item.indices.to_numpy()]
        known = item_row >= 0
        unknown = count_unknown(item, known, user_of_row[row])
        if unknown.rows and (strict or not known.any()):
            first = place(path, int(row[np.argmin(known)]))
            raise InputError(f"{path}: {unknown}; first in {first}; catalogue: {catalog.path}")
        order = order[known[order]]
        lengths = np.bincount(user_of_row[row[order]], minlength=len(user.dictionary))
        return cls(
            users=user.dictionary.to_pylist(),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            item_row=item_row[order],
            catalog=catalog,
            path=os.fspath(path),
            sha256=content_sha256(path),
            unknown_items=unknown,
            timestamp=None if timestamp is None else timestamp[order],
            columns={
                name: table.column(name).cast(pa.large_string()).to_numpy()[order]
                for name in further
            },
        )

    def __len__(self) -> int:
        """Returns the number of users."""
        return len(self.users)

    def items(self, user: int) -> np.ndarray:
        """Returns the catalogue rows of one user's history, int32 [events of the user]."""
        return self.item_row[self.offsets[user] : self.offsets[user + 1]]

    def sequences(self) -> list[np.ndarray]:
        """Returns every user's `items`, in the order of `users`."""
        return [self.items(user) for user in range(len(self))]

    def times(self) -> list[np.ndarray] | None:
        """Returns when each user's `items` were, datetime64[s]; None where that is unknown."""
        if self.timestamp is None:
            return None
        return np.split(self.timestamp, self.offsets[1:-1])

    def select_events(self, events: np.ndarray) -> Histories:
        """Returns the same users with some of their events; a user may be left with none.

        Args:
            events: bool [events].
        """
        before = np.concatenate([[0], np.cumsum(events)])  # chosen events before each place
        return replace(
            self,
            offsets=before[self.offsets],
            item_row=self.item_row[events],
            timestamp=None if self.timestamp is None else self.timestamp[events],
            columns={name: values[events] for name, values in self.columns.items()},
        )

    def select_users(self, users: np.ndarray) -> Histories:
        """Returns some of the users, in the order they have here.

        Args:
            users: bool [users].
        """
        lengths = np.diff(self.offsets)
        kept = self.select_events(np.repeat(users, lengths))
        return replace(
            kept,
            users=[user for user, chosen in zip(self.users, users, strict=True) if chosen],
            offsets=np.concatenate([[0], np.cumsum(lengths[users])]),
        )


def _require_one_row_a_user(path: str | os.PathLike[str], user: pa.DictionaryArray) -> None:
    codes = user.indices.to_numpy()
    # Codes count up at each first appearance: the first code that does not is a repeat.
    repeats = np.flatnonzero(codes != np.arange(len(codes)))
    if len(repeats):
        row = int(repeats[0])
        raise InputError(
            f"{path}: user_id {user[row].as_py()!r} in {place(path, row)} is already in"
            f" {place(path, int(np.argmax(codes == codes[row])))}; a user has one list"
        )
