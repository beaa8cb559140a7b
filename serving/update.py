"""Items that change: a new version from the newest one, without training or encoding it all again.

Only new and changed item texts are encoded, by the towers that the version keeps; the embeddings of
all other items are taken from it. The search structures are built again: they are quick to build,
and one that is patched for months drifts from what was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from serving.export import Progress, export_retriever
from serving.index.auto import IndexKind
from serving.manifest import Manifest
from serving.stored_items import Column, StoredItems, stored_retriever
from serving.versions import existing_version
from towers.errors import InputError
from towers.retriever import Retriever

_CHECKED = 8  # unchanged items that are encoded again, to see that vectors still fit the towers
_LEAST_COSINE = 0.995  # bfloat16 moves a vector by 1e-4 (docs/benchmarks.md)


@dataclass(frozen=True)
class ChangedItems:
    """Items to add or to put in the place of others.

    Attributes:
        ids: item ids, distinct.
        texts: item texts, the template filled in, in the same order.
        fields: lexical field name to its texts: the fields of the export.
        columns: name to values: the columns of the export.
    """

    ids: Sequence[str] = ()
    texts: Sequence[str] = ()
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateResult:
    """A published version and what is new in it.

    Attributes:
        path: its folder.
        version: its number.
        manifest: its manifest.
        added: number of items that were not there before.
        replaced: number of items that were, and had something changed.
        removed: number of items that are gone.
        encoded: number of texts that had to be encoded.
    """

    path: Path
    version: int
    manifest: Manifest
    added: int
    replaced: int
    removed: int
    encoded: int


def update_items(
    base: str | Path,
    *,
    add: ChangedItems | None = None,
    replace: ChangedItems | None = None,
    remove: Sequence[str] = (),
    progress: Progress | None = None,
) -> UpdateResult:
    """Publishes the newest version of a model with changed items as its next version.

    Replaced items keep their row, and so their place among equal scores; added ones come last. All
    else stays as exported: towers, kind of index, k, lexical weight, columns. Of two updates at the
    same time, or an update and an export, one is refused: neither undoes the other.

    Args:
        base: the model's folder, `saved_models/NAME`.
        add: items whose ids the version does not hold.
        replace: items whose ids it holds. One with the same text keeps its embedding.
        remove: ids that it holds.
        progress: told about the stages ``encode items``, ``build index`` and ``write version``.

    Returns:
        The published version.

    Raises:
        InputError: there is no version or it does not keep its items; an id to add is there, one to
            replace or remove is not, or one is named twice; fields or columns are not those of the
            export; nothing would change, or nothing would be left; the towers are not those that
            made the embeddings; another version was published meanwhile.
    """
    version, path = existing_version(base)
    manifest, items = Manifest.read(path), StoredItems.read(path)
    manifest.check_whole(path)
    add, replace = add or ChangedItems(), replace or ChangedItems()
    check_distinct(add, replace, remove)
    check_changes(items, add, replace, remove)
    if len(remove) == len(items.ids) and not add.ids:
        raise InputError("no item would be left: a model needs at least one")
    retriever = stored_retriever(path)
    check_towers(retriever, manifest, items)

    changed, stale = apply_changes(items, add, replace, remove)
    if len(stale):
        report = progress or (lambda stage, done, total: None)
        changed.embeddings[stale] = retriever.encode_items(
            [changed.texts[row] for row in stale],
            progress=lambda done, total: report("encode items", done, total),
        )
    published = export_retriever(
        retriever,
        changed.ids,
        changed.texts,
        base,
        index=cast(IndexKind, manifest.index_kind),
        index_parameters=manifest.index_parameters,
        k=manifest.k,
        item_embeddings=changed.embeddings,
        lexical_weight=manifest.lexical_weight,
        lexical_fields=changed.fields or None,
        columns=changed.columns,
        recommender=changed.recommender,
        run_id=manifest.run_id,
        follows=version,
        progress=progress,
    )
    return UpdateResult(
        published.path,
        published.version,
        published.manifest,
        added=len(add.ids),
        replaced=len(replace.ids),
        removed=len(remove),
        encoded=len(stale),
    )


def apply_changes(
    items: StoredItems, add: ChangedItems, replace: ChangedItems, remove: Sequence[str]
) -> tuple[StoredItems, np.ndarray]:
    """The changed items, and the rows whose embeddings are still to be made.

    The place of an added item in the catalogue is -1, for the caller to say.
    """
    row_of = {item_id: row for row, item_id in enumerate(items.ids)}
    rows = [row_of[item_id] for item_id in replace.ids]
    gone = [row_of[item_id] for item_id in remove]
    count, ends = len(items.ids), len(items.ids) + len(rows)

    # All items there are, old, replacing and added, one after the other; of which these are taken.
    source = np.arange(count)
    source[rows] = np.arange(count, ends)
    source = np.concatenate([np.delete(source, gone), ends + np.arange(len(add.ids))])

    def taken(old: Sequence[Any], replacing: Sequence[Any], added: Sequence[Any]) -> list[Any]:
        pool = [*old, *replacing, *added]
        return [pool[place] for place in source]

    def all_taken(name: str) -> dict[str, list[Any]]:
        old, replacing, added = (getattr(part, name) for part in (items, replace, add))
        return {
            key: taken(values, replacing.get(key, ()), added.get(key, ()))
            for key, values in old.items()
        }

    texts = [*items.texts, *replace.texts, *add.texts]
    before = np.concatenate([np.arange(count), rows, np.full(len(add.ids), -1)]).astype(np.int64)
    same = np.array(
        [row >= 0 and items.texts[row] == x for row, x in zip(before, texts, strict=True)], bool
    )
    origin = before[source]
    kept = origin >= 0
    embeddings = np.zeros((len(source), items.embeddings.shape[1]), np.float32)
    embeddings[kept] = items.embeddings[origin[kept]]  # the others are made by the caller
    places = None
    if items.places is not None:
        places = np.full(len(source), -1, np.int32)
        places[kept] = items.places[origin[kept]]
    changed = StoredItems(
        taken(items.ids, replace.ids, add.ids),
        taken(items.texts, replace.texts, add.texts),
        embeddings,
        all_taken("fields"),
        all_taken("columns"),
        items.recommender,
        places,
    )
    return changed, np.flatnonzero(~same[source])


def check_distinct(add: ChangedItems, replace: ChangedItems, remove: Sequence[str]) -> None:
    """Raises InputError where nothing is to change, or an item is to change twice."""
    if not (add.ids or replace.ids or remove):
        raise InputError("there is nothing to change: no item is named")
    changed = [*add.ids, *replace.ids, *remove]
    repeats = [item_id for item_id, times in Counter(changed).items() if times > 1]
    _refuse(repeats, "named more than once among the changes")


def check_changes(
    items: StoredItems, add: ChangedItems, replace: ChangedItems, remove: Sequence[str]
) -> None:
    """Raises InputError where the changes do not fit the items."""
    known = set(items.ids)
    _refuse([x for x in add.ids if x in known], "in the export already: replace it")
    _refuse([x for x in [*replace.ids, *remove] if x not in known], "not in the export")
    for new in (add, replace):
        if new.ids:
            _check_shape(items, new)


def check_towers(retriever: Retriever, manifest: Manifest, items: StoredItems) -> None:
    """Raises InputError unless new embeddings will be of the towers of those that are there."""
    if retriever.fingerprint() != manifest.encoder_fingerprint:
        raise InputError(
            "the towers kept in the export are not those of its manifest (fingerprints differ): "
            "export it again with `towers export`"
        )
    rows = np.unique(np.linspace(0, len(items.ids) - 1, _CHECKED).astype(int))
    again = retriever.encode_items([items.texts[row] for row in rows])
    cosines = (again * items.embeddings[rows]).sum(axis=1)
    if not (cosines >= _LEAST_COSINE).all():
        worst = int(rows[np.argmin(cosines)])
        raise InputError(
            f"the embedding of item {items.ids[worst]!r} is not what the export's towers make of "
            f"its text (cosine {cosines.min():.3f}): export it again with `towers export`"
        )


def _check_shape(items: StoredItems, new: ChangedItems) -> None:
    """Checks that the new items have texts, fields and columns as the old ones have."""
    columns = {"item texts": new.texts, **new.fields, **new.columns}
    for name, values in columns.items():
        if len(values) != len(new.ids):
            raise InputError(f"{len(new.ids)} items need as many values of {name}: {len(values)}")
    for what, old, given in (
        ("lexical fields", items.fields, new.fields),
        ("columns", items.columns, new.columns),
    ):
        if set(old) != set(given):
            raise InputError(
                f"the {what} of the export are {', '.join(old) or 'none'}; the new items have "
                f"{', '.join(given) or 'none'}"
            )


def _refuse(wrong: Sequence[str], reason: str) -> None:
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"item id {wrong[0]!r}{more} is {reason}")
