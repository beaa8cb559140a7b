"""Queries a few at a time, where each has a row as long as the catalogue."""

from __future__ import annotations

from collections.abc import Iterator

_QUERIES = 64  # by a million items of float32: 256 MB


def query_parts(count: int) -> Iterator[slice]:
    """Slices of at most 64 of `count` queries, from the first to the last."""
    for start in range(0, count, _QUERIES):
        yield slice(start, min(start + _QUERIES, count))
