"""Tables in: CSV, TSV, JSON lines (each also gzip-compressed) and Parquet, told apart by file name.

Columnar throughout: no row is a Python object, except in the batch of JSON lines being parsed.
Every complaint names the file, the line as an editor numbers it, also where quoted cells span lines
(for Parquet the row, from 1), and the column.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from towers.errors import InputError
from training.columns import RAW_TEXT, TEXT, BadCell, Kind, WrongType, convert, json_text
from training.table_source import TableSource, described, did_you_mean, near_columns

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# A CSV record has to fit into one block of the parser.
_BLOCK_BYTES = 16 << 20
_JSON_BATCH_ROWS = 1 << 15


def read_table(
    path: str | os.PathLike[str],
    *,
    required: Mapping[str, Kind],
    optional: Mapping[str, Kind],
    keep_other: bool,
) -> pa.Table:
    """Reads and checks a table.

    CSV and TSV: the first row is the header, quotes are as in RFC 4180 (a quoted cell may hold
    delimiters and line ends), blank lines are skipped, and no type is guessed: `007` and `NA` are
    text. JSON lines: one object a line; a key that a line lacks has no value there. Everywhere:
    surrounding whitespace of text is dropped, an empty cell is a missing value, and a column
    without a name is ignored.

    Args:
        path: File whose name ends in one of `training.table_source.FORMATS`; behind a colon may
            follow what its columns are called, `products.csv:item_id=sku,title=name`.
        required: Columns that must be there, with a value in every row.
        optional: Columns that may be there; null where a row has no value.
        keep_other: Whether the columns not named above are kept, as text, or ignored.

    Returns:
        Table of at least one row, columns in file order, typed as `training.columns.convert` says.

    Raises:
        InputError: The file cannot be read, or is not such a table; the message says where and why.
    """
    source = TableSource.of(path)
    path, layout = source.path, source.layout
    known = {**required, **optional}
    if layout in _DELIMITERS:
        raw = _read_delimited(source, required, known, keep_other)
    elif layout == ".jsonl":
        raw = _read_json_lines(source, required, known, keep_other)
    else:
        raw = _read_parquet(source, required, known, keep_other)
    if not raw.num_rows:
        raise InputError(f"{path} has columns but no rows")
    columns = {}
    for name in raw.column_names:
        try:
            columns[name] = convert(raw.column(name), known.get(name, "text"))
        except BadCell as error:
            raise bad_cell(source, error.row, name, error.value, error.expected) from None
        except WrongType as error:
            raise InputError(f"{path}: {source.shown(name)} {error}") from None
        if name in required:
            require_values(source, name, columns[name])
    return pa.table(columns)


def require_values(
    path: str | os.PathLike[str] | TableSource, column: str, values: pa.Array
) -> None:
    """Raises `InputError` naming the first row without a value, if there is one."""
    if values.null_count:
        source = TableSource.of(path)
        row = int(pc.index(values.is_null(), True).as_py())
        more = f" (such rows: {values.null_count})" if values.null_count > 1 else ""
        raise InputError(
            f"{source.file}, {place(source, row)}: {source.shown(column)} is empty{more}; every row"
            " needs a value"
        )


def bad_cell(
    path: str | os.PathLike[str] | TableSource, row: int, column: str, value: object, expected: str
) -> InputError:
    """Returns the error for one value: file, line, column, value, and what would be right."""
    source = TableSource.of(path)
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return InputError(
        f"{source.file}, {place(source, row)}: {source.shown(column)} is {shown}, expected"
        f" {expected}"
    )


def place(path: str | os.PathLike[str] | TableSource, row: int) -> str:
    """Returns where a row starts, for people: `line 17` of a text file, `row 17` of a Parquet file.

    Reads the file again up to that row: only an error needs it.

    Args:
        path: The file that `read_table` read.
        row: Zero-based row of that table.
    """
    source = TableSource.of(path)
    path, layout = source.path, source.layout
    if layout in _DELIMITERS:
        for number, (line, _) in enumerate(_records(path, _DELIMITERS[layout])):
            if number == row + 1:  # the header is record 0
                return f"line {line}"
    elif layout == ".jsonl":
        with _open(path) as stream:
            for number, (line, _) in enumerate(_lines(stream)):
                if number == row:
                    return f"line {line}"
    return f"row {row + 1}"


def content_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of the file's bytes as they are on disk, in hexadecimal.

    Of a file with names for its columns: that of the bytes, a NUL and the names as sorted JSON.
    """
    source = TableSource.of(path)
    try:
        with open(source.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise InputError(f"cannot read {source.path}: {error.strerror}") from None
    if source.names:
        digest.update(b"\0" + json.dumps(source.names, sort_keys=True).encode())
    return digest.hexdigest()


# The names of the columns


def wanted_columns(
    source: TableSource,
    columns: Sequence[str],
    required: Mapping[str, Kind],
    known: Mapping[str, Kind],
    keep_other: bool,
) -> dict[str, str]:
    """Returns the columns to read, in file order: the name that counts to that in the file.

    Raises:
        InputError: A required column is not among the columns, one that has a name is not, or one
            is there twice.
    """
    for column in columns:
        if "\0" in column:
            raise InputError(
                f"{source.file}: NUL in column name {column!r}; save the file as UTF-8 text"
            )
    twice = [column for column, count in Counter(columns).items() if column and count > 1]
    if twice:
        raise InputError(
            f"{source.file}: column {twice[0]!r} is there {columns.count(twice[0])} times"
        )
    own = dict(zip(source.rename(columns), columns, strict=True))
    for name in required:
        if name not in own:
            unnamed = [column for column in columns if column not in source.names]
            hint = _hint(source, name, unnamed, known)
            raise InputError(f"{source.file}: no column {name!r}; {described(columns, hint)}")
    return {name: column for name, column in own.items() if name and (keep_other or name in known)}


def _hint(source: TableSource, missing: str, free: Sequence[str], known: Mapping[str, Kind]) -> str:
    """Which of the free columns may be the missing one, and what to do about it."""
    near = near_columns(missing, free, known)
    named = source.with_name(missing, near[0] if near else "COLUMN")
    if not near:
        return f". Say which one it is: {named}"
    hint = f"{did_you_mean(missing, free, known)} Rename it to {missing!r}"
    return f"{hint}, or read it so: {named}" if named else hint


# Bytes


class _Utf8(io.RawIOBase):
    """The bytes of a file, decompressed, up to the first that is not UTF-8: there it raises.

    Args:
        file: The decompressed bytes.
        path: Named in errors.
        tail: Bytes to put after the end of the file.
    """

    def __init__(self, file: BinaryIO, path: Path, tail: bytes) -> None:
        super().__init__()
        self._file = file
        self._path = path
        self._tail = tail
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self._file.read(len(buffer))
        except EOFError:
            raise InputError(f"{self._path}: the gzip file is truncated") from None
        except (OSError, zlib.error) as error:
            raise InputError(f"{self._path}: cannot be read: {error}") from None
        try:
            self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise self._wrong_encoding(error, self._offset + len(chunk)) from None
        self._offset += len(chunk)
        if not chunk:
            chunk, self._tail = self._tail[: len(buffer)], self._tail[len(buffer) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _wrong_encoding(self, error: UnicodeDecodeError, end: int) -> InputError:
        # The decoder's object is the chunk after what was left over from the chunk before.
        offset = end - len(error.object) + error.start
        byte = f"byte 0x{error.object[error.start]:02x} at byte offset {offset}"
        message = f"{self._path}: not UTF-8: {byte}"
        if offset < 2 and error.object.startswith(b"\x1f\x8b"):
            return InputError(f"{message}; it is gzip-compressed, so its name should end in .gz")
        if offset < 2 and error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return InputError(f"{message}; it looks like UTF-16: save it as UTF-8")
        return InputError(f"{message}; save the file as UTF-8")

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path, tail: bytes = b"") -> io.BufferedReader:
    try:
        if path.name.lower().endswith(".gz"):
            file: Any = gzip.open(path, "rb")  # noqa: SIM115 (_Utf8 closes it)
        else:
            file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return io.BufferedReader(_Utf8(file, path, tail), buffer_size=1 << 20)


# CSV and TSV


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each record's first line, from 1, and its cells; skips blank lines."""
    limit = csv.field_size_limit(2**31 - 1)  # a setting of the whole process: put it back
    try:
        with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as text:
            records = csv.reader(text, delimiter=delimiter)
            line = 1
            for cells in records:
                if cells:
                    yield line, cells
                line = records.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _read_delimited(
    source: TableSource, required: Mapping[str, Kind], known: Mapping[str, Kind], keep_other: bool
) -> pa.Table:
    path, delimiter = source.path, _DELIMITERS[source.layout]
    _, header = next(_records(path, delimiter), (1, []))
    if not header:
        raise InputError(f"{path} is empty")
    names = [name.strip() for name in header]
    columns = wanted_columns(source, names, required, known, keep_other)
    raw_names = [header[names.index(own)] for own in columns.values()]
    types = [TEXT if known.get(name, "text") in ("id", "text") else RAW_TEXT for name in columns]
    # Arrow does not mind a quotation mark that is never closed. A record of empty cells put after
    # the end tells: where it does not come back as it went in, the open cell has swallowed it.
    tail = "\n" + delimiter.join(['""'] * len(names)) + "\n"
    with _open(path, tail=tail.encode()) as stream:
        try:
            table = pyarrow.csv.read_csv(
                pa.PythonFile(stream, mode="r"),
                read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=raw_names,
                    column_types=dict(zip(raw_names, types, strict=True)),
                    strings_can_be_null=False,
                    check_utf8=False,  # the stream has
                ),
            )
        except pa.ArrowInvalid as error:
            raise _bad_record(path, delimiter, header, error) from None
    rows = table.num_rows - 1
    if any(column[rows].as_py() for column in table.columns):
        raise InputError(
            f"{path}, {place(path, rows)}: a quotation mark opened in this row is never closed"
        )
    return table.slice(0, rows).rename_columns(list(columns))


