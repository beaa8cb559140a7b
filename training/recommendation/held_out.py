"""Cases that the parts of a recommender have not seen, to weigh the parts by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_LATER = 0.1  # of all events, held out where it is known when they were
_MIN_CASES = 40  # fewer later ones do not tell what comes next
_USERS = 2_000
_PLACES = 2  # of a user


@dataclass(frozen=True)
class HeldOut:
    """What the parts are fitted on for once, and what came next elsewhere.

    Attributes:
        histories: to be fitted on, rows of items, int ``[events]``, oldest first.
        fitted: number of the user of each of these histories, of which they are the beginning.
        times: when that was, datetime64[s] ``[events]`` each; None where it is not known.
        users: number of the user of each case, int ``[cases]``.
        places: how many events of the user are known, int ``[cases]``.
        target: the item that came next, int ``[cases]``.
        seen: for each case rows of items that are not offered: those of the events that are known,
            and what else came next.
    """

    histories: list[np.ndarray] = field(repr=False)
    fitted: np.ndarray
    times: list[np.ndarray] | None = field(repr=False)
    users: np.ndarray
    places: np.ndarray
    target: np.ndarray
    seen: list[np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        """Returns the number of cases."""
        return len(self.target)


def hold_out(
    histories: Sequence[np.ndarray],
    times: Sequence[np.ndarray] | None,
    *,
    folds: int,
    seed: int,
) -> list[HeldOut]:
    """Holds out the latest tenth of all events where times are known, else users in turn.

    By time it is asked as in use: what is known until today, whoever it is of, and what people
    take later that is new to them. Without times, each fold of the users is asked by what the
    others teach: for the last item of each, and for an earlier one.

    Args:
        histories: rows of items of each user, int ``[events]``, oldest first.
        times: of the events, datetime64[s] ``[events]`` each.
        folds: parts of the users.
        seed: decides folds and cases.

    Returns:
        One part by time, as many as there are folds by users; none where users are too few.
    """
    draw = np.random.default_rng(seed)
    if times is not None and (later := _by_time(histories, times, draw)) is not None:
        return [later]
    return _by_users(histories, folds, draw)


def _by_time(
    histories: Sequence[np.ndarray], times: Sequence[np.ndarray], draw: np.random.Generator
) -> HeldOut | None:
    every = np.sort(np.concatenate([*times, np.zeros(0, "datetime64[s]")]))
    if not len(every):
        return None
    start = every[int((1 - _LATER) * len(every))]
    known = [int(np.searchsorted(when, start)) for when in times]  # first place from then on
    users, target, seen = [], [], []
    for user in draw.permutation(len(histories)).tolist():
        past, later = np.split(histories[user], [known[user]])
        new = np.setdiff1d(later, past)
        if not len(past) or not len(new):
            continue
        everything = np.union1d(past, later)
        for item in draw.permutation(new)[:_PLACES].tolist():
            users.append(user)
            target.append(item)
            seen.append(everything[everything != item])
        if len(users) >= _USERS:
            break
    if len(users) < _MIN_CASES:
        return None
    places = np.array([known[user] for user in users])
    before = [history[:place] for history, place in zip(histories, known, strict=True)]
    when = [time[:place] for time, place in zip(times, known, strict=True)]
    everyone = np.arange(len(before))
    return HeldOut(before, everyone, when, np.array(users), places, np.array(target), seen)


def _by_users(
    histories: Sequence[np.ndarray], folds: int, draw: np.random.Generator
) -> list[HeldOut]:
    usable = [user for user, history in enumerate(histories) if len(history) > 1]
    if len(usable) < 4 * folds:
        return []
    order = np.array(usable)[draw.permutation(len(usable))]
    parts = []
    for start in range(folds):
        fold = order[start::folds]
        others = np.setdiff1d(order, fold)
        users, places = [], []
        for user in fold[: _USERS // folds].tolist():
            last = len(histories[user]) - 1
            for place in {last, int(draw.integers(1, last + 1))}:
                users.append(user)
                places.append(place)
        parts.append(
            HeldOut(
                [histories[user] for user in others],
                others,
                None,
                np.array(users),
                np.array(places),
                np.array([histories[u][p] for u, p in zip(users, places, strict=True)]),
                [histories[u][:p] for u, p in zip(users, places, strict=True)],
            )
        )
    return parts
