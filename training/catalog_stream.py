"""A catalogue of any size as a stream of item texts: bad rows are set aside, and reading goes on.

`training.catalog.Catalog` holds all items and refuses a file with one bad row. Encoding a hundred
million items must do neither. What a row's values may be is decided by the same functions.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from towers.errors import InputError
from towers.item_text import ItemTemplate
from training.catalog import IMAGE, OPTIONAL, REQUIRED, Catalog, render_items
from training.columns import RAW_TEXT, BadCell, Kind, WrongType, convert
from training.table_source import TableSource
from training.tables import json_column, wanted_columns

_ROWS = 4096
_RECORD_BYTES = 8 << 20
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_KINDS: dict[str, Kind] = {**REQUIRED, **OPTIONAL}


@dataclass(frozen=True)
class BadRow:
    """A row that is no item.

    Attributes:
        row: which row of the file, from 1; headers and blank lines do not count.
        line: where it begins, as an editor numbers lines; None in a Parquet file.
        reason: what is wrong, and what would be right.
    """

    row: int
    line: int | None
    reason: str


@dataclass(frozen=True)
class ItemBatch:
    """Some consecutive items.

    Attributes:
        rows: of each item its row, as of `BadRow`.
        lines: likewise.
        ids: item ids, not empty; they may repeat.
        texts: item texts, the template filled in, attributes behind them.
    """

    rows: list[int]
    lines: list[int | None]
    ids: list[str]
    texts: list[str]


@dataclass
class _RawBatch:
    """Rows as they were read: for each column an Arrow array, or a list of JSON values."""

    rows: list[int] = field(default_factory=list)
    lines: list[int | None] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> _RawBatch:
        columns = {name: values[start:stop] for name, values in self.columns.items()}
        return _RawBatch(self.rows[start:stop], self.lines[start:stop], columns)


def stream_items(
    file: BinaryIO, path: str, template: ItemTemplate, names: Mapping[str, str] | None = None
) -> Iterator[ItemBatch | BadRow]:
    """Reads items in the memory of a few thousand rows.

    A row is set aside, with the reason, where it has no id or no title, is not UTF-8, has too few
    or too many columns, is no JSON object, or a value in it is not of its column's kind.

    Args:
        file: the file's bytes, open for reading.
        path: its name, for messages; the ending says which format of `training.tables` it has.
        template: the item text; its columns are read.
        names: the file's name of a column to the one that counts, where they differ; see
            `training.table_source.TableSource`.

    Yields:
        Items and bad rows, in the order of the file.

    Raises:
        InputError: the whole file is not such a catalogue: a column is missing, the header cannot
            be read, it is no Parquet file, the gzip file is truncated.
    """
    source = TableSource(path, names or {})
    wanted = list(dict.fromkeys((*REQUIRED, *template.columns, *template.attributes)))
    try:
        if source.layout in _DELIMITERS:
            parts = _delimited(_bytes(file, path), path, source, wanted)
        elif source.layout == ".jsonl":
            parts = _json_lines(_bytes(file, path), path, source, wanted)
        else:
            parts = _parquet(file, path, source, wanted)
        width = _VectorWidth()
        for part in parts:
            if isinstance(part, BadRow):
                yield part
            else:
                yield from _items(part, source, template, width)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the gzip file is truncated or damaged: {error}") from None


def _bytes(file: BinaryIO, path: str) -> io.BufferedReader:
    opened = gzip.GzipFile(fileobj=file) if path.lower().endswith(".gz") else file
    return io.BufferedReader(cast(io.RawIOBase, opened), buffer_size=1 << 20)


# From raw values to items


@dataclass
class _VectorWidth:
    """The numbers in an image embedding, known from the first one that is met."""

    numbers: int | None = None

    def check(self, column: pa.FixedSizeListArray) -> None:
        if column.null_count == len(column):
            return
        found = column.type.list_size
        self.numbers = self.numbers or found
        if found != self.numbers:
            row = int(column.is_valid().index(True).as_py())
            raise BadCell(row, f"a list of {found}", f"a list of {self.numbers} numbers, as before")


def _items(
    raw: _RawBatch, source: TableSource, template: ItemTemplate, width: _VectorWidth
) -> Iterator[ItemBatch | BadRow]:
    """Converts a batch; one with a bad row is halved until that row is alone."""
    try:
        table = _table(raw, source, width)
        texts = _rendered(table, source.file, template)
    except _Unfit as error:
        if len(raw.rows) == 1:
            yield BadRow(raw.rows[0], raw.lines[0], str(error))
            return
        middle = len(raw.rows) // 2
        yield from _items(raw.part(0, middle), source, template, width)
        yield from _items(raw.part(middle, len(raw.rows)), source, template, width)
    else:
        yield ItemBatch(raw.rows, raw.lines, table.column("item_id").to_pylist(), texts)


class _Unfit(Exception):
    """A batch holds a bad row."""


def _rendered(table: pa.Table, path: str, template: ItemTemplate) -> list[str]:
    try:
        return render_items(template, Catalog(table, path, ""))
    except InputError as error:  # all columns are there, so it is a value of an attribute
        reason = str(error).removeprefix(f"{path}: ")
        raise _Unfit(reason.replace("row 1 ", "this row ")) from None


def _table(raw: _RawBatch, source: TableSource, width: _VectorWidth) -> pa.Table:
    columns = {}
    for name, values in raw.columns.items():
        kind = _KINDS.get(name, "text")
        try:
            if isinstance(values, list):
                values = json_column(values, kind)
            columns[name] = convert(pa.chunked_array([values]), kind)
            if name == IMAGE:
                width.check(columns[name])
        except BadCell as error:
            shown = repr(error.value)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise _Unfit(f"{source.shown(name)} is {shown}, expected {error.expected}") from None
        except WrongType as error:
            raise InputError(f"{source.file}: {source.shown(name)} {error}") from None
        if name in REQUIRED and columns[name].null_count:
            raise _Unfit(f"{source.shown(name)} is empty; every row needs a value")
    return pa.table(columns)


def _own_columns(
    source: TableSource, columns: Sequence[str], names: Sequence[str]
) -> dict[str, str]:
    """What the wanted columns are called in the file; refused where one is not there."""
    kinds = {name: _KINDS.get(name, "text") for name in names}
    return wanted_columns(source, columns, kinds, kinds, False)


# CSV and TSV


def _delimited(
    file: io.BufferedReader, path: str, source: TableSource, names: Sequence[str]
) -> Iterator[_RawBatch | BadRow]:
    # Bytes that are not UTF-8 come out as surrogates, in their own row.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    limit = csv.field_size_limit(_RECORD_BYTES)  # a setting of the whole process: put it back
    try:
        yield from _csv_batches(text, path, source, names)
    except csv.Error as error:
        raise InputError(f"{path}: {error}; is a quotation mark left open?") from None
    finally:
        csv.field_size_limit(limit)


def _csv_batches(
    text: io.TextIOWrapper, path: str, source: TableSource, names: Sequence[str]
) -> Iterator[_RawBatch | BadRow]:
    delimiter = _DELIMITERS[source.layout]
    reader = csv.reader(text, delimiter=delimiter)
    header = next(filter(None, reader), None)
    if not header:
        raise InputError(f"{path} is empty")
    columns = [name.strip() for name in header]
    if any(_is_broken(name) for name in columns):
        raise InputError(f"{path}: the header is not UTF-8; save the file as UTF-8")
    own = _own_columns(source, columns, names)
    places = [columns.index(own[name]) for name in names]
    # An open quotation mark would swallow this record, which comes after the end of the file.
    sentinel = [""] * len(header)
    rest = itertools.chain(text, ["\n", delimiter.join(['""'] * len(header)) + "\n"])
    records = csv.reader(rest, delimiter=delimiter)
    rows: list[int] = []
    lines: list[int | None] = []
    cells: list[list[str]] = []

    def batch() -> _RawBatch:
        arrays = [pa.array([row[place] for row in cells], RAW_TEXT) for place in places]
        return _RawBatch(list(rows), list(lines), dict(zip(names, arrays, strict=True)))

    first = reader.line_num + 1
    held: tuple[int, int, list[str]] | None = None  # the last one may be the sentinel
    row = 0
    for record in records:
        line, first = first, reader.line_num + records.line_num + 1
        if not record:
            continue
        if held is not None:
            if bad := _bad_record(held, len(header)):
                yield bad
            else:
                rows.append(held[0])
                lines.append(held[1])
                cells.append(held[2])
        row += 1
        held = row, line, record
        if len(rows) == _ROWS:
            yield batch()
            rows.clear()
            lines.clear()
            cells.clear()
    if rows:
        yield batch()
    if held is not None and held[2] != sentinel:
        yield BadRow(held[0], held[1], "a quotation mark opened in this row is never closed")


def _bad_record(held: tuple[int, int, list[str]], width: int) -> BadRow | None:
    row, line, record = held
    if len(record) != width:
        return BadRow(row, line, f"expected {width} columns, found {len(record)}")
    if any(map(_is_broken, record)):
        return BadRow(row, line, "not UTF-8; save the file as UTF-8")
    return None


def _is_broken(text: str) -> bool:
    """Whether a text holds bytes that were not UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


