"""The catalogue: its columns, its index, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towers.errors import InputError
from training.catalog import Catalog

ROWS = [
    {"item_id": "007", "title": "Mug", "brand": "Acme", "price": "12.50", "colour": "red"},
    {"item_id": "7", "title": "Kettle", "brand": "", "price": "30.0", "colour": "NA"},
    {"item_id": "x7", "title": "Tray", "brand": "Bolt", "price": "", "colour": ""},
]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


def test_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "catalog.csv", ROWS)
    catalog = Catalog.read(path)
    assert len(catalog) == 3
    assert catalog.path == str(path)
    assert catalog.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert catalog.item_ids.dtype == object
    assert catalog.item_ids.tolist() == ["007", "7", "x7"]
    assert catalog.column("brand") == ["Acme", None, "Bolt"]
    assert catalog.column("colour") == ["red", "NA", None]
    assert catalog.column("price") == ["12.5", "30", None]
    assert catalog.table.column("price").to_pylist() == [12.5, 30.0, None]


def test_rows_of_ids(tmp_path: Path) -> None:
    catalog = Catalog.read(write_csv(tmp_path / "catalog.csv", ROWS))
    for wanted in (
        ["x7", "nope", "007", "x7"],
        np.array(["x7", "nope", "007", "x7"], dtype=object),
        pa.array(["x7", "nope", "007", "x7"]),
    ):
        rows = catalog.row_of(wanted)
        assert rows.dtype == np.int64
        assert rows.tolist() == [2, -1, 0, 2]
    assert catalog.row_of([]).tolist() == []


def test_one_item_is_a_catalogue(tmp_path: Path) -> None:
    catalog = Catalog.read(write_csv(tmp_path / "catalog.csv", ROWS[:1]))
    assert len(catalog) == 1
    assert catalog.row_of(["007"]).tolist() == [0]


def test_image_embeddings_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_text(
        '{"item_id": "1", "title": "Mug", "image_embedding": [1, 2.5]}\n'
        '{"item_id": "2", "title": "Tray"}\n'
    )
    catalog = Catalog.read(path)
    assert catalog.table.column("image_embedding").to_pylist() == [[1, 2.5], None]
    with pytest.raises(InputError, match="no text column 'image_embedding'"):
        catalog.column("image_embedding")


def test_unknown_column_lists_the_others(tmp_path: Path) -> None:
    catalog = Catalog.read(write_csv(tmp_path / "catalog.csv", ROWS))
    with pytest.raises(InputError, match="'size'; there are item_id, title, brand, price, colour"):
        catalog.column("size")


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Catalog.read(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[1], "title": "two\nlines"}, {**ROWS[0], "item_id": " 7 "}]
    text = refusal(write_csv(tmp_path / "catalog.csv", rows))
    assert (
        "item_id '7' in line 5 is already in line 3; ids must be unique (rows that repeat an id: 2)"
        in text
    )
    table = pa.table({"item_id": [5, 6, 5], "title": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "catalog.parquet")
    assert "item_id '5' in row 3 is already in row 1" in refusal(tmp_path / "catalog.parquet")


@pytest.mark.parametrize("column", ["item_id", "title"])
@pytest.mark.parametrize("empty", ["", "  ", "\u3000"])
def test_every_item_needs_an_id_and_a_title(tmp_path: Path, column: str, empty: str) -> None:
    path = write_csv(tmp_path / "catalog.csv", [ROWS[0], {**ROWS[1], column: empty}])
    assert f"line 3: column {column!r} is empty" in refusal(path)


@pytest.mark.parametrize("price", ["NaN", "-1", "free", "inf"])
def test_bad_price(tmp_path: Path, price: str) -> None:
    path = write_csv(tmp_path / "catalog.csv", [ROWS[0], {**ROWS[1], "price": price}])
    assert f"line 3: column 'price' is {price!r}, expected a number, 0 or more" in refusal(path)


def test_embeddings_of_different_widths(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_text(
        '{"item_id": "1", "title": "Mug", "image_embedding": [1, 2]}\n'
        '{"item_id": "2", "title": "Tray", "image_embedding": [1, 2, 3]}\n'
    )
    assert "line 2: column 'image_embedding' is 'a list of 3'" in refusal(path)


def test_missing_title_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "catalog.csv", [{"item_id": "1", "product_title": "Mug"}])
    text = refusal(path)
    assert "no column 'title'; the columns are 'item_id', 'product_title'" in text
    assert "Did you mean 'product_title'?" in text


def test_vectors_are_rows_of_the_column_and_none_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    rows = [("a", [1.0, 2.0]), ("b", None), ("c", [3.0, 4.5])]
    lines = [{"item_id": i, "title": i} | ({"image_embedding": v} if v else {}) for i, v in rows]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = Catalog.read(path).vectors("image_embedding")
    assert [None if v is None else v.tolist() for v in found] == [v for _, v in rows]
    with pytest.raises(InputError, match=r"no column of vectors 'price'"):
        Catalog.read(path).vectors("price")
