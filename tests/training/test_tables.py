"""Tables against Python's own csv, json and gzip modules, and every way a file can be wrong."""

from __future__ import annotations

import codecs
import csv
import datetime
import gzip
import hashlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.columns import Kind
from training.table_source import FORMATS
from training.tables import content_sha256, place, read_table

REQUIRED: dict[str, Kind] = {"item_id": "id", "title": "text"}
OPTIONAL: dict[str, Kind] = {
    "price": "price",
    "grade": "grade",
    "weight": "weight",
    "timestamp": "timestamp",
    "items": "ids",
    "image_embedding": "vector",
}


def read(path: Path, *, keep_other: bool = True) -> pa.Table:
    return read_table(path, required=REQUIRED, optional=OPTIONAL, keep_other=keep_other)


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


ROWS = [
    {"item_id": "007", "title": "Mug, 12 oz", "colour": "red"},
    {"item_id": "NA", "title": 'A "quoted"\nsecond line', "colour": None},
    {"item_id": "1e3", "title": "Théière ½ 茶 🫖", "colour": "null"},
]


def write_rows(path: Path, rows: list[dict[str, str | None]]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if name.endswith(".jsonl"):
        return write(path, "".join(json.dumps(row) + "\n" for row in rows))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
    writer.writeheader()
    writer.writerows(rows)
    return write(path, text.getvalue())


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_table(tmp_path: Path, ending: str) -> None:
    table = read(write_rows(tmp_path / f"rows{ending}", ROWS))
    assert table.to_pylist() == ROWS
    assert table.column_names == ["item_id", "title", "colour"]


def test_the_name_may_be_in_capitals(tmp_path: Path) -> None:
    assert read(write_rows(tmp_path / "ROWS.CSV", ROWS)).to_pylist() == ROWS


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.booleans())
def test_csv_agrees_with_the_csv_module(
    tmp_path: Path, cells: list[tuple[str, str]], crlf: bool
) -> None:
    rows = [("x" + first, "y" + second) for first, second in cells]
    text = io.StringIO(newline="")
    # With "\n" for a line end the csv module does not quote a "\r" unless it quotes everything.
    quoting, end = (csv.QUOTE_MINIMAL, "\r\n") if crlf else (csv.QUOTE_ALL, "\n")
    writer = csv.writer(text, quoting=quoting, lineterminator=end)
    writer.writerows([("item_id", "title"), *rows])
    path = write(tmp_path / "rows.csv", text.getvalue())
    expected = list(csv.reader(io.StringIO(text.getvalue(), newline="")))[1:]
    found = read(path).to_pylist()
    assert [[row["item_id"], row["title"]] for row in found] == [
        [first.strip(), second.strip()] for first, second in expected
    ]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.booleans())
def test_json_lines_agree_with_the_json_module(
    tmp_path: Path, cells: list[tuple[str, str]], ascii_only: bool
) -> None:
    rows = [{"item_id": "x" + first, "title": "y" + second} for first, second in cells]
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    found = read(write(tmp_path / "rows.jsonl", text)).to_pylist()
    assert found == [{name: value.strip() for name, value in row.items()} for row in rows]


def test_byte_order_mark_crlf_blank_lines_and_whitespace(tmp_path: Path) -> None:
    content = codecs.BOM_UTF8 + b" item_id , title\r\n\r\n 1 ,\tOne \r\n\r\n2,Two"
    expected = [{"item_id": "1", "title": "One"}, {"item_id": "2", "title": "Two"}]
    assert read(write(tmp_path / "rows.csv", content)).to_pylist() == expected
    lines = "\r\n\r\n".join(json.dumps(row) for row in expected).encode()
    assert read(write(tmp_path / "rows.jsonl", codecs.BOM_UTF8 + lines)).to_pylist() == expected


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", ",item_id,title,,\n0,1,One,,\n")
    assert read(path).to_pylist() == [{"item_id": "1", "title": "One"}]


