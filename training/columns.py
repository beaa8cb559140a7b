"""Typed columns from raw ones: what an id, a price, a grade, a timestamp or a vector may look like.

A raw column is text (CSV, TSV), text or lists (JSONL), or of any Arrow type (Parquet). `convert`
brings all of them to one type a kind, with repeated text stored once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.plain_text import plain_text

Kind = Literal["id", "ids", "text", "price", "weight", "grade", "rating", "timestamp", "vector"]

RAW_TEXT = pa.large_string()
TEXT = pa.dictionary(pa.int32(), RAW_TEXT)

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).smallest_subnormal)

# What is expected, the test on float64 values, the resulting type.
_NUMBERS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], pa.DataType]] = {
    "price": (
        "a number, 0 or more, such as 1234.5 (to keep it as text, give the column another name)",
        lambda x: x >= 0,
        pa.float64(),
    ),
    "weight": (
        "a number above 0",
        lambda x: (x >= _FLOAT32_TINY) & (x <= _FLOAT32_MAX),
        pa.float32(),
    ),
    "grade": (
        "a whole number, 0 or more",
        lambda x: (x >= 0) & (x < 2**31) & (x == np.floor(x)),
        pa.int32(),
    ),
    "rating": ("a number from 1 to 5", lambda x: (x >= 1) & (x <= 5), pa.float32()),
}

_TO_JSON = json.JSONEncoder(ensure_ascii=False, default=str).encode

_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
_ZONE = r"\d:\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"
_TIMESTAMP = "whole seconds since 1970, or ISO 8601 such as 2024-05-01T12:30:00Z"
# Seconds of the year 5138, milliseconds of 1973: what is above is not seconds.
_LATEST_SECOND = 1e11


class BadCell(ValueError):
    """A value that its kind does not allow.

    Attributes:
        row: Zero-based row of the column.
        value: The value as it was read.
        expected: What would be right.
    """

    def __init__(self, row: int, value: object, expected: str) -> None:
        super().__init__(f"row {row} is {value!r}, expected {expected}")
        self.row = row
        self.value = value
        self.expected = expected


class WrongType(ValueError):
    """A column whose type its kind does not allow; the message says which would be right."""


def convert(column: pa.ChunkedArray, kind: Kind) -> pa.Array:
    """Converts a raw column to the one type of its kind.

    Text loses surrounding whitespace; what is then empty is null, in every kind. The kind `text`
    also loses its markup (`training.plain_text`); lists of texts or numbers are joined by commas.

    Args:
        column: Raw column of at least one row.
        kind: What the column holds.

    Returns:
        id, text: `dictionary<int32, large_string>`; price: `float64`; weight, rating: `float32`;
        grade: `int32`; timestamp: `timestamp[s]` (UTC); ids: `large_list<large_string>`; vector:
        `fixed_size_list<float32>[width]`. One array, as long as the column.

    Raises:
        BadCell: A value is not of this kind.
        WrongType: No value of this column's type is of this kind.
    """
    if pa.types.is_dictionary(column.type) and not _is_text(column.type.value_type):
        column = column.cast(column.type.value_type)
    if kind == "timestamp":
        return _by_chunk(column, _timestamp)
    if kind in _NUMBERS:
        return _by_chunk(column, lambda chunk: _number(chunk, kind))
    if kind == "vector":
        return _vector(column)
    if kind == "ids":
        return _ids(column)
    return _text(column, kind)


def _by_chunk(column: pa.ChunkedArray, parse: Callable[[pa.Array], pa.Array]) -> pa.Array:
    parts = []
    for chunk in column.chunks:
        try:
            parts.append(parse(chunk))
        except BadCell as error:
            row = error.row + sum(map(len, parts))
            raise BadCell(row, error.value, error.expected) from None
    return pa.concat_arrays(parts)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return (
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_null(type_)
    )


def _is_list(type_: pa.DataType) -> bool:
    return (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    )


def _first(mask: pa.Array | np.ndarray) -> int:
    """Returns the row of the first true value, or -1."""
    return int(pc.index(pa.array(mask), True).as_py())


def _trimmed(texts: pa.Array) -> pa.Array:
    """Drops surrounding whitespace; what is then empty is null."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:  # only from Parquet, whose strings Arrow reads unchecked
        for row, text in enumerate(texts):
            try:
                text.as_py()
            except UnicodeDecodeError as error:
                raise BadCell(row, error.object, "text in UTF-8") from None
        raise
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, RAW_TEXT), trimmed)


