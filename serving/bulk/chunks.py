"""Items on their way from the catalogue to shards: files whose items are sorted by shard.

One file holds as many record batches as there are shards, batch s the items of shard s, so that a
shard reads its own items from each file, and a writer has one file open, however many shards there
are. It takes the place of Beam's GroupByKey, with which the embedded runner would hold the whole
catalogue in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from serving.bulk.files import new_file, open_file
from serving.shards import shard_of

# What a chunk holds at most, which is what a worker keeps in memory of it.
_ITEMS = 1 << 17
_TEXT_BYTES = 32 << 20

_SCHEMA = pa.schema(
    [
        ("file", pa.int32()),
        ("row", pa.int64()),
        ("line", pa.int64()),
        ("item_id", pa.string()),
        ("text", pa.string()),
    ]
)


@dataclass(frozen=True)
class Items:
    """Some items and where they come from; fields of equal length.

    Attributes:
        file: which catalogue file, from 0, for each item.
        row: its row there, from 1.
        line: its line there, None in a Parquet file.
        ids: item ids.
        texts: item texts.
    """

    file: Sequence[int]
    row: Sequence[int]
    line: Sequence[int | None]
    ids: Sequence[str]
    texts: Sequence[str]


class ChunkWriter:
    """Collects items and writes them as chunks.

    Args:
        prefix: of the paths of the chunks; they sort in the order they are written in.
        shards: the number of shards.
    """

    def __init__(self, prefix: str, shards: int) -> None:
        self._prefix, self._shards = prefix, shards
        self._parts: list[pa.RecordBatch] = []
        self._items = self._bytes = self._written = 0

    def add(self, items: Items) -> str | None:
        """Takes items in; returns the path of the chunk that this has filled."""
        columns = (items.file, items.row, items.line, items.ids, items.texts)
        arrays = [pa.array(x, t.type) for x, t in zip(columns, _SCHEMA, strict=True)]
        part = pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)
        self._parts.append(part)
        self._items += part.num_rows
        self._bytes += part.nbytes
        return self.flush() if self._items >= _ITEMS or self._bytes >= _TEXT_BYTES else None

    def flush(self) -> str | None:
        """Writes what has been taken in; returns the path, or None where there is nothing."""
        if not self._parts:
            return None
        items = pa.Table.from_batches(self._parts)
        shards = np.array([shard_of(x, self._shards) for x in items["item_id"].to_pylist()])
        order = np.argsort(shards, kind="stable")
        bounds = np.searchsorted(shards[order], np.arange(self._shards + 1))
        sorted_items = items.take(order).combine_chunks().to_batches()[0]
        path = f"{self._prefix}-{self._written:06}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with new_file(path) as local, pa.ipc.new_file(local, _SCHEMA, options=options) as file:
            for start, stop in itertools.pairwise(bounds):
                file.write_batch(sorted_items.slice(start, stop - start))
        self._parts, self._items, self._bytes = [], 0, 0
        self._written += 1
        return path


def read_shard(chunks: Sequence[str], shard: int) -> Iterator[Items]:
    """Reads the items of a shard from all chunks, in order; empty parts are passed over."""
    for path in chunks:
        with open_file(path) as file, pa.ipc.open_file(pa.PythonFile(file, "r")) as reader:
            batch = reader.get_batch(shard)
            if batch.num_rows:
                yield Items(*(column.to_pylist() for column in batch.columns))
