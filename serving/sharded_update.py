"""Items of a sharded catalogue that change; see `serving.update`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from serving.export import Progress
from serving.index.auto import IndexKind
from serving.lexical import LexicalStatistics
from serving.lexical.catalog_words import CatalogWords
from serving.manifest import Manifest
from serving.sharded_export import PublishedShards, publish_shards
from serving.shards import ShardSet, shard_of
from serving.stored_items import StoredItems, stored_retriever
from serving.update import (
    ChangedItems,
    apply_changes,
    check_changes,
    check_distinct,
    check_towers,
)
from towers.errors import InputError
from towers.item_text import text_of


@dataclass(frozen=True)
class ShardsUpdate:
    """Shards that were published, and what is new in them; see `serving.update.UpdateResult`."""

    shards: PublishedShards
    added: int
    replaced: int
    removed: int
    encoded: int


def update_shards(
    shards: ShardSet,
    *,
    add: ChangedItems | None = None,
    replace: ChangedItems | None = None,
    remove: Sequence[str] = (),
    progress: Progress | None = None,
) -> ShardsUpdate:
    """Publishes the next version of all shards, with changed items; see `serving.update_items`.

    An item's id says to which shard it goes. Only new and changed texts are encoded, but every
    shard gets a new version: the version is one for all, and where words count their frequencies
    are of the whole catalogue.

    Args:
        shards: what `find_shards` found.
        add: items whose ids no shard holds; they come after all others among equal scores.
        replace: items whose ids a shard holds.
        remove: ids that a shard holds.
        progress: told about the stages ``encode items`` and ``build shards``.

    Returns:
        The published shards.

    Raises:
        InputError: see `serving.update_items`.
    """
    add, replace = add or ChangedItems(), replace or ChangedItems()
    check_distinct(add, replace, remove)
    count = len(shards.paths)
    manifests = [Manifest.read(path) for path in shards.paths]
    parts = [
        (_part(add, number, count), _part(replace, number, count), _own(remove, number, count))
        for number in range(count)
    ]
    retriever = stored_retriever(shards.paths[0])

    statistics, left, last_place, checked = [], 0, -1, False
    for path, manifest, changes in zip(shards.paths, manifests, parts, strict=True):
        items = StoredItems.read(path)
        check_changes(items, *changes)
        if items.ids and not checked:
            check_towers(retriever, manifest, items)
            checked = True
        changed, _ = apply_changes(items, *changes)
        left += len(changed.ids)
        assert items.places is not None
        last_place = max(last_place, int(items.places.max(initial=-1)))
        if manifest.lexical_weight and changed.ids:
            fields = changed.fields or {"text": [text_of(text) for text in changed.texts]}
            statistics.append(LexicalStatistics.of(CatalogWords.read(fields)))
    if not left:
        raise InputError("no item would be left: a model needs at least one")
    place_of = {item_id: last_place + 1 + row for row, item_id in enumerate(add.ids)}
    encoded = 0

    def items_of(number: int) -> StoredItems:
        nonlocal encoded
        changed, stale = apply_changes(StoredItems.read(shards.paths[number]), *parts[number])
        assert changed.places is not None
        for row in np.flatnonzero(changed.places < 0):
            changed.places[row] = place_of[changed.ids[row]]
        if len(stale):
            report = partial(progress, "encode items") if progress else None
            texts = [changed.texts[row] for row in stale]
            changed.embeddings[stale] = retriever.encode_items(texts, progress=report)
            encoded += len(stale)
        return changed

    first = manifests[0]
    published = publish_shards(
        retriever,
        shards.base,
        count,
        items_of,
        statistics=LexicalStatistics.total(statistics) if first.lexical_weight else None,
        column_kinds=first.columns,
        index=[cast(IndexKind, manifest.index_kind) for manifest in manifests],
        index_parameters=[manifest.index_parameters for manifest in manifests],
        k=first.k,
        lexical_weight=first.lexical_weight,
        run_id=first.run_id,
        follows=shards.newest,
        progress=progress,
    )
    return ShardsUpdate(published, len(add.ids), len(replace.ids), len(remove), encoded)


def _part(changed: ChangedItems, number: int, count: int) -> ChangedItems:
    """Those of changed items that go to one shard."""
    rows = [row for row, item_id in enumerate(changed.ids) if shard_of(item_id, count) == number]
    return ChangedItems(
        [changed.ids[row] for row in rows],
        [changed.texts[row] for row in rows],
        {name: [texts[row] for row in rows] for name, texts in changed.fields.items()},
        {name: [values[row] for row in rows] for name, values in changed.columns.items()},
    )


def _own(item_ids: Sequence[str], number: int, count: int) -> list[str]:
    return [item_id for item_id in item_ids if shard_of(item_id, count) == number]
