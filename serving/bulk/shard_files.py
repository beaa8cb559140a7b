"""Files of ids and vectors: Parquet or TFRecord, one a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from towers.errors import InputError

Format = Literal["parquet", "tfrecord"]
FORMATS: tuple[Format, ...] = ("parquet", "tfrecord")
ID, VECTOR = "item_id", "vector"

Write = Callable[[list[str], np.ndarray], None]
"""Called with ids ``[n]`` and their vectors, float32 ``[n, d]``."""


def shard_file(shard: int, shards: int, kind: str) -> str:
    """The name of a shard's file."""
    return f"part-{shard:05}-of-{shards:05}.{kind}"


@contextmanager
def shard_writer(path: Path, kind: Format, dim: int) -> Iterator[Write]:
    """Writes a file of ids and vectors, as many at a time as `Write` is called with.

    Parquet has the columns ``item_id`` (string) and ``vector`` (fixed-size list of float32), a
    record of TFRecord is a `tf.train.Example` with features of these names.
    """
    with (_parquet_writer if kind == "parquet" else _tfrecord_writer)(path, dim) as write:
        yield write


@contextmanager
def _parquet_writer(path: Path, dim: int) -> Iterator[Write]:
    schema = pa.schema([(ID, pa.string()), (VECTOR, pa.list_(pa.float32(), dim))])
    # Vectors do not get smaller by compression, and ids are few bytes beside them.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": [ID]}
    with pa.parquet.ParquetWriter(path, schema, **options) as file:

        def write(ids: list[str], vectors: np.ndarray) -> None:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            file.write_table(pa.table([pa.array(ids, pa.string()), column], schema=schema))

        yield write


@contextmanager
def _tfrecord_writer(path: Path, dim: int) -> Iterator[Write]:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as file:

        def write(ids: list[str], vectors: np.ndarray) -> None:
            for item_id, vector in zip(ids, vectors, strict=True):
                example = tf.train.Example()
                example.features.feature[ID].bytes_list.value.append(item_id.encode())
                example.features.feature[VECTOR].float_list.value.extend(vector)
                file.write(example.SerializeToString())

        yield write


def read_shard_file(path: Path, kind: Format) -> tuple[list[str], np.ndarray]:
    """Reads a file of ids and vectors: ids ``[n]`` and float32 ``[n, d]``; d is 0 without any.

    Raises:
        InputError: the file is not there, or damaged.
    """
    try:
        return (_read_parquet if kind == "parquet" else _read_tfrecord)(path)
    except Exception as error:  # pyarrow and TensorFlow have many
        raise InputError(f"{path} cannot be read: {error}") from error


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    table = pa.parquet.read_table(path)
    column = table[VECTOR].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False)
    return table[ID].to_pylist(), vectors.reshape(len(table), column.type.list_size)


def _read_tfrecord(path: Path) -> tuple[list[str], np.ndarray]:
    import tensorflow as tf

    ids, rows = [], []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        ids.append(features[ID].bytes_list.value[0].decode())
        rows.append(np.array(features[VECTOR].float_list.value, np.float32))
    return ids, np.stack(rows) if rows else np.zeros((0, 0), np.float32)