def _encode(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Encodes trimmed text; distinct values are in order of first appearance."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(TEXT).unify_dictionaries()
    else:
        column = column.cast(RAW_TEXT).dictionary_encode()
    raw = column.combine_chunks()
    try:
        distinct = _trimmed(raw.dictionary).dictionary_encode()  # trimming can make two one
    except BadCell as error:
        raise BadCell(_row_of_value(raw, error.row), error.value, error.expected) from None
    return pa.DictionaryArray.from_arrays(distinct.indices.take(raw.indices), distinct.dictionary)


def _row_of_value(encoded: pa.DictionaryArray, value: int) -> int:
    return int(pc.index(encoded.indices, pa.scalar(value, pa.int32())).as_py())


def _text(column: pa.ChunkedArray, kind: Kind) -> pa.DictionaryArray:
    type_ = column.type
    if kind == "id" and not (_is_text(type_) or pa.types.is_integer(type_)):
        raise WrongType(f"has type {type_}; an id is text or an integer")
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        raise WrongType(f"has type {type_}; text is stored as type string (UTF-8)")
    if pa.types.is_nested(type_):
        # No reason to refuse a catalogue for an attribute nobody may name.
        column = pa.chunked_array([pa.array([json_text(v.as_py()) for v in column], RAW_TEXT)])
    elif not _is_text(type_):
        if pa.types.is_floating(type_):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, type_), column)
        column = column.cast(RAW_TEXT)
    encoded = _encode(column)
    if kind == "text":
        encoded = _without_markup(encoded)
    values = encoded.dictionary
    bad = _first(pc.match_substring(values, "\0"))
    if bad >= 0:
        row = _row_of_value(encoded, bad)
        raise BadCell(row, values[bad].as_py(), "text without NUL characters")
    return encoded


def json_text(value: Any) -> str | None:
    """A value of JSON as text: lists joined by commas, objects as JSON, None for null and NaN."""
    if type(value) is str:
        return value
    if value is None or value != value:  # NaN, as pandas writes a missing value
        return None
    if isinstance(value, list) and not any(isinstance(one, dict) for one in value):
        texts = (json_text(one) for one in value)
        return ", ".join(text.strip() for text in texts if text and not text.isspace())
    return str(value) if type(value) is int else _TO_JSON(value)


def _without_markup(encoded: pa.DictionaryArray) -> pa.DictionaryArray:
    """Takes markup out of the distinct values; those that are then equal become one."""
    values = encoded.dictionary
    marked = pc.match_substring_regex(values, "[<&]")
    if _first(marked) < 0:
        return encoded
    plain = [plain_text(text.as_py()) if text.is_valid else None for text in values.filter(marked)]
    distinct = _trimmed(pc.replace_with_mask(values, marked, pa.array(plain, RAW_TEXT)))
    distinct = distinct.dictionary_encode()
    return pa.DictionaryArray.from_arrays(
        distinct.indices.take(encoded.indices), distinct.dictionary
    )


def _floats(texts: pa.Array) -> pa.Array:
    """Parses trimmed `large_string` to `float64`; what is no decimal number becomes NaN."""
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        plain = pc.match_substring_regex(texts, _NUMBER)
        return pc.if_else(plain, texts, "NaN").cast(pa.float64())


def _number(column: pa.Array, kind: str) -> pa.Array:
    expected, is_right, type_ = _NUMBERS[kind]
    if _is_text(column.type):
        numbers = _floats(_trimmed(column.cast(RAW_TEXT)))
    elif (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_decimal(column.type)
    ):
        numbers = column.cast(pa.float64(), safe=False)
    else:
        raise WrongType(f"has type {column.type}; each value is {expected}")
    values = numbers.fill_null(float("nan")).to_numpy()  # [rows]
    missing = numbers.is_null().to_numpy(zero_copy_only=False)
    bad = _first(~(is_right(values) & np.isfinite(values)) & ~missing)
    if bad >= 0:
        raise BadCell(bad, column[bad].as_py(), expected)
    return pa.array(np.where(missing, 0, values), mask=missing).cast(type_, safe=False)