def _bad_record(
    path: Path, delimiter: str, header: Sequence[str], error: pa.ArrowInvalid
) -> InputError:
    """Returns the error for the first record with the wrong number of columns, or too long."""
    for line, cells in _records(path, delimiter):
        if len(cells) != len(header):
            lines = sum(cell.count("\n") for cell in cells)
            hint = f" (the row spans {lines + 1} lines: is a quote left open?)" if lines else ""
            return InputError(
                f"{path}, line {line}: expected {len(header)} columns, found {len(cells)}{hint}"
            )
        if sum(len(cell.encode()) for cell in cells) >= _BLOCK_BYTES // 2:
            return InputError(
                f"{path}, line {line}: the row is longer than {_BLOCK_BYTES // 2:,} bytes;"
                " is a quote left open?"
            )
    return InputError(f"{path}: {error}")


# JSON lines


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Yields each line's number, from 1, and its bytes; skips blank lines."""
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line := line.strip():
            yield number, line


def _read_json_lines(
    source: TableSource, required: Mapping[str, Kind], known: Mapping[str, Kind], keep_other: bool
) -> pa.Table:
    path = source.path
    batches: list[pa.Table] = []
    records: list[dict[str, Any]] = []

    def flush() -> None:
        first = len(batches) * _JSON_BATCH_ROWS
        own_names = list(dict.fromkeys(name for record in records for name in record))
        columns = {}
        for own, name in zip(own_names, source.names_of(own_names), strict=True):
            if name and (keep_other or name in known):
                try:
                    values = [record.get(own) for record in records]
                    columns[name] = json_column(values, known.get(name, "text"))
                except BadCell as error:
                    row = first + error.row
                    raise bad_cell(source, row, name, error.value, error.expected) from None
        seen.update(dict.fromkeys(own_names))
        batches.append(pa.table(columns) if columns else pa.table({"": pa.nulls(len(records))}))
        records.clear()

    seen: dict[str, None] = {}
    with _open(path) as stream:
        for number, line in _lines(stream):
            try:
                record = json.loads(line.decode())
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not valid JSON: {error.msg} at column {error.colno}"
                ) from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not usable JSON: {error}") from None
            if not isinstance(record, dict):
                raise InputError(
                    f"{path}, line {number}: expected one JSON object a line,"
                    f" found {type(record).__name__}"
                )
            records.append(record)
            if len(records) == _JSON_BATCH_ROWS:
                flush()
    if records:
        flush()
    if not batches:
        raise InputError(f"{path} is empty")
    columns = wanted_columns(source, list(seen), required, known, keep_other)
    return pa.concat_tables(batches, promote_options="default").select(list(columns))


