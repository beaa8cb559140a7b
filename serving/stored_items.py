"""What an export keeps of its catalogue and encoder, so that items can change without either file.

It lies in `assets.extra/towers/` of a version, which TensorFlow Serving does not look into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from towers.errors import InputError
from towers.recommender import Recommender
from towers.retriever import Retriever

Column = Sequence[str | float | None]
"""One value for each item: all texts, or all numbers; None where an item has none."""

STORE = Path("assets.extra", "towers")
_TABLE = "items.parquet"
_EMBEDDINGS = "item_embeddings.npy"
_RETRIEVER = "retriever"
_RECOMMENDER = "recommender"
_ID, _TEXT, _PLACE = "item_id", "item_text", "place"
_FIELD, _COLUMN = "field ", "column "


@dataclass(frozen=True)
class StoredItems:
    """Items of one version, in the order of the index's rows.

    Attributes:
        ids: item ids, ``[N]``.
        texts: item texts, the template filled in.
        fields: lexical field name to its text for each item.
        columns: name of a column for filters and results to its values.
        embeddings: float32 ``[N, d]``, of the texts.
        recommender: what was learned from histories; None without.
        places: of a shard's items in the whole catalogue, int32 ``[N]``; None without shards.
    """

    ids: list[str]
    texts: list[str]
    embeddings: np.ndarray
    fields: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, list[str | float | None]] = field(default_factory=dict)
    recommender: Recommender | None = None
    places: np.ndarray | None = None

    def write(self, version: Path, retriever: Retriever) -> None:
        """Writes the items, and the towers that encode further ones, into a version's folder."""
        folder = version / STORE
        folder.mkdir(parents=True)
        table = {_ID: pa.array(self.ids, pa.large_string())}
        table[_TEXT] = pa.array(self.texts, pa.large_string())
        if self.places is not None:
            table[_PLACE] = pa.array(self.places, pa.int32())
        for prefix, columns in ((_FIELD, self.fields), (_COLUMN, self.columns)):
            for name, values in columns.items():
                kind = pa.float64() if is_number(values) else pa.large_string()
                table[prefix + name] = pa.array(values, kind)
        pq.write_table(pa.table(table), folder / _TABLE, compression="zstd")
        np.save(folder / _EMBEDDINGS, np.ascontiguousarray(self.embeddings, np.float32))
        retriever.save(folder / _RETRIEVER)
        if self.recommender is not None:
            self.recommender.save(folder / _RECOMMENDER)

    @classmethod
    def read(cls, version: Path) -> StoredItems:
        """Reads the items of a version; its embeddings stay on the disk until they are used.

        Raises:
            InputError: the version holds none, or a file is damaged.
        """
        folder = _store(version)
        try:
            table = pq.read_table(folder / _TABLE)
            embeddings = np.load(folder / _EMBEDDINGS, mmap_mode="r")
            texts = {name: table.column(name).to_pylist() for name in table.column_names}
            ids = texts[_ID]
            if embeddings.ndim != 2 or len(embeddings) != len(ids):
                raise ValueError(f"{len(ids)} items and embeddings {embeddings.shape}")
        except (OSError, EOFError, ValueError, KeyError, pa.ArrowException) as error:
            raise InputError(f"the items kept in {folder} are damaged: {error}") from error
        recommender = None
        if (folder / _RECOMMENDER).is_dir():
            recommender = Recommender.load(folder / _RECOMMENDER)
        fields, columns = _named(texts, _FIELD), _named(texts, _COLUMN)
        places = np.array(texts[_PLACE], np.int32) if _PLACE in texts else None
        return cls(ids, texts[_TEXT], embeddings, fields, columns, recommender, places)


def stored_retriever(version: Path) -> Retriever:
    """The towers of a version, in float32.

    Raises:
        InputError: the version holds none, or a file is damaged.
    """
    return Retriever.load(_store(version) / _RETRIEVER)


def is_number(values: Iterable[str | float | None]) -> bool:
    """Whether a column holds numbers: one without any value holds text.

    Raises:
        InputError: it holds both.
    """
    kinds = {isinstance(value, str) for value in values if value is not None}
    if len(kinds) > 1:
        raise InputError("a column must hold texts or numbers, and this one holds both")
    return kinds == {False}


def _named(columns: Mapping[str, list], prefix: str) -> dict[str, list]:
    return {
        name.removeprefix(prefix): values
        for name, values in columns.items()
        if name.startswith(prefix)
    }


def _store(version: Path) -> Path:
    folder = version / STORE
    if not folder.is_dir():
        raise InputError(
            f"{version} does not keep its items (no {STORE}): it was exported by an earlier "
            "release, or by something else. Export it again with `towers export`."
        )
    return folder
