"""Interactions against a plain dictionary built row by row."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.catalog import Catalog
from training.interactions import Interactions


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    path = tmp_path / "catalog.csv"
    path.write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(6)))
    return Catalog.read(path)


def write(path: Path, *lines: str) -> Path:
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def as_rows(interactions: Interactions) -> list[tuple[str, str, int, float]]:
    ids = interactions.catalog.item_ids
    return [
        (interactions.queries[query], ids[item], grade, weight)
        for query, item, grade, weight in zip(
            interactions.query_row.tolist(),
            interactions.item_row.tolist(),
            interactions.grade.tolist(),
            interactions.weight.tolist(),
            strict=True,
        )
    ]


def test_columns(tmp_path: Path, catalog: Catalog) -> None:
    path = write(
        tmp_path / "clicks.csv.gz",
        "query,item_id,grade,user_id,timestamp,weight,page",
        " hot  drink ,i3,2,ann,1700000000,.5,9",
        "tray,i0,0,,,,",
        "hot  drink,i1,,bob,2024-05-01,2,9",
        "Tray,i1,1,ann,2024-05-01,1,9",
    )
    interactions = Interactions.read(path, catalog)
    assert len(interactions) == 4
    assert interactions.queries == ["hot  drink", "tray", "Tray"]
    assert as_rows(interactions) == [
        ("hot  drink", "i3", 2, 0.5),
        ("tray", "i0", 0, 1.0),
        ("hot  drink", "i1", 1, 2.0),
        ("Tray", "i1", 1, 1.0),
    ]
    dtypes = {"query_row": "int32", "item_row": "int32", "grade": "int32", "weight": "float32"}
    assert {name: getattr(interactions, name).dtype.name for name in dtypes} == dtypes
    assert interactions.users == ["ann", "bob"]
    assert interactions.user_row is not None
    assert interactions.user_row.tolist() == [0, -1, 1, 0]
    times = ["2023-11-14T22:13:20", "NaT", "2024-05-01", "2024-05-01"]
    assert np.array_equal(interactions.timestamp, np.array(times, "datetime64[s]"), equal_nan=True)
    assert interactions.path == str(path)
    assert interactions.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert interactions.unknown_items.rows == 0
    assert interactions.repeated_rows == 0


def test_only_the_required_columns(tmp_path: Path, catalog: Catalog) -> None:
    interactions = Interactions.read(write(tmp_path / "a.csv", "item_id,query", "i2,mug"), catalog)
    assert as_rows(interactions) == [("mug", "i2", 1, 1.0)]
    assert interactions.users == []
    assert interactions.user_row is None
    assert interactions.timestamp is None


def test_integer_ids_of_json_and_parquet_meet_text_ids(tmp_path: Path) -> None:
    catalog = Catalog.read(write(tmp_path / "catalog.csv", "item_id,title", "12,a", "012,b"))
    pairs = [{"query": "x", "item_id": 12}, {"query": "x", "item_id": "012"}]
    lines = Interactions.read(
        write(tmp_path / "a.jsonl", *(json.dumps(pair) for pair in pairs)), catalog
    )
    assert lines.item_row.tolist() == [0, 1]
    pq.write_table(pa.table({"query": ["x"], "item_id": [12]}), tmp_path / "a.parquet")
    assert Interactions.read(tmp_path / "a.parquet", catalog).item_row.tolist() == [0]


ITEMS = st.sampled_from(["i0", "i1", "i2", "gone", "lost"])
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["mug", "tray", "pan"]),
        ITEMS,
        st.integers(0, 3),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=25,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS)
def test_repeats_and_unknown_items(
    tmp_path: Path, catalog: Catalog, rows: list[tuple[str, str, int, float]]
) -> None:
    rows = [*rows, ("kettle", "i5", 1, 1.0)]
    path = tmp_path / "rows.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("query", "item_id", "grade", "weight"), *rows])
    interactions = Interactions.read(path, catalog)

    best: dict[tuple[str, str], tuple[int, float]] = {}
    unknown = [row[1] for row in rows if not row[1].startswith("i")]
    for query, item, grade, weight in rows:
        if item.startswith("i"):
            best[query, item] = max(best.get((query, item), (-1, 0.0)), (grade, weight))
    found = {(row[0], row[1]): (row[2], row[3]) for row in as_rows(interactions)}
    assert found == best
    assert len(interactions) == len(best)
    assert interactions.repeated_rows == len(rows) - len(unknown) - len(best)
    assert interactions.unknown_items.rows == len(unknown)
    assert interactions.unknown_items.items == len(set(unknown))
    assert interactions.unknown_items.first == tuple(dict.fromkeys(unknown))
    lost = {row[0] for row in rows} - {query for query, _ in best}
    assert interactions.unknown_items.queries == len(lost)
    assert interactions.queries == list(dict.fromkeys(row[0] for row in as_rows(interactions)))

    expected: dict[str, dict[str, int]] = {}
    for (query, item), (grade, _) in best.items():
        expected.setdefault(query, {})[item] = grade
    assert interactions.qrels() == expected


def test_the_first_ten_unknown_items_are_listed(tmp_path: Path, catalog: Catalog) -> None:
    path = write(
        tmp_path / "a.csv",
        "query,item_id",
        '"two\nlines",i1',
        *(f"q{n % 13},gone{n % 12}" for n in range(30)),
    )
    unknown = Interactions.read(path, catalog).unknown_items
    assert (unknown.rows, unknown.items, unknown.queries) == (30, 12, 13)
    assert unknown.first == tuple(f"gone{n}" for n in range(10))
    assert str(unknown).startswith(
        "rows whose item the catalogue lacks: 30, ids: 12 (gone0, gone1,"
    )
    assert str(unknown).endswith("gone9, ...)")
    with pytest.raises(InputError, match="catalogue lacks: 30, ids: 12") as caught:
        Interactions.read(path, catalog, strict=True)
    assert str(caught.value).startswith(str(path))
    assert "first in line 4" in str(caught.value)
    assert catalog.path in str(caught.value)


def test_no_known_item_is_an_error(tmp_path: Path, catalog: Catalog) -> None:
    path = write(tmp_path / "a.csv", "query,item_id", "mug,1", "mug,2")
    with pytest.raises(InputError, match=r"catalogue lacks: 2, ids: 2 \(1, 2\); first in line 2"):
        Interactions.read(path, catalog)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (",i1,1,1", "column 'query' is empty"),
        ("  ,i1,1,1", "column 'query' is empty"),
        ("mug,,1,1", "column 'item_id' is empty"),
        ("mug,i1,-1,1", "column 'grade' is '-1', expected a whole number, 0 or more"),
        ("mug,i1,2.33,1", "column 'grade' is '2.33', expected a whole number, 0 or more"),
        ("mug,i1,good,1", "column 'grade' is 'good', expected a whole number, 0 or more"),
        ("mug,i1,1,0", "column 'weight' is '0', expected a number above 0"),
        ("mug,i1,1,nan", "column 'weight' is 'nan', expected a number above 0"),
    ],
)
def test_bad_rows(tmp_path: Path, catalog: Catalog, row: str, complaint: str) -> None:
    path = write(tmp_path / "a.csv", "query,item_id,grade,weight", "pan,i1,1,1", row)
    with pytest.raises(InputError) as caught:
        Interactions.read(path, catalog)
    assert f"{path}, line 3: {complaint}" in str(caught.value)


def test_selections(tmp_path: Path, catalog: Catalog) -> None:
    path = write(
        tmp_path / "a.csv",
        "query,item_id,grade,user_id,timestamp",
        "pan,i1,0,ann,1",
        "mug,i1,2,bob,2",
        "pan,i2,1,cat,3",
        "pot,i3,0,ann,4",
        "mug,i3,1,ann,5",
    )
    whole = Interactions.read(path, catalog)
    positives = whole.positives()
    assert [row[:3] for row in as_rows(positives)] == [
        ("mug", "i1", 2),
        ("pan", "i2", 1),
        ("mug", "i3", 1),
    ]
    assert positives.queries == ["mug", "pan"]
    assert positives.users == ["bob", "cat", "ann"]
    assert positives.timestamp is not None
    assert positives.timestamp.astype(int).tolist() == [2, 3, 5]
    assert [row[:3] for row in as_rows(whole.positives(2))] == [("mug", "i1", 2)]

    for chosen in (np.array([False, True, True]), [2, 1], np.array([1, 2])):
        some = whole.select_queries(chosen)
        assert [row[:2] for row in as_rows(some)] == [("mug", "i1"), ("pot", "i3"), ("mug", "i3")]
        assert some.queries == ["mug", "pot"]
    assert len(whole.select_queries([])) == 0
    backwards = whole.select_rows(np.array([4, 0]))
    assert [row[:2] for row in as_rows(backwards)] == [("mug", "i3"), ("pan", "i1")]
    assert len(whole) == 5


def test_require_positives(tmp_path: Path, catalog: Catalog) -> None:
    path = write(tmp_path / "a.csv", "query,item_id,grade", "pan,i1,0", "mug,i1,0")
    whole = Interactions.read(path, catalog)
    with pytest.raises(InputError) as caught:
        whole.require_positives()
    assert f"{path}: no positive pair" in str(caught.value)
    assert "the highest grade is 0" in str(caught.value)
    assert whole.positives().queries == []
    with pytest.raises(InputError, match="it has no rows"):
        whole.positives().require_positives()
    graded = Interactions.read(write(tmp_path / "b.csv", "query,item_id", "pan,i1"), catalog)
    graded.require_positives()
    with pytest.raises(InputError, match="a grade of 2 or more is needed, the highest grade is 1"):
        graded.require_positives(2)


@pytest.mark.slow
def test_five_million_rows_in_two_gibibytes(tmp_path: Path, catalog: Catalog) -> None:
    random = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(5000)], dtype=object)
    queries = words[random.integers(0, 5000, 1_000_000)]
    for _ in range(3):
        queries = queries + " " + words[random.integers(0, 5000, 1_000_000)]
    path = tmp_path / "rows.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("query,item_id,grade,user_id,timestamp\n")
        for _ in range(50):
            columns = random.integers(0, [1_000_000, 6, 4, 300_000, 2**30], (100_000, 5)).tolist()
            file.writelines(
                f"{queries[query]},i{item},{grade},u{user},{time}\n"
                for query, item, grade, user, time in columns
            )
    program = """