def test_other_columns_are_kept_or_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "item_id,colour,title\n1,red,One\n")
    assert read(path).column_names == ["item_id", "colour", "title"]
    assert read(path, keep_other=False).column_names == ["item_id", "title"]


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"item_id,title\n1,One\n") + gzip.compress(b"2,Two\n"))
    assert len(read(path)) == 2


def test_a_file_of_many_blocks_and_batches(tmp_path: Path) -> None:
    rows = [{"item_id": str(i), "title": f"title {i % 7}", "price": i / 4} for i in range(70_000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(write(tmp_path / "rows.jsonl.gz", lines)).to_pylist() == rows
    long = "x" * (3 << 20)  # larger than a read, smaller than a block
    path = write(tmp_path / "rows.csv", f"item_id,title,price\n1,{long},2\n" + "2,y,3\n" * 10)
    assert read(path).column("title").to_pylist() == [long] + ["y"] * 10


def test_sha256_is_of_the_bytes_on_disk(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv.gz", "item_id,title\n1,One\n")
    assert content_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# Types


def test_numbers_times_and_vectors_in_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.csv",
        "item_id,title,price,grade,weight,timestamp,image_embedding\n"
        '1,a,12.50,2,.5,1700000000,"[1, 2.5]"\n'
        "2,b,,,,,\n"
        '3,c,1e2, 3.0 ,2,2024-05-01T12:30:00.25+02:00,"[3, -4]"\n'
        '4,d,0,0,1,2024-05-01 12:30,"[5, 6]"\n'
        '5,e,0,0,1,2024-05-01,"[7, 8]"\n'
        '6,f,0,0,1,2024-05-01T12:30:00Z,"[7, 8]"\n',
    )
    table = read(path)
    assert table.column("price").to_pylist() == [12.5, None, 100, 0, 0, 0]
    assert table.column("grade").to_pylist() == [2, None, 3, 0, 0, 0]
    assert table.column("weight").to_pylist() == [0.5, None, 2, 1, 1, 1]
    utc = datetime.UTC
    times = [
        datetime.datetime.fromtimestamp(1_700_000_000, utc),
        None,
        datetime.datetime(2024, 5, 1, 10, 30, tzinfo=utc),
        datetime.datetime(2024, 5, 1, 12, 30, tzinfo=utc),
        datetime.datetime(2024, 5, 1, tzinfo=utc),
        datetime.datetime(2024, 5, 1, 12, 30, tzinfo=utc),
    ]
    naive = [time if time is None else time.replace(tzinfo=None) for time in times]
    assert table.column("timestamp").to_pylist() == naive
    vectors = [[1, 2.5], None, [3, -4], [5, 6], [7, 8], [7, 8]]
    assert table.column("image_embedding").to_pylist() == vectors
    assert table.schema.field("image_embedding").type == pa.list_(pa.float32(), 2)


def test_json_values_of_other_types_become_text(tmp_path: Path) -> None:
    lines = [
        '{"item_id": 7, "title": 1984, "colour": 1.5, "price": 3}',
        '{"item_id": "007", "title": "x", "colour": ["a", {"b": 1}], "price": "4.5"}',
        '{"item_id": 12345678901234567890123, "title": true, "price": null}',
    ]
    assert read(write(tmp_path / "rows.jsonl", "\n".join(lines))).to_pylist() == [
        {"item_id": "7", "title": "1984", "colour": "1.5", "price": 3.0},
        {"item_id": "007", "title": "x", "colour": '["a", {"b": 1}]', "price": 4.5},
        {"item_id": "12345678901234567890123", "title": "true", "colour": None, "price": None},
    ]


def test_lists_of_ids(tmp_path: Path) -> None:
    lines = '{"item_id":1,"title":"a","items":["x",7," y "]}\n{"item_id":2,"title":"b"}\n'
    expected = [["x", "7", "y"], None]
    assert read(write(tmp_path / "a.jsonl", lines)).column("items").to_pylist() == expected
    table = pa.table({"item_id": ["1", "2"], "title": ["a", "b"], "items": [[1, 2], []]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").column("items").to_pylist() == [["1", "2"], []]


def test_parquet_types(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 1, 12, 30, 15, 999_999)
    zone = datetime.timezone(datetime.timedelta(hours=2))
    for time in (
        pa.array([when, None], pa.timestamp("us")),
        pa.array([when.replace(tzinfo=datetime.UTC).astimezone(zone), None]),
        pa.array([int(when.replace(tzinfo=datetime.UTC).timestamp()), None]),
        pa.array(["2024-05-01T12:30:15", None]).dictionary_encode(),
    ):
        table = pa.table(
            {
                "item_id": pa.array([7, 8], pa.int16()),
                "title": pa.array(["a", "b"]).dictionary_encode(),
                "price": pa.array([1, None], pa.decimal128(7, 2)),
                "grade": pa.array([1.0, None]),
                "timestamp": time,
                "image_embedding": pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2)),
                "tags": pa.array([["x"], None]),
                "stock": pa.array([True, False]),
            }
        )
        pq.write_table(table, tmp_path / "rows.parquet")
        first, second = read(tmp_path / "rows.parquet").to_pylist()
        assert first == {
            "item_id": "7",
            "title": "a",
            "price": 1.0,
            "grade": 1,
            "timestamp": when.replace(microsecond=0),
            "image_embedding": [1.0, 2.0],
            "tags": "x",
            "stock": "true",
        }
        assert second == {**dict.fromkeys(first), "item_id": "8", "title": "b", "stock": "false"}


# Bad input


def test_unknown_ending_lists_the_known_ones(tmp_path: Path) -> None:
    text = message(tmp_path / "rows.xlsx")
    assert all(ending in text for ending in FORMATS)


@pytest.mark.parametrize("ending", FORMATS)
def test_no_such_file_and_directories(tmp_path: Path, ending: str) -> None:
    assert "No such file" in message(tmp_path / f"missing{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    assert "Is a directory" in message(tmp_path / f"folder{ending}")


@pytest.mark.parametrize("ending", FORMATS)
def test_empty_file(tmp_path: Path, ending: str) -> None:
    assert "is empty" in message(write(tmp_path / f"rows{ending}", b""))


def test_header_only(tmp_path: Path) -> None:
    for content in ("item_id,title", "item_id,title\n", "item_id,title\r\n\r\n"):
        assert "no rows" in message(write(tmp_path / "rows.csv", content))
    pq.write_table(
        pa.table({"item_id": pa.array([], pa.string()), "title": []}), tmp_path / "a.parquet"
    )
    assert "no rows" in message(tmp_path / "a.parquet")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_is_another_one_is_not_to_be_renamed(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path / f"rows{ending}", [{"Handle": "1", "Title": "One"}])
    assert "Did you mean" not in message(path)  # least of all 'Title' for 'item_id'
    path = write_rows(tmp_path / f"others{ending}", [{"Item_ID": "1", "Title": "One"}])
    assert "Did you mean 'Item_ID'? Rename it to 'item_id'" in message(path)
    path = write_rows(tmp_path / f"third{ending}", [{"item_id": "1", "Title": "One"}])
    assert "Did you mean 'Title'? Rename it to 'title'" in message(path)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_missing_column_shows_the_others_and_the_nearest(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path / f"rows{ending}", [{"ItemID": "1", "title": "One", "sku": "2"}])
    text = message(path)
    assert "no column 'item_id'" in text
    assert "'ItemID', 'title', 'sku'" in text
    assert "Did you mean 'ItemID'? Rename it to 'item_id'" in text


def test_wrong_delimiter(tmp_path: Path) -> None:
    text = message(write(tmp_path / "rows.csv", "item_id;title\n1;One\n"))
    assert "is ';' the delimiter?" in text


def test_duplicate_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "item_id,title, title \n1,a,b\n")
    assert "column 'title' is there 2 times" in message(path)
    names = ["item_id", "title", "title"]
    pq.write_table(pa.table([pa.array(["1"])] * 3, names=names), tmp_path / "a.parquet")
    assert "column 'title' is there 2 times" in message(tmp_path / "a.parquet")


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("before", [0, 5, (1 << 20) - 3, 3 << 20])
def test_wrong_encoding_names_the_byte(tmp_path: Path, ending: str, before: int) -> None:
    head = '{"item_id": "1", "title": "' if "json" in ending else "item_id,title\n1,"
    good = (head + "é" * before)[: before + len(head)].encode()
    path = write(tmp_path / f"rows{ending}", good + "café".encode("latin-1") + b'"}\n')
    text = message(path)
    assert f"byte 0xe9 at byte offset {len(good) + 3};" in text
    assert "UTF-8" in text


def test_wrong_encoding_at_the_very_end(tmp_path: Path) -> None:
    content = b"item_id,title\n1,caf\xc3"
    text = message(write(tmp_path / "rows.csv", content))
    assert f"byte 0xc3 at byte offset {len(content) - 1};" in text


def test_utf16_is_recognised(tmp_path: Path) -> None:
    content = "item_id,title\n1,One\n"
    assert "UTF-16" in message(write(tmp_path / "a.csv", content.encode("utf-16")))
    assert "NUL in column name" in message(write(tmp_path / "b.csv", content.encode("utf-16-le")))


def test_wrong_encoding_in_parquet(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"item_id": ["1", "2"], "title": bad}), tmp_path / "rows.parquet")
    text = message(tmp_path / "rows.parquet")
    assert "row 2: column 'title' is b'caf\\xe9', expected text in UTF-8" in text


