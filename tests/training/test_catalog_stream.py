"""Reading a catalogue as a stream: what it yields is what the whole catalogue holds."""

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
from training.catalog import Catalog, render_items
from training.catalog_stream import BadRow, ItemBatch, stream_items

TEMPLATE = ItemTemplate(
    "{title}[ by {brand}][. {colour}][ at {price}]{price:number}{image_embedding:vector}"
)


def read(path: Path, template: ItemTemplate = TEMPLATE) -> tuple[list[ItemBatch], list[BadRow]]:
    with path.open("rb") as file:
        parts = list(stream_items(file, str(path), template))
    batches = [part for part in parts if isinstance(part, ItemBatch)]
    return batches, [part for part in parts if isinstance(part, BadRow)]


def records(count: int, golden_texts: list[str]) -> list[dict[str, object]]:
    texts = [text for text in golden_texts if text.strip() and "\0" not in text]
    return [
        {
            "item_id": f"p {row}",
            "title": texts[row % len(texts)] + f" {row}",
            "brand": "" if row % 3 else ' He said "no",\nand left ',
            "colour": texts[-row % len(texts)] if row % 2 else "",
            "price": row * 0.25,
            "image_embedding": [float(row), 1.0, -0.5],
        }
        for row in range(count)
    ]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
        return path
    text = io.StringIO(newline="")
    if ".jsonl" in name:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.writer(text, delimiter="\t" if ".tsv" in name else ",")
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_items_are_those_of_the_whole_catalogue(
    name: str, tmp_path: Path, golden_texts: list[str]
) -> None:
    path = write(tmp_path / name, records(5000, golden_texts))
    batches, bad = read(path)
    assert bad == []
    assert len(batches) == 2  # of at most 4,096
    catalog = Catalog.read(path)
    ids = [item_id for batch in batches for item_id in batch.ids]
    assert ids == catalog.item_ids.tolist()
    assert [text for x in batches for text in x.texts] == render_items(TEMPLATE, catalog)
    assert [row for batch in batches for row in batch.rows] == list(range(1, 5001))


def test_bad_rows_lie_where_an_editor_has_them(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    lines = ["item_id,title,price,image_embedding", '1,"Two', 'lines",1.5,"[1, 2]"', ""]
    lines += [
        '2,Mug,cheap,"[1, 2]"',
        '3,Mug,-1,"[1, 2]"',
        '4,Mug,,"[1, 2, 3]"',
        "5,Mug,,[1",
        "6,,,",
    ]
    lines += ['7,Mug,2,"[1, 2]"', "8,Nul\0,2,"]
    path.write_text("\n".join(lines), "utf-8")
    batches, bad = read(path, ItemTemplate("{title}{price:number}{image_embedding:vector}"))
    assert [(row.row, row.line) for row in bad] == [(2, 5), (3, 6), (4, 7), (5, 8), (6, 9), (8, 11)]
    assert [item_id for batch in batches for item_id in batch.ids] == ["1", "7"]
    assert [line for batch in batches for line in batch.lines] == [2, 10]
    expected = ["'cheap', expected a number", "'-1', expected", "a list of 2 numbers", "'[1'"]
    expected += ["column 'title' is empty", "without NUL"]
    for row, part in zip(bad, expected, strict=True):
        assert part in row.reason


def test_a_number_that_is_none_spoils_its_row_alone(tmp_path: Path) -> None:
    rows = [{"item_id": row, "title": "Mug", "weight": row} for row in range(9)]
    rows[4]["weight"] = "heavy"
    path = write(tmp_path / "items.jsonl", rows)
    batches, (bad,) = read(path, ItemTemplate("{title}{weight:number}"))
    assert [item_id for batch in batches for item_id in batch.ids] == list("01235678")
    assert (bad.row, bad.line) == (5, 5)
    assert "'weight' is a number, and this row has 'heavy'" in bad.reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"item_id,Title \n1,Mug\n", "no column 'title'"),
        ("a.csv", b"item_id,title,title\n1,Mug,Mug\n", "'title' is there 2 times"),
        ("a.csv", b"item_id,title,caf\xe9\n1,Mug,x\n", "the header is not UTF-8"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.jsonl", b'{"item_id": 1, "name": "Mug"}', "no column 'title'"),
        ("a.jsonl.gz", b'{"item_id": 1}', "gzip"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
        ("a.xlsx", b"", "unknown file format"),
    ],
)
def test_what_is_no_catalogue(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, ItemTemplate("{title}"))