import resource, sys
from training.catalog import Catalog
from training.interactions import Interactions
interactions = Interactions.read(sys.argv[1], Catalog.read(sys.argv[2]))
print(len(interactions) + interactions.repeated_rows)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, path, catalog.path],
        capture_output=True,
        text=True,
        check=True,
    )
    rows, peak_kib = map(int, run.stdout.split())
    assert rows == 5_000_000
    assert peak_kib < 2 << 20


def test_spellings_that_no_tower_tells_apart_become_one_query(
    tmp_path: Path, catalog: Catalog
) -> None:
    path = write(
        tmp_path / "log.csv",
        "query,item_id,grade",
        "COFFEE PRESS,i0,1",
        "coffee   press,i1,2",
        "mug,i5,1",
        "coffee   press,i0,3",
        "Coffee press,i2,1",
    )
    read = Interactions.read(path, catalog)
    assert len(read.queries) == 4
    one = read.with_one_spelling()
    # The spelling with two rows stays, and of the pair that two spellings judge the higher grade.
    assert as_rows(one) == [
        ("coffee   press", "i1", 2, 1.0),
        ("mug", "i5", 1, 1.0),
        ("coffee   press", "i0", 3, 1.0),
        ("coffee   press", "i2", 1, 1.0),
    ]
    assert one.repeated_rows == read.repeated_rows + 1
    assert one.with_one_spelling() is one
    assert as_rows(read.of_queries(["coffee PRESS"])) == [r for r in as_rows(read) if r[0] != "mug"]
    assert read.without_queries(["Coffee Press"]).queries == ["mug"]


def test_the_order_of_the_file_does_not_choose_the_spelling(
    tmp_path: Path, catalog: Catalog
) -> None:
    rows = ["tea pot,i0", "Tea Pot,i1", "TEA POT,i2"]
    for number, order in enumerate((rows, rows[::-1])):
        path = write(tmp_path / f"log{number}.csv", "query,item_id", *order)
        assert Interactions.read(path, catalog).with_one_spelling().queries == ["TEA POT"]
