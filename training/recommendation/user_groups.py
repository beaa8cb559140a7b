"""Groups of users by any column, for measures group by group."""

from __future__ import annotations

import os
from collections.abc import Sequence

from towers.errors import InputError
from training.tables import read_table


def user_groups(
    path: str | os.PathLike[str], column: str, users: Sequence[str]
) -> list[str | None]:
    """Reads the group of each user.

    Args:
        path: a file in any format of `training.tables` with the columns `user_id` and `column`; one
            row a user, or several, of which the last one with a value counts.
        column: name of the column, taken as text.
        users: user ids, such as those of `training.recommendation.splits.Cases`.

    Returns:
        For each of `users` the value, None where the file has none.

    Raises:
        InputError: the file cannot be read or has no such column, or it knows none of the users.
    """
    table = read_table(path, required={"user_id": "id"}, optional={}, keep_other=True)
    if column not in table.column_names or column == "user_id":
        others = [name for name in table.column_names if name != "user_id"]
        there = f"there are {', '.join(others)}" if others else "there is none beside user_id"
        raise InputError(f"{path}: no column {column!r} to group users by; {there}")
    ids, values = (table.column(name).to_pylist() for name in ("user_id", column))
    group_of = {u: value for u, value in zip(ids, values, strict=True) if value is not None}
    if not any(user in group_of for user in users):
        raise InputError(f"{path}: column {column!r} has no value for any of {len(users)} users")
    return [group_of.get(user) for user in users]
