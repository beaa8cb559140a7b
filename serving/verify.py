"""Checks of a published version: what its graph answers against what it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.export import recall_queries
from serving.index.auto import TARGET_RECALL
from serving.index.item_index import EMPTY_ID
from serving.index.recall import recall
from serving.lexical import LexicalIndex, LexicalStatistics, normalised
from serving.lexical.catalog_words import CatalogWords
from serving.loading import load_export
from serving.manifest import Manifest
from serving.shards import ShardSet, shard_of
from serving.stored_items import StoredItems
from towers.item_text import text_of

DEFAULT_SAMPLE = 256
_EXAMPLES = 5
_NORM_TOLERANCE = 1e-3
_LEAST_COSINE = 0.995  # bfloat16 moves a vector by 1e-4 (docs/benchmarks.md)
_BATCH = 16


@dataclass(frozen=True)
class Problem:
    """Something wrong with a version.

    Attributes:
        check: name of the check: ``count``, ``ids``, ``finite``, ``norm``, ``vectors``, ``lookup``,
            ``answers``, ``recall``, ``orphans``, ``missing`` or ``texts``.
        message: what is wrong, in words.
        count: how many items or answers it concerns.
        examples: some of them.
    """

    check: str
    message: str
    count: int
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verification:
    """What was found out about a version.

    Attributes:
        item_count: items it keeps.
        recall: share of the exact top k that `search` finds.
        queries: number of queries that was measured on.
        measured_on: what they were.
        problems: what is wrong; empty if nothing is.
    """

    item_count: int
    recall: float
    queries: int
    measured_on: str
    problems: list[Problem]


def verify(
    version: str | Path,
    *,
    queries: Sequence[str] | None = None,
    catalog: Mapping[str, str] | None = None,
    sample: int = DEFAULT_SAMPLE,
    least_recall: float = TARGET_RECALL,
    seed: int = 0,
    statistics: LexicalStatistics | None = None,
) -> Verification:
    """Checks a version's ids, embeddings and answers, by loading it as a server does.

    The exact answers that recall is counted against are made in NumPy, of the embeddings that the
    version keeps beside its graph; a lexical score is built anew from its texts.

    Args:
        version: the version's folder, `saved_models/NAME/VERSION`.
        queries: queries to measure recall on; the first words of item texts if None.
        catalog: item id to item text as they should be, to find what has come and gone since.
        sample: number of queries, and of items to look up and to encode again, at most.
        least_recall: recall below this is a problem.
        seed: draws the samples.
        statistics: of the words of the whole catalogue, for a shard; see `verify_shards`.

    Returns:
        What was found.

    Raises:
        InputError: the folder holds no version, or one that does not keep its items.
    """
    version = Path(version)
    manifest, items = Manifest.read(version), StoredItems.read(version)
    if statistics is None and manifest.lexical_weight:
        manifest.check_whole(version)
    if not items.ids:  # a shard that none fell to
        return Verification(0, 1.0, 0, "nothing", [*_ids(items, manifest)])
    signatures = load_export(version).signatures
    embeddings = np.array(items.embeddings)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(items.ids))[:sample])

    problems = [
        *_ids(items, manifest),
        *_embeddings(items.ids, embeddings),
        *_vectors(signatures["encode_item"], items, embeddings, drawn),
        *_lookup(signatures["similar"], items.ids, drawn),
    ]
    texts, measured_on = recall_queries(queries, items.texts, seed, sample)
    found_ids, found = _search(signatures["search"], texts)
    problems += _answers(found_ids, found, set(items.ids))
    vectors = _batched(signatures["encode_query"], "query", texts, "embedding")
    wanted = _exact(
        texts,
        vectors,
        embeddings,
        _fields(items),
        manifest,
        statistics,
    )
    mean = float(recall(found, wanted).mean())
    if not mean >= least_recall:  # nor where it is NaN
        message = f"search finds {mean:.3f} of the exact top {manifest.k}, not {least_recall:g}"
        problems.append(Problem("recall", message, len(texts)))
    if catalog is not None:
        problems += _against_catalog(items, catalog)
    return Verification(len(items.ids), mean, len(texts), measured_on, problems)


def verify_shards(
    shards: ShardSet,
    *,
    queries: Sequence[str] | None = None,
    catalog: Mapping[str, str] | None = None,
    sample: int = DEFAULT_SAMPLE,
    least_recall: float = TARGET_RECALL,
    seed: int = 0,
) -> Verification:
    """Checks all shards of a catalogue: each like a version by itself, and that they fit together.

    Args:
        shards: what `find_shards` found.
        queries: see `verify`, as for what is not named here.
        catalog: of the whole catalogue.
        sample: of each shard.
        least_recall: of each shard's own search among its own items.
        seed: see `verify`.

    Returns:
        What was found: items and queries are of all shards together, the recall is their lowest,
        and the message of a problem names its shard. Two more checks are ``export`` (the shards
        are of one export) and ``shard`` (an item lies where its id says).

    Raises:
        InputError: see `verify`.
    """
    count = len(shards.paths)
    manifests = [Manifest.read(path) for path in shards.paths]
    problems, parts, of_words = [], [], []
    export_ids = {str(manifest.shard.get("export_id")) for manifest in manifests}
    if len(export_ids) > 1:
        message = "the shards are of different exports"
        problems.append(Problem("export", message, len(export_ids), sorted(export_ids)))
    for path, manifest in zip(shards.paths, manifests, strict=True):
        items = StoredItems.read(path) if manifest.lexical_weight else None
        if items and items.ids:
            of_words.append(LexicalStatistics.of(CatalogWords.read(_fields(items))))
    statistics = LexicalStatistics.total(of_words)
    of_shard: list[dict[str, str]] = [{} for _ in range(count)]
    for item_id, text in (catalog or {}).items():
        of_shard[shard_of(item_id, count)][item_id] = text
    for number, path in enumerate(shards.paths):
        strays = [x for x in StoredItems.read(path).ids if shard_of(x, count) != number]
        problems += _problem("shard", f"{path.parent.name}: items of another shard", strays)
        part = verify(
            path,
            queries=queries,
            catalog=None if catalog is None else of_shard[number],
            sample=sample,
            least_recall=least_recall,
            seed=seed,
            statistics=statistics,
        )
        parts.append(part)
        problems += [replace(x, message=f"{path.parent.name}: {x.message}") for x in part.problems]
    return Verification(
        sum(part.item_count for part in parts),
        min(part.recall for part in parts),
        sum(part.queries for part in parts),
        next((part.measured_on for part in parts if part.queries), "nothing"),
        problems,
    )


def _fields(items: StoredItems) -> Mapping[str, Sequence[str]]:
    """What the lexical score reads."""
    return items.fields or {"text": [text_of(text) for text in items.texts]}


def _ids(items: StoredItems, manifest: Manifest) -> Iterable[Problem]:
    if manifest.item_count != len(items.ids):
        message = f"the manifest counts {manifest.item_count} items, {len(items.ids)} are kept"
        yield Problem("count", message, abs(manifest.item_count - len(items.ids)))
    repeats = [item_id for item_id, times in Counter(items.ids).items() if times > 1 or not item_id]
    yield from _problem("ids", "item ids are empty or there more than once", repeats)


def _embeddings(ids: Sequence[str], embeddings: np.ndarray) -> Iterable[Problem]:
    norms = np.linalg.norm(embeddings, axis=1)
    finite = np.isfinite(norms)
    wrong = finite & (np.abs(norms - 1) > _NORM_TOLERANCE)
    yield from _problem("finite", "embeddings are not finite", _at(ids, ~finite))
    yield from _problem("norm", "embeddings are not of length one", _at(ids, wrong))


def _vectors(
    encode: Any, items: StoredItems, embeddings: np.ndarray, rows: np.ndarray
) -> Iterable[Problem]:
    texts = [items.texts[row] for row in rows]
    again = _batched(encode, "text", texts, "embedding")
    fits = (again * embeddings[rows]).sum(axis=1) >= _LEAST_COSINE
    wrong = [items.ids[row] for row in rows[~fits]]
    yield from _problem("vectors", "embeddings are not what the graph makes of the texts", wrong)


def _lookup(similar: Any, ids: Sequence[str], rows: np.ndarray) -> Iterable[Problem]:
    if len(ids) == 1:
        return  # nothing is like it
    asked = [ids[row] for row in rows]
    first = _batched(similar, "item_id", asked, "item_ids")[:, 0]
    lost = [item_id for item_id, answer in zip(asked, first, strict=True) if not answer]
    yield from _problem("lookup", "items are not in the graph", lost)


def _answers(found_ids: np.ndarray, scores: np.ndarray, known: set[str]) -> Iterable[Problem]:
    names = [[item.decode(errors="replace") for item in row] for row in found_ids]
    phantoms = sorted({item for row in names for item in row} - known - {EMPTY_ID})
    yield from _problem("answers", "items that are not kept are answered", phantoms)
    twice = [item for row in names for item, times in Counter(row).items() if item and times > 1]
    yield from _problem("answers", "items are answered twice to one query", twice)
    wrong = int(np.count_nonzero(~np.isfinite(scores).all(axis=1)))
    if wrong:
        yield Problem("answers", "answers hold scores that are not finite", wrong)


def _against_catalog(items: StoredItems, catalog: Mapping[str, str]) -> Iterable[Problem]:
    kept = dict(zip(items.ids, items.texts, strict=True))
    orphans = [item_id for item_id in kept if item_id not in catalog]
    missing = [item_id for item_id in catalog if item_id not in kept]
    stale = [item_id for item_id in kept if catalog.get(item_id, kept[item_id]) != kept[item_id]]
    yield from _problem("orphans", "items are not in the catalogue", orphans)
    yield from _problem("missing", "items of the catalogue are not in the export", missing)
    yield from _problem("texts", "items have another text in the catalogue", stale)


def _exact(
    texts: Sequence[str],
    vectors: np.ndarray,
    embeddings: np.ndarray,
    fields: Mapping[str, Sequence[str]],
    manifest: Manifest,
    statistics: LexicalStatistics | None,
) -> np.ndarray:
    """The k best scores over all items for each query, float32 ``[Q, k or items]``."""
    weight = manifest.lexical_weight
    lexical = LexicalIndex.build(fields, statistics=statistics) if weight else None
    k = min(manifest.k, len(embeddings))
    best = []
    for start in range(0, len(texts), _BATCH):
        part = slice(start, start + _BATCH)
        scores = vectors[part] @ embeddings.T  # [n, items]
        if lexical is not None:
            words = normalised(lexical.scores(tf.constant(list(texts[part])))).numpy()
            scores = (1 - weight) * scores + weight * words
        best.append(-np.sort(np.partition(-scores, k - 1, axis=1)[:, :k], axis=1))
    return np.concatenate(best)


def _search(search: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        search(query=tf.constant(list(texts[start : start + _BATCH])))
        for start in range(0, len(texts), _BATCH)
    ]
    return (
        np.concatenate([part["item_ids"].numpy() for part in parts]),
        np.concatenate([part["scores"].numpy() for part in parts]),
    )


def _batched(signature: Any, name: str, texts: Sequence[str], output: str) -> np.ndarray:
    return np.concatenate(
        [
            signature(**{name: tf.constant(list(texts[start : start + _BATCH]))})[output].numpy()
            for start in range(0, len(texts), _BATCH)
        ]
    )


def _at(ids: Sequence[str], wrong: np.ndarray) -> list[str]:
    return [ids[row] for row in np.flatnonzero(wrong).tolist()]


def _problem(check: str, message: str, ids: Sequence[str]) -> Iterable[Problem]:
    if ids:
        yield Problem(check, message, len(ids), list(ids[:_EXAMPLES]))
