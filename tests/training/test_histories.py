"""Histories from lists and from rows, against Python's own stable sort."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.catalog import Catalog
from training.histories import Histories


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    path = tmp_path / "catalog.csv"
    path.write_text("item_id,title\n" + "".join(f"{n},Item {n}\n" for n in range(6)))
    return Catalog.read(path)


def as_dict(histories: Histories) -> dict[str, list[str]]:
    ids = histories.catalog.item_ids
    return {user: ids[histories.items(row)].tolist() for row, user in enumerate(histories.users)}


LISTS = [
    {"user_id": "ann", "items": ["3", 1, "3"]},
    {"user_id": 7, "items": []},
    {"user_id": "bob", "items": ["gone", "5"]},
    {"user_id": "cat", "items": ["gone"]},
]


def test_lists(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in LISTS))
    histories = Histories.read(path, catalog)
    assert as_dict(histories) == {"ann": ["3", "1", "3"], "7": [], "bob": ["5"], "cat": []}
    assert len(histories) == 4
    assert histories.offsets.tolist() == [0, 3, 3, 4, 4]
    assert (histories.offsets.dtype, histories.item_row.dtype) == ("int64", "int32")
    unknown = histories.unknown_items
    assert (unknown.rows, unknown.items, unknown.first) == (2, 1, ("gone",))
    assert unknown.queries == 1  # of cat nothing is left
    with pytest.raises(InputError, match=r"lacks: 2, ids: 1 \(gone\); first in line 3"):
        Histories.read(path, catalog, strict=True)


def test_lists_in_parquet(tmp_path: Path, catalog: Catalog) -> None:
    table = pa.table({"user_id": ["ann", "bob"], "items": [[3, 1], None]})
    pq.write_table(table, tmp_path / "users.parquet")
    assert as_dict(Histories.read(tmp_path / "users.parquet", catalog)) == {
        "ann": ["3", "1"],
        "bob": [],
    }


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ann", "bob", "cat"]),
            st.sampled_from(["0", "1", "2", "gone"]),
            st.integers(0, 3),
        ),
        max_size=20,
    )
)
def test_rows_are_sorted_by_time(
    tmp_path: Path, catalog: Catalog, events: list[tuple[str, str, int]]
) -> None:
    events = [*events, ("dan", "4", 0)]
    path = tmp_path / "events.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *events])
    histories = Histories.read(path, catalog)
    expected = {
        user: [
            item
            for owner, item, _ in sorted(events, key=lambda event: event[2])
            if owner == user and item != "gone"
        ]
        for user in dict.fromkeys(event[0] for event in events)
    }
    assert as_dict(histories) == expected
    assert list(as_dict(histories)) == list(expected)
    assert histories.unknown_items.rows == sum(event[1] == "gone" for event in events)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("user_id,item_id\nann,1\n", ": histories need the columns user_id and items"),
        ("user_id,timestamp\nann,1\n", "there is no 'item_id'"),
        ("user,item_id,timestamp\nann,1,1\n", "no column 'user_id'"),
        ("user_id,item_id,timestamp\nann,1,1\nann,,1\n", "line 3: column 'item_id' is empty"),
        ("user_id,item_id,timestamp\nann,1,1\nann,1,\n", "line 3: column 'timestamp' is empty"),
        ("user_id,item_id,timestamp\nann,1,soon\n", "line 2: column 'timestamp' is 'soon'"),
        (
            "user_id,item_id,timestamp\nann,x,1\n",
            "rows whose item the catalogue lacks: 1, ids: 1 (x)",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, catalog: Catalog, content: str, complaint: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        Histories.read(path, catalog)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_a_user_has_one_list(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*LISTS, LISTS[2]]))
    with pytest.raises(InputError, match="user_id 'bob' in line 5 is already in line 3"):
        Histories.read(path, catalog)


EVENTS = """user_id,item_id,timestamp
ann,1,2024-05-03
bob,2,2024-05-02
ann,3,2024-05-01
cat,gone,2024-05-01
ann,4,2024-05-02
bob,5,2024-05-04
"""


def test_rows_keep_their_time(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "events.csv"
    path.write_text(EVENTS)
    histories = Histories.read(path, catalog)
    days = histories.timestamp.astype("datetime64[D]").astype(str).tolist()
    assert days == ["2024-05-01", "2024-05-02", "2024-05-03", "2024-05-02", "2024-05-04"]
    assert [items.tolist() for items in histories.sequences()] == [[3, 4, 1], [2, 5], []]
    (tmp_path / "lists.jsonl").write_text('{"user_id": 1, "items": [1]}')
    assert Histories.read(tmp_path / "lists.jsonl", catalog).timestamp is None


def test_selection_of_events_and_users(tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "events.csv"
    path.write_text(EVENTS)
    histories = Histories.read(path, catalog)
    early = histories.select_events(histories.timestamp < np.datetime64("2024-05-03"))
    assert as_dict(early) == {"ann": ["3", "4"], "bob": ["2"], "cat": []}
    assert early.timestamp.astype("datetime64[D]").astype(str).tolist()[-1] == "2024-05-02"
    late = early.select_users(np.array([False, True, True]))
    assert as_dict(late) == {"bob": ["2"], "cat": []}
    assert late.offsets.tolist() == [0, 1, 1]
    assert as_dict(histories.select_users(np.zeros(3, bool))) == {}
    assert len(histories) == 3  # itself unchanged
