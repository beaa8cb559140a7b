"""Export in shards: a catalogue that does not fit one index becomes several models.

Each shard is a model like any other, which an unmodified TensorFlow Serving can load. What scores
depend on beside the item itself is counted over the whole catalogue first: the words' frequencies,
the lengths of fields, the vocabulary that misspelt words are corrected by. `serving.fan_out` asks
all shards and merges what they answer into what one index would have answered.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.export import (
    DEFAULT_K,
    Progress,
    build_version,
    check_items,
    checked_index,
)
from serving.index.auto import IndexKind
from serving.item_columns import ItemColumns
from serving.lexical import LexicalStatistics
from serving.lexical.catalog_words import CatalogWords
from serving.manifest import Manifest
from serving.shards import (
    Shard,
    check_shard_base,
    check_shard_count,
    shard_folders,
    shard_of,
    write_config,
)
from serving.stored_items import Column, StoredItems
from serving.versions import new_versions
from towers.errors import InputError
from towers.fingerprint import fingerprint
from towers.item_text import text_of
from towers.recommender import Recommender
from towers.retriever import Retriever

_TAKEN = ("embedding", "best", "places", "shard", "export_id")

Encode = Callable[[list[str]], np.ndarray]
"""From item texts to embeddings, float32 ``[len(texts), d]``."""


@dataclass(frozen=True)
class PublishedShards:
    """All shards of an export.

    Attributes:
        base: the folder that holds them.
        version: their number.
        paths: the version's folder in each shard, in order.
        manifests: the manifest of each.
        config: `models.config`, for a server that serves all of them.
    """

    base: Path
    version: int
    paths: list[Path]
    manifests: list[Manifest]
    config: Path

    @property
    def export_id(self) -> str:
        """What tells answers of these shards from those of another export."""
        return self.manifests[0].shard["export_id"]

    @property
    def item_count(self) -> int:
        """Number of items in all shards."""
        return sum(manifest.item_count for manifest in self.manifests)


def export_shards(
    retriever: Retriever,
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    output: str | Path,
    *,
    shards: int,
    index: IndexKind = "auto",
    k: int = DEFAULT_K,
    item_embeddings: np.ndarray | Encode | None = None,
    sample_queries: Sequence[str] | None = None,
    lexical_weight: float = 0.0,
    lexical_fields: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Column] | None = None,
    recommender: Recommender | None = None,
    stock_server: bool = False,
    run_id: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> PublishedShards:
    """Publishes a retriever with its catalogue as the next version of every shard in `output`.

    Shards are built one after the other: embeddings, index and graph of one are held at a time. All
    appear together when the last one is complete, or none.

    Args:
        retriever: see `serving.export.export_retriever`, as for all that is not named here.
        item_ids: an item's id decides on its shard; see `serving.shards.shard_of`.
        item_texts: see there.
        output: the folder that holds the shards, `saved_models/NAME`.
        shards: how many. With another number than before, the new ones lie beside the old ones,
            which serve on until servers and clients are told.
        index: the kind of each shard's index; ``auto`` chooses by the size of the shard.
        k: see there.
        item_embeddings: float ``[N, d]``, of which each shard takes its rows (a memory map will
            do), or a function that encodes the texts of a shard; the retriever's own if None.
        sample_queries: see there.
        lexical_weight: see there.
        lexical_fields: see there.
        columns: see there.
        recommender: refused: what goes on from a history is not to be had from shards.
        stock_server: see there.
        run_id: see there.
        seed: see there.
        progress: told about the stages ``encode items`` and ``build shards``.

    Returns:
        The published shards.

    Raises:
        InputError: what `export_retriever` refuses, a number of shards that cannot be, an `output`
            that holds versions of a model without shards, or a recommender.
    """
    output = Path(output).resolve()
    check_shard_base(output)
    check_shard_count(shards)
    if recommender is not None:
        raise InputError(
            "a run that was trained with --histories cannot be exported in shards: what goes on "
            "from a history takes all items in one index. Export it without --shards, or train "
            "without --histories"
        )
    index = checked_index(index, k, lexical_weight)
    given = item_embeddings if isinstance(item_embeddings, np.ndarray) else None
    check_items(retriever, item_ids, item_texts, given)
    kinds = ItemColumns(columns, len(item_ids)).kinds if columns else {}
    if taken := set(kinds) & set(_TAKEN):
        raise InputError(
            f"a column of shards cannot be called {sorted(taken)[0]!r}: {', '.join(_TAKEN)} are "
            "names of their own inputs and outputs"
        )
    retriever = retriever.as_float32()
    statistics = None
    if lexical_weight:
        fields = lexical_fields or {"text": [text_of(text) for text in item_texts]}
        statistics = LexicalStatistics.of(CatalogWords.read(fields))

    report = progress or (lambda stage, done, total: None)
    encoded = 0

    def encode(rows: np.ndarray, texts: list[str]) -> np.ndarray:
        nonlocal encoded
        before, encoded = encoded, encoded + len(texts)
        if isinstance(item_embeddings, np.ndarray):
            return np.asarray(item_embeddings[rows], np.float32)
        if item_embeddings is not None:
            return item_embeddings(texts)
        return retriever.encode_items(
            texts,
            progress=lambda done, total: report("encode items", before + done, len(item_ids)),
        )

    of_item = np.array([shard_of(item_id, shards) for item_id in item_ids])

    def items_of(number: int) -> StoredItems:
        places = np.flatnonzero(of_item == number)
        rows = places.tolist()
        texts = [item_texts[row] for row in rows]
        return StoredItems(
            [item_ids[row] for row in rows],
            texts,
            encode(places, texts) if texts else np.zeros((0, retriever.embedding_dim), np.float32),
            _rows_of(lexical_fields, rows),
            _rows_of(columns, rows),
            places=places.astype(np.int32),
        )

    return publish_shards(
        retriever,
        output,
        shards,
        items_of,
        statistics=statistics,
        column_kinds=kinds,
        index=index,
        k=k,
        sample_queries=sample_queries,
        lexical_weight=lexical_weight,
        stock_server=stock_server,
        run_id=run_id,
        seed=seed,
        progress=progress,
    )


def publish_shards(
    retriever: Retriever,
    base: Path,
    count: int,
    items_of: Callable[[int], StoredItems],
    *,
    statistics: LexicalStatistics | None,
    column_kinds: Mapping[str, str],
    index: IndexKind | Sequence[IndexKind],
    k: int,
    lexical_weight: float,
    index_parameters: Sequence[Mapping[str, int]] | None = None,
    sample_queries: Sequence[str] | None = None,
    stock_server: bool = False,
    run_id: str = "",
    follows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PublishedShards:
    """Builds and publishes all shards of a catalogue, one after the other.

    Args:
        retriever: the towers, in float32.
        base: the folder that holds the shards.
        count: number of shards.
        items_of: from a shard's number to its items, in the order of their places.
        statistics: of the words of all shards; None where words do not count.
        column_kinds: of the columns of all shards.
        index: the kind of index, of all shards or of each.
        k: see `export_shards`.
        lexical_weight: see `export_shards`.
        index_parameters: of each shard's index, as it was built before.
        sample_queries: see `export_shards`.
        stock_server: see `export_shards`.
        run_id: see `export_shards`.
        follows: the highest version of any shard, if nobody is to publish meanwhile.
        seed: see `export_shards`.
        progress: told about the stage ``build shards``.

    Returns:
        The published shards.

    Raises:
        InputError: see `serving.export.build_version` and `new_versions`.
    """
    report = progress or (lambda stage, done, total: None)
    export_id = _export_id(retriever, count, k, lexical_weight, statistics, column_kinds)
    folders = shard_folders(base, count)
    missing = [folder for folder in folders if not folder.exists()]
    manifests = []
    try:
        with new_versions(folders, follows=follows) as drafts:
            for number, (draft, folder) in enumerate(zip(drafts, folders, strict=True)):
                report("build shards", number, count)
                items = items_of(number)
                assert items.places is not None
                built = build_version(
                    retriever,
                    items,
                    index=index if isinstance(index, str) else index[number],
                    index_parameters=index_parameters[number] if index_parameters else None,
                    k=k,
                    sample_queries=sample_queries,
                    lexical_weight=lexical_weight,
                    run_id=run_id,
                    seed=seed,
                    shard=Shard(number, count, export_id, items.places, statistics, column_kinds),
                )
                manifests.append(built.write(draft.path, folder.name, stock_server=stock_server))
                del built, items
                gc.collect()  # graphs hold themselves: or two shards would be there at a time
            report("build shards", count, count)
    finally:
        for folder in missing:  # those that nothing came of
            with suppress(OSError):
                folder.rmdir()
    assert drafts[0].version is not None
    config = write_config(base, count)
    return PublishedShards(
        base, drafts[0].version, [draft.path for draft in drafts], manifests, config
    )


def _export_id(
    retriever: Retriever,
    count: int,
    k: int,
    lexical_weight: float,
    statistics: LexicalStatistics | None,
    column_kinds: Mapping[str, str],
) -> str:
    """A fingerprint of all that has to be the same for answers to be merged."""
    text = retriever.text
    query_tower = fingerprint(
        retriever.model.query_tower, retriever.tokenizer, text.query_prefix, text.query_max_length
    )
    words = statistics.digest() if statistics else ""
    columns = sorted(column_kinds.items())
    whole = (retriever.fingerprint(), query_tower, count, k, lexical_weight, words, columns)
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:16]


def _rows_of(columns: Mapping[str, Sequence] | None, rows: list[int]) -> dict[str, list]:
    return {name: [values[row] for row in rows] for name, values in (columns or {}).items()}