def test_ragged_row(tmp_path: Path) -> None:
    content = 'item_id,title\n\n1,"two\nlines"\n2,Two\n3,Three,3\n'
    assert "line 6: expected 2 columns, found 3" in message(write(tmp_path / "a.csv", content))
    text = message(write(tmp_path / "b.tsv.gz", "item_id\ttitle\n1\tOne\nonly\n"))
    assert "line 3: expected 2 columns, found 1" in text


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_quote_left_open(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "rows.csv", 'item_id,title\n1,One\n2,"Two\n3,Three' + end)
    assert "line 3: a quotation mark opened in this row is never closed" in message(path)
    path = write(tmp_path / "rows.csv", 'item_id,title\n1,One\n"2,Two\n3,Three' + end)
    assert "line 3: expected 2 columns, found 1" in message(path)
    assert "quote left open" in message(path)


def test_quote_left_open_in_a_large_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'item_id,title\n1,"One\n' + "2,Two\n" * (6 << 20))
    assert "line 2: the row is longer than" in message(path)


def test_inches_are_no_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'item_id,title\n1,6" pipe\n2,8" pipe\n3,9"')
    assert read(path).column("title").to_pylist() == ['6" pipe', '8" pipe', '9"']


@pytest.mark.parametrize("ending", [".csv.gz", ".jsonl.gz"])
def test_truncated_and_corrupt_gzip(tmp_path: Path, ending: str) -> None:
    rows = [{"item_id": str(i), "title": f"Title {i * i}"} for i in range(2000)]
    path = write_rows(tmp_path / f"rows{ending}", rows)
    whole = path.read_bytes()
    for length in (5, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert "truncated" in message(path)
    corrupt = bytearray(whole)
    corrupt[-6] ^= 0xFF  # a byte of the checksum or length
    path.write_bytes(corrupt)
    assert "cannot be read" in message(path)
    path.write_bytes(gzip.decompress(whole))
    assert "Not a gzipped file" in message(path)


def test_gzip_without_its_ending(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(gzip.compress(b"item_id,title\n1,One\n"))
    assert "its name should end in .gz" in message(path)


def test_broken_parquet(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable Parquet file" in message(path)
    path.write_bytes(b"item_id,title\n1,One\n")
    assert "not a readable Parquet file" in message(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"item_id": "3", "title": }', "line 4: not valid JSON: Expecting value at column 27"),
        ('{"item_id": "3", "title": "x', "line 4: not valid JSON"),
        ("[1, 2]", "line 4: expected one JSON object a line, found list"),
        ("7", "line 4: expected one JSON object a line, found int"),
        ("[" * 100_000, "line 4: not usable JSON"),
        ('{"item_id": ' + "9" * 5000 + "}", "line 4: not usable JSON"),
        ('{"item_id": "3"}', "line 4: column 'title' is empty"),
        ('{"item_id": 1.5, "title": "x"}', "line 4: column 'item_id' is 1.5, expected a string or"),
        ('{"item_id": true, "title": "x"}', "line 4: column 'item_id' is True, expected a string"),
        ('{"item_id": ["3"], "title": "x"}', "line 4: column 'item_id' is ['3'], expected"),
        ('{"item_id": "3", "title": "\\ud800"}', "line 4: column 'title' is '\\ud800', expected"),
        ('{"item_id": "3", "title": "a\\u0000b"}', "line 4: column 'title' is 'a\\x00b', expected"),
        ('{"item_id": "3", "title": "x", "price": NaN}', "line 4: column 'price' is 'NaN'"),
        ('{"item_id": "3", "title": "x", "price": true}', "line 4: column 'price' is 'true'"),
        ('{"item_id": "3", "title": "x", "items": "a b"}', "line 4: column 'items' is 'a b'"),
        ('{"item_id": "3", "title": "x", "items": [1, null]}', "line 4: column 'items' is"),
        ('{"item_id": "3", "title": "x", "items": [1, 2.5]}', "expected a list of ids"),
    ],
)
def test_bad_json_line(tmp_path: Path, line: str, complaint: str) -> None:
    good = '{"item_id": "1", "title": "One"}\n\n{"item_id": "2", "title": "Two"}\n'
    assert complaint in message(write(tmp_path / "rows.jsonl", good + line + "\n"))


def test_bad_json_value_in_a_later_batch(tmp_path: Path) -> None:
    good = '{"item_id": "1", "title": "One"}\n' * 40_000
    path = write(tmp_path / "rows.jsonl", good + '{"item_id": {}, "title": "x"}\n')
    assert "line 40001: column 'item_id' is {}" in message(path)


BAD_NUMBERS = ["NaN", "-0.01", "abc", "inf", "1,299", "$5", "1_000", "0x10", "--1", "1e999"]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [("price", value, "expected a number, 0 or more") for value in BAD_NUMBERS]
    + [("grade", value, "expected a whole number, 0 or more") for value in ("-1", "1.5", "1e10")]
    + [("weight", value, "expected a number above 0") for value in ("0", "-1", "nan", "1e-60")]
    + [
        ("timestamp", value, "expected whole seconds since 1970, or ISO 8601")
        for value in ("yesterday", "1700000000000", "2024-13-01", "2024-02-30", "01/02/2024", "nan")
    ],
)
def test_bad_number_names_line_column_and_value(
    tmp_path: Path, column: str, value: str, expected: str
) -> None:
    text = io.StringIO()
    rows = [["item_id", "title", column], ["1", "a\nb", "1"], ["2", "c", ""], ["3", "d", value]]
    csv.writer(text, lineterminator="\n").writerows(rows)
    path = write(tmp_path / "rows.csv", text.getvalue())
    assert f"{path}, line 5: column {column!r} is {value!r}, {expected}" in message(path)