# JSON lines


def _json_lines(
    file: io.BufferedReader, path: str, source: TableSource, names: Sequence[str]
) -> Iterator[_RawBatch | BadRow]:
    own_name = {name: own for own, name in source.names.items()}
    raw = _RawBatch(columns={name: [] for name in names})
    seen: dict[str, None] = {}
    row = 0
    for line, content in enumerate(file, 1):
        content = content.removeprefix(codecs.BOM_UTF8).strip()
        if not content:
            continue
        row += 1
        record = _json_record(content)
        if isinstance(record, str):
            yield BadRow(row, line, record)
            continue
        seen.update(dict.fromkeys(record))
        raw.rows.append(row)
        raw.lines.append(line)
        for name, values in raw.columns.items():
            values.append(record.get(own_name.get(name, name)))
        if len(raw.rows) == _ROWS:
            yield raw
            raw = _RawBatch(columns={name: [] for name in names})
    if raw.rows:
        yield raw
    if not row:
        raise InputError(f"{path} is empty")
    _own_columns(source, list(seen), names)


def _json_record(content: bytes) -> dict[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    try:
        record = json.loads(content.decode())
    except UnicodeDecodeError:
        return "not UTF-8; save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return f"not usable JSON: {error}"
    if not isinstance(record, dict):
        return f"expected one JSON object a line, found {type(record).__name__}"
    return record


# Parquet


def _parquet(
    file: BinaryIO, path: str, source: TableSource, names: Sequence[str]
) -> Iterator[_RawBatch]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        own = _own_columns(source, table.schema_arrow.names, names)
        row = 0
        for batch in table.iter_batches(_ROWS, columns=[own[name] for name in names]):
            rows = list(range(row + 1, row + 1 + len(batch)))
            row += len(batch)
            columns = {name: batch.column(own[name]) for name in names}
            yield _RawBatch(rows, [None] * len(batch), columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from None
