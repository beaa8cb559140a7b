"""What was known when people took items: columns of users, of events, and of their times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from towers.context_text import Context
from towers.errors import InputError
from training.histories import Histories
from training.user_columns import UserColumns

_SEASONS = ("winter", "spring", "summer", "autumn")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TIMESTAMP_COLUMNS = ("season", "month", "weekday", "hour")


@dataclass(frozen=True)
class Contexts:
    """Columns of the events of histories.

    Attributes:
        columns: name to object ``[events]``, in the order of the histories: texts, None where
            nothing is known.
        offsets: int64 ``[users + 1]``, as of the histories.
        of_users: names of those columns that are of the users.
        path: the files, for messages.
        sha256: changes with the files and with the columns.
    """

    columns: dict[str, np.ndarray] = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    of_users: tuple[str, ...]
    path: str
    sha256: str

    @classmethod
    def of(
        cls, histories: Histories, users: UserColumns | None = None, names: Sequence[str] = ()
    ) -> Contexts:
        """Joins the columns of users and of events.

        Args:
            histories: with those of `names` that are in their file; see `timestamp_columns`.
            users: columns of the users: every event of a user has their values.
            names: columns of the events, or of their times: ``season`` (of the north: winter is
                December to February), ``month`` (january), ``weekday`` (monday) and ``hour`` (0 to
                23), in UTC.

        Raises:
            InputError: a name comes twice or holds a "=", there are no times to tell a season
                by, or nothing is known of any user.
        """
        lengths = np.diff(histories.offsets)
        columns: dict[str, np.ndarray] = {}
        for name in names:
            columns[name] = (
                histories.columns[name] if name in histories.columns else _of_times(histories, name)
            )
        for name in users.columns if users else ():
            assert users is not None
            if name in columns:
                raise InputError(
                    f"{name!r} is a column of {users.path} and of the events of {histories.path}:"
                    " leave one of them out"
                )
            values = np.array([*users.of(name, histories.users), None], object)[:-1]
            columns[name] = np.repeat(values, lengths)
        if wrong := [name for name in columns if "=" in name]:
            raise InputError(f"a context's column cannot have a '=' in its name: {wrong[0]!r}")
        digest = hashlib.sha256(repr((list(columns), users and users.sha256)).encode()).hexdigest()
        path = users.path if users else histories.path
        return cls(columns, histories.offsets, tuple(users.columns if users else ()), path, digest)

    def at(self, user: int, place: int) -> Context:
        """What was known at an event: negative places count from the user's last one."""
        start, end = self.offsets[user : user + 2]
        event = (start if place >= 0 else end) + place
        return {name: values[event] for name, values in self.columns.items()}


def timestamp_columns(names: Sequence[str]) -> list[str]:
    """Those of the names that the time of an event tells."""
    return [name for name in names if name in _TIMESTAMP_COLUMNS]


def _of_times(histories: Histories, name: str) -> np.ndarray:
    times = histories.timestamp
    if times is None:
        raise InputError(
            f"{histories.path}: {name!r} is told by the times of events: histories have to be rows"
            " of user_id, item_id and timestamp"
        )
    month = times.astype("datetime64[M]").astype(np.int64) % 12  # from 0
    day = times.astype("datetime64[D]").astype(np.int64)
    found = {
        "season": lambda: np.array(_SEASONS, object)[(month + 1) % 12 // 3],
        "month": lambda: np.array(_MONTHS, object)[month],
        "weekday": lambda: np.array(_WEEKDAYS, object)[(day + 3) % 7],  # 1970 began on a Thursday
        "hour": lambda: (
            ((times - times.astype("datetime64[D]")) // np.timedelta64(1, "h"))
            .astype(np.int64)
            .astype(str)
            .astype(object)
        ),
    }
    return found[name]()