def json_column(values: list[Any], kind: Kind) -> pa.Array:
    """Makes a raw column of JSON values: lists stay lists, everything else becomes its text."""
    try:
        if kind == "vector":
            return pa.array(values, pa.list_(pa.float32()))
        if kind == "ids":
            return pa.array(
                [ids if ids is None else _json_ids(ids) for ids in values],
                pa.large_list(RAW_TEXT),
            )
        as_text = {"id": _json_id, "text": json_text}.get(kind, _json_number)
        return pa.array(
            [value if type(value) is str else as_text(value) for value in values],
            RAW_TEXT,
        )
    except (ValueError, TypeError):
        if len(values) > 1:
            for row, value in enumerate(values):
                try:
                    json_column([value], kind)
                except BadCell as error:
                    raise BadCell(row, value, error.expected) from None
        expected = {
            "vector": "a list of numbers",
            "ids": "a list of ids, each a string or an integer",
            "id": "a string or an integer",
        }
        raise BadCell(0, values[0], expected.get(kind, "text that UTF-8 can hold")) from None


def _json_number(value: Any) -> str | None:
    return json.dumps(value) if type(value) is float else json_text(value)


def _json_id(value: Any) -> str | None:
    if value is None or type(value) is int:
        return json_text(value)
    raise TypeError


def _json_ids(values: Any) -> list[str | None]:
    if type(values) is not list:
        raise TypeError
    return [value if type(value) is str else _json_id(value) for value in values]


# Parquet


def _read_parquet(
    source: TableSource, required: Mapping[str, Kind], known: Mapping[str, Kind], keep_other: bool
) -> pa.Table:
    path = source.path
    try:
        if not os.stat(path).st_size:
            raise InputError(f"{path} is empty")
        with open(path, "rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            columns = wanted_columns(source, names, required, known, keep_other)
            own = list(columns.values())
            return file.read(columns=own).select(own).rename_columns(list(columns))
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from None
    except OSError as error:
        reason = error.strerror or f"not a readable Parquet file: {error}"
        raise InputError(f"cannot read {path}: {reason}") from None
