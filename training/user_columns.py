"""Columns of users: for contexts of recommendations, and to group measures by."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from towers.errors import InputError
from training.tables import content_sha256, read_table


@dataclass(frozen=True)
class UserColumns:
    """What is known of users: for each column the texts of those who have one.

    Attributes:
        columns: column to user id to text.
        path: the file, for messages.
        sha256: see `training.tables.content_sha256`.
    """

    columns: Mapping[str, Mapping[str, str]] = field(repr=False)
    path: str
    sha256: str

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], columns: Sequence[str] | None = None
    ) -> UserColumns:
        """Reads columns of users.

        Args:
            path: a file in any format of `training.tables` with the column `user_id` and others,
                which are taken as text; one row a user, or several, of which the last one with a
                value counts.
            columns: those to read; all if None.

        Raises:
            InputError: the file cannot be read, or lacks one of the columns, or has none.
        """
        table = read_table(path, required={"user_id": "id"}, optional={}, keep_other=True)
        others = [name for name in table.column_names if name != "user_id"]
        there = f"there are {', '.join(others)}" if others else "there is none beside user_id"
        wanted = others if columns is None else columns
        if missing := [name for name in wanted if name not in others]:
            raise InputError(f"{path}: no column {missing[0]!r} of users; {there}")
        if not wanted:
            raise InputError(f"{path}: no column of users; {there}")
        users = table.column("user_id").to_pylist()
        return cls(
            {
                name: {
                    user: value
                    for user, value in zip(users, table.column(name).to_pylist(), strict=True)
                    if value is not None
                }
                for name in wanted
            },
            os.fspath(path),
            content_sha256(path),
        )

    def of(self, column: str, users: Sequence[str]) -> list[str | None]:
        """The text of each user in a column, None where there is none.

        Raises:
            InputError: there is none for any of the users.
        """
        value_of = self.columns[column]
        if not any(user in value_of for user in users):
            raise InputError(
                f"{self.path}: column {column!r} has no value for any of {len(users)} users"
            )
        return [value_of.get(user) for user in users]