def _timestamp(column: pa.Array) -> pa.Array:
    type_ = column.type
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        whole = column.cast(pa.timestamp("s", getattr(type_, "tz", None)), safe=False)
        return whole.cast(pa.int64()).cast(pa.timestamp("s"))
    if _is_text(type_):
        texts = _trimmed(column.cast(RAW_TEXT))
        seconds = _floats(texts)
        is_iso = pc.is_nan(seconds)
        iso = _iso_seconds(texts.filter(is_iso), np.flatnonzero(is_iso.fill_null(False)))
        seconds = pc.replace_with_mask(seconds, is_iso.fill_null(False), iso)
    elif pa.types.is_integer(type_) or pa.types.is_floating(type_):
        seconds = column.cast(pa.float64(), safe=False)
    else:
        raise WrongType(f"has type {type_}; each value is {_TIMESTAMP}")
    bad = _first(pc.invert(pc.less_equal(pc.abs(seconds), _LATEST_SECOND)))
    if bad >= 0:
        raise BadCell(bad, column[bad].as_py(), _TIMESTAMP)
    return pc.floor(seconds).cast(pa.int64()).cast(pa.timestamp("s"))


def _iso_seconds(texts: pa.Array, rows: np.ndarray) -> pa.Array:
    """Parses ISO 8601 texts to `float64` seconds; without a zone they are UTC.

    Args:
        texts: The texts, none of them null.
        rows: Row of each text, for the error.
    """

    def parse(values: pa.Array) -> pa.Array:
        whole = pc.replace_substring_regex(values, r"(:\d\d)[.,]\d+", r"\1")
        zoned = pc.match_substring_regex(whole, _ZONE)
        local = pc.if_else(zoned, "1970-01-01", whole).cast(pa.timestamp("s"))
        absolute = pc.if_else(zoned, whole, "1970-01-01T00:00:00Z").cast(pa.timestamp("s", "UTC"))
        seconds = pc.add(local.cast(pa.int64()), absolute.cast(pa.int64()))
        return seconds.cast(pa.float64())

    try:
        return parse(texts)
    except pa.ArrowInvalid:
        low, high = 0, len(texts)  # texts[:low] can be parsed, texts[:high] cannot
        while high - low > 1:
            middle = (low + high) // 2
            try:
                parse(texts[low:middle])
                low = middle
            except pa.ArrowInvalid:
                high = middle
        raise BadCell(int(rows[low]), texts[low].as_py(), _TIMESTAMP) from None


def _vector(column: pa.ChunkedArray) -> pa.Array:
    if _is_text(column.type):
        column = pa.chunked_array([_parsed_vectors(_encode(column))])
    numeric = _is_list(column.type) and (
        pa.types.is_integer(column.type.value_type) or pa.types.is_floating(column.type.value_type)
    )
    if not numeric:
        raise WrongType(f"has type {column.type}; each value is a list of numbers")
    lists = column.cast(pa.large_list(pa.float32()), safe=False).combine_chunks()
    lengths = pc.list_value_length(lists)
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    width = int(lengths.drop_null()[0].as_py()) if present.any() else 1
    bad = _first(pc.or_(pc.not_equal(lengths, width), pc.equal(lengths, 0)))
    if bad >= 0:
        found = f"a list of {lengths[bad].as_py()}"
        raise BadCell(bad, found, f"a list of {max(width, 1)} numbers, as in the rows before it")
    flat = lists.flatten().fill_null(float("nan")).to_numpy(zero_copy_only=False)
    vectors = np.zeros((len(lists), width), np.float32)  # [rows, width]
    vectors[present] = flat.reshape(-1, width)
    bad = _first(~np.isfinite(vectors).all(axis=1))
    if bad >= 0:
        raise BadCell(bad, column[bad].as_py(), "a list of finite float32 numbers")
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.ravel()), width, mask=pa.array(~present)
    )


def _parsed_vectors(encoded: pa.DictionaryArray) -> pa.Array:
    type_ = pa.list_(pa.float32())
    vectors = []
    for row, text in enumerate(encoded):
        try:
            vectors.append(pa.array([json.loads(text.as_py()) if text.is_valid else None], type_))
        except (ValueError, TypeError):
            expected = "a list of numbers such as [0.1, -0.2]"
            raise BadCell(row, text.as_py(), expected) from None
    return pa.concat_arrays(vectors)


def _ids(column: pa.ChunkedArray) -> pa.Array:
    type_ = column.type
    if not _is_list(type_):
        raise WrongType(f"has type {type_}; each value is a list of ids")
    if not (_is_text(type_.value_type) or pa.types.is_integer(type_.value_type)):
        raise WrongType(f"has type {type_}; an id is text or an integer")
    lists = column.cast(pa.large_list(RAW_TEXT)).combine_chunks()
    ids = pc.utf8_trim_whitespace(lists.flatten())
    bad = _first(pc.fill_null(pc.equal(ids, ""), True))
    if bad >= 0:
        row = int(pc.list_parent_indices(lists)[bad].as_py())
        raise BadCell(row, column[row].as_py(), "a list of ids, none of them empty")
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy())])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), ids, mask=lists.is_null())
