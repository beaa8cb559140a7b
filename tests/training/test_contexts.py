"""What is known of events: columns of users, of events, and of their times."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from towers.errors import InputError
from training.catalog import Catalog
from training.contexts import Contexts, timestamp_columns
from training.histories import Histories
from training.user_columns import UserColumns

TIMES = ["2024-02-29T23:59:59Z", "2024-03-01T00:00:00Z", "1969-12-31T12:00:00Z", "2025-11-30"]
ROWS = [("ann", "2", 1, "web"), ("bob", "0", 0, ""), ("ann", "1", 2, "app"), ("cat", "1", 3, "web")]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    path = tmp_path / "catalog.csv"
    path.write_text("item_id,title\n" + "".join(f"{n},Item {n}\n" for n in range(3)))
    return Catalog.read(path)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.csv"
    lines = [f"{user},{item},{TIMES[time]},{device}" for user, item, time, device in ROWS]
    path.write_text("\n".join(["user_id,item_id,timestamp,device", *lines]))
    return path


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.csv"
    path.write_text("user_id,age,level\nann,31,gold\nbob,,basic\ndan,9,gold\n")
    return path


def test_columns_stand_beside_the_events(catalog: Catalog, events: Path, users: Path) -> None:
    histories = Histories.read(events, catalog, columns=["device"])
    assert histories.users == ["ann", "bob", "cat"]
    found = Contexts.of(histories, UserColumns.read(users), ["device", "season"])
    assert [found.at(0, place) for place in (0, 1, -1)] == [
        {"device": "app", "season": "winter", "age": "31", "level": "gold"},
        {"device": "web", "season": "spring", "age": "31", "level": "gold"},
        {"device": "web", "season": "spring", "age": "31", "level": "gold"},
    ]
    assert found.at(1, 0) == {"device": None, "season": "winter", "age": None, "level": "basic"}
    assert found.at(2, -1) == {"device": "web", "season": "autumn", "age": None, "level": None}
    assert found.of_users == ("age", "level")
    kept = histories.select_events(np.array([False, True, True, False]))
    assert kept.columns["device"].tolist() == ["web", None]


def test_times_are_told_as_python_tells_them(catalog: Catalog, events: Path) -> None:
    histories = Histories.read(events, catalog)
    names = ["weekday", "month", "hour"]
    assert timestamp_columns(["device", *names, "season"]) == [*names, "season"]
    found = Contexts.of(histories, names=names)
    for user, times in enumerate(histories.times()):
        for place, time in enumerate(times):
            when = datetime.fromtimestamp(int(time.astype(np.int64)), UTC)
            expected = (f"{when:%A}".lower(), f"{when:%B}".lower(), str(when.hour))
            assert tuple(found.at(user, place)[name] for name in names) == expected


def test_another_choice_is_another_file(catalog: Catalog, events: Path, users: Path) -> None:
    histories = Histories.read(events, catalog)
    known = [
        Contexts.of(histories, UserColumns.read(users), []),
        Contexts.of(histories, UserColumns.read(users, ["age"]), []),
        Contexts.of(histories, None, ["month"]),
        Contexts.of(histories, None, ["season"]),
    ]
    assert len({one.sha256 for one in known}) == 4


def test_wrong_input_is_named(catalog: Catalog, events: Path, users: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"events\.csv: no further column 'place' of the events"):
        Histories.read(events, catalog, columns=["place"])
    with pytest.raises(InputError, match="no further column 'item_id'"):
        Histories.read(events, catalog, columns=["item_id"])
    lists = tmp_path / "lists.jsonl"
    lists.write_text('{"user_id": "ann", "items": ["1"], "device": "web"}\n')
    with pytest.raises(InputError, match="'device' of events needs histories as rows"):
        Histories.read(lists, catalog, columns=["device"])
    listed = Histories.read(lists, catalog)
    with pytest.raises(InputError, match="'season' is told by the times of events"):
        Contexts.of(listed, None, ["season"])
    histories = Histories.read(events, catalog, columns=["device"])
    users.write_text("user_id,device\nann,web\n")
    with pytest.raises(InputError, match=r"'device' is a column of .*users\.csv and of the events"):
        Contexts.of(histories, UserColumns.read(users), ["device"])
    users.write_text("user_id,a=b\nann,web\n")
    with pytest.raises(InputError, match="cannot have a '=' in its name: 'a=b'"):
        Contexts.of(histories, UserColumns.read(users))
    users.write_text("user_id,level\nzoe,gold\n")
    with pytest.raises(InputError, match="'level' has no value for any of 3 users"):
        Contexts.of(histories, UserColumns.read(users))
