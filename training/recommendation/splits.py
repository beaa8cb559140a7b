"""What of a set of histories is known, and what is to be recommended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from towers.errors import InputError
from training.histories import Histories


@dataclass(frozen=True)
class Cases:
    """Users with what is known of them and what they took afterwards, one case a user.

    Attributes:
        users: user ids.
        histories: for each user int32 ``[events]``, rows of the catalogue, oldest first; may be
            empty.
        targets: for each user int32 ``[targets]``, the distinct rows to be recommended, ascending;
            never empty.
    """

    users: list[str] = field(repr=False)
    histories: list[np.ndarray] = field(repr=False)
    targets: list[np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        """Returns the number of users."""
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """Events known of each user, int64 ``[users]``."""
        return np.array([len(history) for history in self.histories], np.int64)

    def select(self, users: np.ndarray) -> Cases:
        """Returns some of the users: bool ``[users]``."""
        chosen = np.flatnonzero(users)
        return Cases(
            [self.users[user] for user in chosen],
            [self.histories[user] for user in chosen],
            [self.targets[user] for user in chosen],
        )

    def latest(self, events: int) -> Cases:
        """Returns the same users known by their latest events alone: cold users.

        Users with fewer events stay as they are. To compare one number of events with another on
        the same users, take those who have the larger one: ``cases.select(cases.lengths >= 5)``.

        Args:
            events: number of events, 0 or more.
        """
        if events < 0:
            raise InputError(f"a history cannot have {events} events, expected 0 or more")
        return replace(
            self, histories=[history[max(0, len(history) - events) :] for history in self.histories]
        )

    def with_targets_among(self, items: np.ndarray) -> Cases:
        """Returns the cases with no other targets than these, without users who have none of them.

        Args:
            items: bool ``[catalogue]``.
        """
        return self._with_targets([target[items[target]] for target in self.targets])

    def with_new_targets(self) -> Cases:
        """Returns the cases without targets that are in the user's history already."""
        return self._with_targets(
            [
                np.setdiff1d(target, history)
                for target, history in zip(self.targets, self.histories, strict=True)
            ]
        )

    def _with_targets(self, targets: list[np.ndarray]) -> Cases:
        return replace(self, targets=targets).select(np.array([len(t) > 0 for t in targets], bool))


def leave_last_out(histories: Histories, last: int = 1) -> Cases:
    """Takes each user's latest events as targets, all events before them as the history.

    Users with no more than `last` events are left out: nothing would be known of them.

    Args:
        histories: users and what they took.
        last: events taken out of each history, 1 for leave-one-out.

    Raises:
        InputError: `last` is below 1, or no user has more events.
    """
    if last < 1:
        raise InputError(f"{last} events cannot be left out, expected 1 or more")
    users, known, targets = [], [], []
    for user, items in zip(histories.users, histories.sequences(), strict=True):
        if len(items) > last:
            users.append(user)
            known.append(items[:-last])
            targets.append(np.unique(items[-last:]))
    if not users:
        raise InputError(f"{histories.path}: no user has more than {last} known items")
    return Cases(users, known, targets)


def temporal_split(histories: Histories, start: np.datetime64) -> tuple[Histories, Cases]:
    """Splits at a point in time, as it would be in use: the past is known, the future asked for.

    Args:
        histories: users and what they took when, from rows with a timestamp.
        start: first second of the test period, UTC.

    Returns:
        All users with their events before `start`, to be fitted on; and a case for each user with
        events from then on. Who is new then has an empty history.

    Raises:
        InputError: the histories have no timestamps, or a side of the split has no events.
    """
    times = _timestamps(histories)
    before = times < start
    for side, events in (("before", before), ("from", ~before)):
        if not events.any():
            raise InputError(
                f"{histories.path}: no event {side} {start}; they are from {times.min()} to"
                f" {times.max()}"
            )
    past, future = histories.select_events(before), histories.select_events(~before)
    targets = [np.unique(items) for items in future.sequences()]
    everyone = Cases(histories.users, past.sequences(), targets)
    return past, everyone.select(np.diff(future.offsets) > 0)


def last_days(histories: Histories, days: int) -> np.datetime64:
    """The start, for `temporal_split`, of a test period that ends with the latest event.

    Raises:
        InputError: the histories have no timestamps.
    """
    return _timestamps(histories).max() - np.timedelta64(days, "D")


def _timestamps(histories: Histories) -> np.ndarray:
    if histories.timestamp is None:
        raise InputError(
            f"{histories.path}: a split by time needs rows with user_id, item_id and timestamp,"
            " not lists of items"
        )
    return histories.timestamp


def cold_items(
    n_items: int, share: float, *, seed: int = 0, among: np.ndarray | None = None
) -> np.ndarray:
    """Draws items that nothing trained on may know.

    Args:
        n_items: items of the catalogue.
        share: share of the items to draw from, above 0 and below 1, rounded down, at least one.
        seed: decides the draw; a larger share contains a smaller one.
        among: bool ``[n_items]``, the items to draw from; all if None.

    Returns:
        bool ``[n_items]``.

    Raises:
        InputError: the share is not between 0 and 1, or there is nothing to draw from.
    """
    if not 0 < share < 1:
        raise InputError(f"the share of cold items is {share}, expected a number between 0 and 1")
    rows = np.arange(n_items) if among is None else np.flatnonzero(among)
    if not len(rows):
        raise InputError("no items to draw cold ones from")
    drawn = np.random.default_rng(seed).permutation(rows)[: max(1, int(share * len(rows)))]
    cold = np.zeros(n_items, bool)
    cold[drawn] = True
    return cold


def without_items(histories: Histories, items: np.ndarray) -> Histories:
    """Returns the histories without any event of some items, bool ``[n_items]``."""
    return histories.select_events(~items[histories.item_row])
