"""What is known and what is asked for: hand-worked cases, and properties over many histories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.catalog import Catalog
from training.histories import Histories
from training.recommendation.splits import (
    Cases,
    cold_items,
    last_days,
    leave_last_out,
    temporal_split,
    without_items,
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("catalog") / "catalog.csv"
    path.write_text("item_id,title\n" + "".join(f"{n},Item {n}\n" for n in range(6)))
    return Catalog.read(path)


@pytest.fixture
def lists(tmp_path: Path, catalog: Catalog) -> Histories:
    path = tmp_path / "users.jsonl"
    users = {"ann": [3, 1, 3], "bob": [5], "cat": [2, 2, 4, 0], "dan": []}
    path.write_text(
        "\n".join(json.dumps({"user_id": user, "items": items}) for user, items in users.items())
    )
    return Histories.read(path, catalog)


@pytest.fixture
def events(tmp_path: Path, catalog: Catalog) -> Histories:
    path = tmp_path / "events.csv"
    path.write_text(
        "user_id,item_id,timestamp\n"
        "ann,1,2024-05-30\nann,2,2024-04-01\nann,3,2024-05-29T23:59:59\nann,1,2024-06-09\n"
        "bob,4,2024-04-01\n"
        "cat,5,2024-06-01\ncat,0,2024-06-02\n"
    )
    return Histories.read(path, catalog)


def as_dict(cases: Cases) -> dict[str, tuple[list[int], list[int]]]:
    return {
        user: (history.tolist(), target.tolist())
        for user, history, target in zip(cases.users, cases.histories, cases.targets, strict=True)
    }


def test_leave_one_out(lists: Histories) -> None:
    assert as_dict(leave_last_out(lists)) == {"ann": ([3, 1], [3]), "cat": ([2, 2, 4], [0])}
    assert as_dict(leave_last_out(lists).with_new_targets()) == {"cat": ([2, 2, 4], [0])}


def test_leave_several_out(lists: Histories) -> None:
    assert as_dict(leave_last_out(lists, 2)) == {"ann": ([3], [1, 3]), "cat": ([2, 2], [0, 4])}
    assert as_dict(leave_last_out(lists, 3)) == {"cat": ([2], [0, 2, 4])}
    assert as_dict(leave_last_out(lists, 2).with_new_targets()) == {
        "ann": ([3], [1]),
        "cat": ([2, 2], [0, 4]),
    }
    with pytest.raises(InputError, match="0 events cannot be left out"):
        leave_last_out(lists, 0)
    with pytest.raises(InputError, match=r"users\.jsonl: no user has more than 4 known items"):
        leave_last_out(lists, 4)


def test_cold_users(lists: Histories) -> None:
    cases = leave_last_out(lists)
    assert cases.lengths.tolist() == [2, 3]
    assert as_dict(cases.latest(0)) == {"ann": ([], [3]), "cat": ([], [0])}
    assert as_dict(cases.latest(1)) == {"ann": ([1], [3]), "cat": ([4], [0])}
    assert as_dict(cases.latest(9)) == as_dict(cases)
    assert as_dict(cases.select(cases.lengths >= 3).latest(2)) == {"cat": ([2, 4], [0])}
    with pytest.raises(InputError, match="-1 events"):
        cases.latest(-1)


def test_targets_among_some_items(lists: Histories) -> None:
    among = np.array([True, False, False, True, False, False])
    assert as_dict(leave_last_out(lists, 2).with_targets_among(among)) == {
        "ann": ([3], [3]),
        "cat": ([2, 2], [0]),
    }
    assert len(leave_last_out(lists).with_targets_among(np.zeros(6, bool))) == 0


def test_split_by_time(events: Histories) -> None:
    past, cases = temporal_split(events, np.datetime64("2024-05-30"))
    assert past.users == ["ann", "bob", "cat"]
    assert [items.tolist() for items in past.sequences()] == [[2, 3], [4], []]
    assert as_dict(cases) == {"ann": ([2, 3], [1]), "cat": ([], [0, 5])}
    # The latest event is of 9 June: ten days before that the test begins, to the second.
    assert last_days(events, 10) == np.datetime64("2024-05-30")
    for start in ("2024-01-01", "2025-01-01"):
        with pytest.raises(InputError, match=r"no event (before|from) .* they are from 2024-04-01"):
            temporal_split(events, np.datetime64(start))


def test_a_split_by_time_needs_times(lists: Histories) -> None:
    with pytest.raises(InputError, match=r"users\.jsonl: a split by time needs rows"):
        temporal_split(lists, np.datetime64("2024-05-30"))
    with pytest.raises(InputError, match="not lists of items"):
        last_days(lists, 30)


def test_cold_items(lists: Histories) -> None:
    cold = np.array([False, False, True, False, False, True])
    warm = without_items(lists, cold)
    assert [items.tolist() for items in warm.sequences()] == [[3, 1, 3], [], [4, 0], []]
    assert warm.users == lists.users
    with pytest.raises(InputError, match="share of cold items is 1"):
        cold_items(10, 1)
    with pytest.raises(InputError, match="no items to draw"):
        cold_items(3, 0.5, among=np.zeros(3, bool))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(0, 3))
def test_draws_of_cold_items(n_items: int, share: float, other: float, seed: int) -> None:
    cold = cold_items(n_items, share, seed=seed)
    assert cold.shape == (n_items,)
    assert cold.sum() == max(1, int(share * n_items))
    assert np.array_equal(cold, cold_items(n_items, share, seed=seed))
    larger, smaller = (
        cold_items(n_items, s, seed=seed) for s in (max(share, other), min(share, other))
    )
    assert not (smaller & ~larger).any()
    among = np.arange(n_items) % 2 == 0
    assert not (cold_items(n_items, share, seed=seed, among=among) & ~among).any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9)), min_size=2, max_size=30
    ),
    st.integers(1, 9),
)
def test_nothing_of_the_future_is_known(
    tmp_path_factory: pytest.TempPathFactory,
    catalog: Catalog,
    rows: list[tuple[int, int, int]],
    start: int,
) -> None:
    rows = [*rows, (0, 0, 0), (0, 0, 9)]
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    names = ("user_id", "item_id", "timestamp")
    path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    past, cases = temporal_split(Histories.read(path, catalog), np.datetime64(start, "s"))
    for user, items in zip(past.users, past.sequences(), strict=True):
        known = [item for owner, item, time in rows if str(owner) == user and time < start]
        assert sorted(items.tolist()) == sorted(known)
    asked = {str(owner) for owner, _, time in rows if time >= start}
    assert set(cases.users) == asked
    for user, target in zip(cases.users, cases.targets, strict=True):
        later = {item for owner, item, time in rows if str(owner) == user and time >= start}
        assert target.tolist() == sorted(later)