def test_bad_number_in_a_later_block_of_parquet(tmp_path: Path) -> None:
    prices = pa.chunked_array([[1.0, 2.0], [3.0, math.nan]])
    table = pa.table({"item_id": ["1", "2", "3", "4"], "title": ["a"] * 4, "price": prices})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    assert "row 4: column 'price' is nan, expected a number" in message(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ('"[1, 2, 3]"', "is 'a list of 3', expected a list of 2 numbers"),
        ("[]", "is 'a list of 0', expected a list of 2 numbers"),
        ('"[1, null]"', "expected a list of finite float32 numbers"),
        ('"[1, NaN]"', "expected a list of finite float32 numbers"),
        ('"[1, 1e39]"', "expected a list of finite float32 numbers"),
        ("0.5", "expected a list of numbers"),
        ("0.5 0.25", "expected a list of numbers"),
        ('"[1, ""a""]"', "expected a list of numbers"),
    ],
)
def test_bad_vector(tmp_path: Path, value: str, complaint: str) -> None:
    content = f'item_id,title,image_embedding\n1,a,"[1, 2]"\n2,b,{value}\n'
    text = message(write(tmp_path / "rows.csv", content))
    assert "line 3: column 'image_embedding'" in text
    assert complaint in text


def test_empty_cells_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "item_id,title\n1,One\n2, \n3,\n")
    expected = "line 3: column 'title' is empty (such rows: 2); every row needs a value"
    assert expected in message(path)


