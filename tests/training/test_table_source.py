"""Columns that a file calls otherwise, against the same file with its columns renamed."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towers.errors import InputError
from towers.item_text import ItemTemplate
from training.catalog import Catalog
from training.catalog_stream import BadRow, ItemBatch, stream_items
from training.histories import Histories
from training.interactions import Interactions
from training.reviews import Reviews
from training.table_source import FORMATS, TableSource
from training.tables import content_sha256

ROWS = [
    {"sku": "a1", "Product name": "Red mug", "title": "MUG!", "item_id": "9", "brand": "Harrow"},
    {"sku": "a2", "Product name": "Blue mug", "title": "SALE", "item_id": "8", "brand": None},
]
NAMES = "item_id=sku, title = Product name"


def write(path: Path, rows: list[dict[str, str | None]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".jsonl" in path.name:
        content = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue()
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_a_catalogue_is_read_as_if_its_columns_were_called_so(tmp_path: Path, ending: str) -> None:
    renamed = [
        {"item_id": row["sku"], "title": row["Product name"], "brand": row["brand"]}
        for row in ROWS  # what was called item_id and title makes way
    ]
    expected = Catalog.read(write(tmp_path / f"renamed{ending}", renamed)).table
    path = write(tmp_path / f"own{ending}", ROWS)
    assert Catalog.read(f"{path}:{NAMES}").table.to_pydict() == expected.to_pydict()

    source = TableSource.of(f"{path}:{NAMES}")
    with path.open("rb") as file:
        (batch,) = stream_items(file, str(path), ItemTemplate("{brand} {title}"), source.names)
    assert isinstance(batch, ItemBatch)
    assert (batch.ids, batch.texts) == (["a1", "a2"], ["Harrow Red mug", "Blue mug"])


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"own{ending}", ROWS)
    expected = f"{path}: no column 'SKU' to be read as 'item_id'; the columns are 'sku', 'Product"
    with pytest.raises(InputError, match=f"^{expected}"):
        Catalog.read(f"{path}:item_id=SKU,title=Product name")
    with path.open("rb") as file, pytest.raises(InputError, match=f"^{expected}"):
        list(stream_items(file, str(path), ItemTemplate("{title}"), {"SKU": "item_id"}))


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("", "'' is not of the form NAME=COLUMN"),
        ("sku", "'sku' is not of the form NAME=COLUMN"),
        ("item_id=", "'item_id=' is not of the form NAME=COLUMN"),
        ("item_id=sku,,title=name", "'' is not of the form NAME=COLUMN"),
        ("item_id=sku,item_id=code", "'item_id' is named twice"),
        ("item_id=sku,title=sku", "'sku' is named twice"),
    ],
)
def test_names_that_cannot_be_read(tmp_path: Path, names: str, complaint: str) -> None:
    path = write(tmp_path / "own.csv", ROWS)
    with pytest.raises(InputError, match=complaint) as caught:
        Catalog.read(f"{path}:{names}")
    assert str(caught.value).startswith(f"{path}:{names}: ")


def test_a_column_name_may_hold_an_equals_sign(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", [{"a=b": "1", "title": "Mug"}])
    assert Catalog.read(f"{path}:item_id=a=b").item_ids.tolist() == ["1"]


def test_a_file_that_is_called_so_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv:b=c.csv", [{"item_id": "1", "title": "Mug"}])
    assert Catalog.read(path).column("title") == ["Mug"]


def test_a_missing_column_says_how_to_name_it(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", [{"Item-ID": "1", "name": "Mug"}])
    with pytest.raises(InputError, match=f"or read it so: {path}:item_id=Item-ID$"):
        Catalog.read(path)
    expected = f"are 'Item-ID', 'name'. Say which one it is: {path}:item_id=Item-ID,title=COLUMN$"
    with pytest.raises(InputError, match=expected):
        Catalog.read(f"{path}:item_id=Item-ID")
    # What cannot be written behind a file's name is not proposed.
    path = write(tmp_path / "comma.csv", [{"item id, shop": "1", "title": "Mug"}])
    with pytest.raises(InputError, match=r"'item id, shop'.* Rename it to 'item_id'$"):
        Catalog.read(path)


def test_names_that_are_not_there_get_the_same_hints(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", ROWS)
    with pytest.raises(InputError, match=r"'brand'\. Did you mean 'sku'\?$"):
        Catalog.read(f"{path}:item_id=SKU,title=Product name")
    path.write_text("sku;name\n1;Mug\n")
    expected = "the columns are 'sku;name': is ';' the delimiter.*files a tab$"
    with pytest.raises(InputError, match=expected):
        Catalog.read(f"{path}:item_id=sku,title=name")
    path.write_text("item_id;title\n1;Mug\n")
    with pytest.raises(InputError, match=r"the columns are 'item_id;title': is .*files a tab$"):
        Catalog.read(path)
    path.write_text("sku,name,name\n1,Mug,Cup\n")
    with pytest.raises(InputError, match="column 'name' is there 2 times"):
        Catalog.read(f"{path}:item_id=sku,title=name")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_bad_value_is_told_by_the_name_that_the_file_has(tmp_path: Path, ending: str) -> None:
    rows = [{"sku": "1", "title": "Mug", "Cost": "9"}, {"sku": "2", "title": "Cup", "Cost": "x"}]
    path = write(tmp_path / f"own{ending}", rows)
    expected = "[2-3]: column 'Cost', read as 'price', is 'x', expected a number"
    with pytest.raises(InputError, match=expected):
        Catalog.read(f"{path}:item_id=sku,price=Cost")
    with path.open("rb") as file:
        _, bad = stream_items(
            file, str(path), ItemTemplate("{title} {price}"), {"sku": "item_id", "Cost": "price"}
        )
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith("column 'Cost', read as 'price', is 'x', expected a number")
    path = write(tmp_path / f"empty{ending}", [*rows[:1], {"sku": "2", "title": "b", "Cost": ""}])
    with pytest.raises(InputError, match="column 'Cost', read as 'title', is empty"):
        Catalog.read(f"{path}:item_id=sku,title=Cost")


def test_names_hold_beyond_the_first_batch_of_lines(tmp_path: Path) -> None:
    rows: list[dict[str, str | None]] = [
        {"sku": f"a{n}", "item_id": "0", "title": "Mug"} for n in range(40_000)
    ]
    rows[39_999] = {"sku": "last", "title": "Cup"}
    catalog = Catalog.read(f"{write(tmp_path / 'many.jsonl', rows)}:item_id=sku")
    assert catalog.item_ids[[0, 39_998, 39_999]].tolist() == ["a0", "a39998", "last"]


def test_histories_and_reviews_have_names_too(tmp_path: Path) -> None:
    catalog = Catalog.read(f"{write(tmp_path / 'products.csv', ROWS)}:{NAMES}")
    events = [
        {"customer": "u1", "article": "a1", "when": "2024-01-01", "text": "Fine.", "stars": "4"},
        {"customer": "u1", "article": "a2", "when": "2024-01-02", "text": "Bad.", "stars": "1"},
    ]
    path = write(tmp_path / "events.csv", events)
    who = "user_id=customer,item_id=article"
    histories = Histories.read(f"{path}:{who},timestamp=when", catalog)
    assert (histories.users, histories.item_row.tolist()) == (["u1"], [0, 1])
    reviews = Reviews.read(f"{path}:{who},review=text,rating=stars", catalog)
    assert (reviews.texts, reviews.rating.tolist()) == (["Fine.", "Bad."], [4.0, 1.0])


def test_each_file_has_its_own_names(tmp_path: Path) -> None:
    catalog = Catalog.read(f"{write(tmp_path / 'products.csv', ROWS)}:{NAMES}")
    searches = [
        {"search": "red cup", "title": "a1", "stars": "2"},
        {"search": "red cup", "title": "a2", "stars": "x"},
    ]
    path = write(tmp_path / "searches.csv", searches)
    judged = Interactions.read(f"{path}:query=search,item_id=title", catalog)
    assert judged.qrels() == {"red cup": {"a1": 1, "a2": 1}}
    with pytest.raises(
        InputError, match=f"{path}, line 3: column 'stars', read as 'grade', is 'x'"
    ):
        Interactions.read(f"{path}:query=search,item_id=title,grade=stars", catalog)


def test_other_names_are_other_contents(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", ROWS)
    sums = [
        content_sha256(given)
        for given in (path, f"{path}:item_id=sku,title=brand", f"{path}:title=brand,item_id=sku")
    ]
    assert sums[0] != sums[1] == sums[2]