def test_nul_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "item_id,title\n1,One\n2,T\0wo\n")
    expected = "line 3: column 'title' is 'T\\x00wo', expected text without NUL characters"
    assert expected in message(path)


@pytest.mark.parametrize(
    ("column", "values", "complaint"),
    [
        ("item_id", pa.array([1.5]), "has type double; an id is text or an integer"),
        ("item_id", pa.array([True]), "has type bool; an id is text or an integer"),
        ("item_id", pa.array([b"a"]), "has type binary; an id is text or an integer"),
        ("title", pa.array([b"a"]), "has type binary; text is stored as type string"),
        ("price", pa.array([True]), "has type bool; each value is a number"),
        ("price", pa.array([[1.0]]), "each value is a number, 0 or more"),
        ("timestamp", pa.array([True]), "has type bool; each value is whole seconds"),
        ("items", pa.array(["a"]), "each value is a list of ids"),
        ("items", pa.array([[1.5]]), "an id is text or an integer"),
        ("image_embedding", pa.array([["a"]]), "each value is a list of numbers"),
    ],
)
def test_parquet_of_the_wrong_type(
    tmp_path: Path, column: str, values: pa.Array, complaint: str
) -> None:
    table = pa.table({"item_id": pa.array(["1"]), "title": pa.array(["One"])})
    if column in table.column_names:
        table = table.drop_columns(column)
    pq.write_table(table.append_column(column, values), tmp_path / "rows.parquet")
    text = message(tmp_path / "rows.parquet")
    assert f"column {column!r} has type" in text
    assert complaint in text


@pytest.mark.parametrize("ending", [".csv", ".tsv.gz", ".jsonl", ".parquet"])
def test_place_is_the_line_in_the_file(tmp_path: Path, ending: str) -> None:
    rows: list[dict[str, str | None]] = [
        {"item_id": str(i), "title": "two\nlines" if i % 3 == 0 else "one"} for i in range(10)
    ]
    path = write_rows(tmp_path / f"rows{ending}", rows)
    if ending == ".parquet":
        assert [place(path, row) for row in (0, 9)] == ["row 1", "row 10"]
        return
    content = path.read_bytes()
    lines = (gzip.decompress(content) if ending.endswith(".gz") else content).decode().split("\n")
    for row in range(10):
        word, number = place(path, row).split()
        assert word == "line"
        line = lines[int(number) - 1]
        assert line.startswith((f"{row},", f"{row}\t", f'{{"item_id": "{row}"'))


def test_the_csv_field_limit_of_the_process_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    read(write(tmp_path / "rows.csv", "item_id,title\n1,One\n"))
    message(write(tmp_path / "rows.csv", "item_id,title\n1\n"))
    assert csv.field_size_limit() == before


def test_text_is_stored_once(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "item_id,title\n" + "1, One\n2,One \n" * 1000)
    titles = read(path).column("title").combine_chunks()
    assert titles.dictionary.to_pylist() == ["One"]
    assert np.array_equal(titles.indices, np.zeros(2000))
