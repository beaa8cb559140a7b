"""Export: towers, item embeddings and index become one versioned SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.exported_module import ExportedModule
from serving.exported_shard import ExportedShard
from serving.graph_ops import foreign_ops, server_for
from serving.index.auto import (
    ChosenIndex,
    IndexKind,
    check_choice,
    choose_index,
    may_be_approximate,
)
from serving.index.empty import EmptyIndex
from serving.index.exact import ExactIndex
from serving.index.item_index import ItemIndex, checked_item_ids
from serving.index.scann import ScannIndex
from serving.item_columns import ItemColumns
from serving.lexical import HybridSearch, LexicalIndex
from serving.manifest import Manifest
from serving.shards import Shard, check_no_shards
from serving.stored_items import Column, StoredItems
from serving.versions import check_model_folder, new_version
from serving.warmup import write_warmup
from towers.errors import InputError
from towers.item_text import text_of
from towers.recommender import Recommender
from towers.retriever import Retriever

DEFAULT_K = 10

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, what is done of it, and what there is to do."""

_RECALL_QUERIES = 512
_OPENING_WORDS = 4
_WARMUP_TEXTS = 32
_NAMES = {"scann": "a ScaNN", "partitioned": "a partitioned"}


@dataclass(frozen=True)
class BuiltVersion:
    """A version that is built and not yet written.

    Attributes:
        module: its graph.
        manifest: its manifest, as far as it can be known before the graph is written.
        items: its items, with their embeddings.
        retriever: the towers, in float32.
        index: the index in the graph.
        columns: the items' columns; None without.
    """

    module: ExportedModule
    manifest: Manifest
    items: StoredItems
    retriever: Retriever
    index: ItemIndex
    columns: ItemColumns | None = None

    def write(self, folder: Path, model_name: str, *, stock_server: bool = False) -> Manifest:
        """Writes the version into an empty folder, and lets go of what its index holds.

        Args:
            folder: the draft of `new_version`.
            model_name: what the model is called, for the warm-up requests.
            stock_server: see `export_retriever`.

        Returns:
            The manifest, complete.

        Raises:
            InputError: an unmodified TensorFlow Serving was asked for, and could not load it.
        """
        signatures = self.module.signatures
        tf.saved_model.save(self.module, str(folder), signatures=signatures)
        foreign = foreign_ops(folder)
        if stock_server and foreign:
            raise InputError(
                f"a stock TensorFlow Serving lacks the ops {', '.join(sorted(foreign))} of this "
                "export: choose the exact or partitioned index"
            )
        manifest = replace(self.manifest, server=server_for(foreign), foreign_ops=sorted(foreign))
        write_warmup(folder, model_name, self._warmup(set(signatures)))
        self.items.write(folder, self.retriever)
        manifest.write(folder)
        if isinstance(self.index, ScannIndex):
            self.index.release()
        return manifest

    def _warmup(self, signatures: set[str]) -> dict[str, dict[str, Any]]:
        """The values of a few requests for each signature; of a shard, for what it is asked."""
        texts = self.items.texts[:_WARMUP_TEXTS] or [""]
        item_ids = self.items.ids[:_WARMUP_TEXTS] or [""]
        openings = [_opening(text) for text in texts]
        columns = self.columns.inputs if self.columns else {}
        kinds = {"exclude": tf.string} | {name: spec.dtype for name, spec in columns.items()}
        filters = {name: tf.zeros([len(texts), 0], dtype) for name, dtype in kinds.items()}
        vectors = {"embedding": tf.zeros([len(texts), self.retriever.embedding_dim])}
        shared = {"query": openings} | vectors
        if self.manifest.lexical_weight:
            shared["best"] = tf.ones([len(texts)])
        histories = [[item_id] for item_id in item_ids]
        # Every second one asks as well, so that both ways are warm.
        asked = [text if place % 2 else "" for place, text in enumerate(openings)]
        people = {"history": histories, "query": asked}
        chosen = people | {"item_ids": histories}
        ratings = np.full((len(texts), 1), 5.0, np.float32)
        reviews = {"reviews": [[text] for text in openings], "ratings": ratings}
        learned = self.items.recommender
        values = learned.context.values if learned is not None else []
        context = {"context": [values[:1] or [""]] * len(texts)}
        inputs: dict[str, dict[str, Any]] = {
            "serving_default": {"query": openings},
            "search": {"query": openings},
            "encode_query": {"query": openings},
            "encode_item": {"text": texts},
            "similar": {"item_id": item_ids},
            "search_filtered": {"query": openings} | filters,
            "recommend": people,
            "score": chosen,
            "recommend_reviews": people | reviews,
            "score_reviews": chosen | reviews,
            "recommend_context": people | reviews | context,
            "score_context": chosen | reviews | context,
            "shard_encode": {"query": openings},
            "shard_best": {"query": openings},
            "shard_search": shared,
            "shard_search_filtered": shared | filters,
            "shard_item": {"item_id": item_ids},
            "shard_similar": {"item_id": item_ids} | vectors,
        }
        return {
            name: values
            for name, values in inputs.items()
            if name in signatures and name.startswith("shard_") == bool(self.manifest.shard)
        }


@dataclass(frozen=True)
class ExportResult:
    """A published version.

    Attributes:
        path: its folder.
        version: its number.
        manifest: what it is made of, the index and its recall included.
    """

    path: Path
    version: int
    manifest: Manifest


def export_retriever(
    retriever: Retriever,
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    output: str | Path,
    *,
    index: IndexKind = "auto",
    index_parameters: Mapping[str, int] | None = None,
    k: int = DEFAULT_K,
    item_embeddings: np.ndarray | None = None,
    sample_queries: Sequence[str] | None = None,
    lexical_weight: float = 0.0,
    lexical_fields: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Column] | None = None,
    recommender: Recommender | None = None,
    stock_server: bool = False,
    run_id: str = "",
    follows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExportResult:
    """Publishes a retriever with its catalogue as the next version of the model `output`.

    A recall is measured on up to 512 of the sample queries. Without any, the first words of item
    texts stand in for them. Nothing that a customer typed is written into the export: the warm-up
    requests are made of item texts and item ids.

    Args:
        retriever: the trained towers; exported in float32, whatever they were trained in.
        item_ids: ids of the catalogue's items, distinct and not empty.
        item_texts: texts of the items, the template filled in, in the same order; attributes that
            the towers fuse stand behind them (`towers.ItemTemplate`).
        output: the model's folder, `saved_models/NAME`.
        index: ``exact``, ``scann``, ``partitioned``, or ``auto`` to choose; see `choose_index`.
        index_parameters: how an approximate index was built before, to build it so again.
        k: width of every answer, fixed in the graph.
        item_embeddings: float ``[N, d]``, if they have been made already by the same towers.
        sample_queries: queries such as will be asked.
        lexical_weight: of BM25 in the score of `search`, from 0 (cosine alone) to 1; see
            `serving.lexical`. With a lexical score every item is scored, so the index is exact.
        lexical_fields: field name to its text for each item, for the lexical score; the item texts
            as one field if None.
        columns: column name to a text or number, or None, for each item: with any, the export has
            the signature `search_filtered`; see `serving.item_columns`.
        recommender: what was learned from histories: with it the export has the signatures
            `recommend` and `score`, both with reviews, and both with contexts if it knows any.
        stock_server: publish only what an unmodified TensorFlow Serving can load: the ops of the
            written graph are held against those that it has.
        run_id: the training run, for the manifest.
        follows: the version that this one is made from; see `new_version`.
        seed: draws the queries that recall is measured on.
        progress: told about the stages ``encode items``, ``build index`` and ``write version``.

    Returns:
        The published version.

    Raises:
        InputError: a lexical weight out of its range or with a ScaNN index, no items, ids that are
            not distinct, numbers of ids, texts and embeddings that differ, or an `output` that
            cannot be a model's folder.
    """
    report = progress or (lambda stage, done, total: None)
    output = Path(output).resolve()
    # All that can be wrong with the input is found before the long work starts.
    check_model_folder(output)
    check_no_shards(output)
    index = checked_index(index, k, lexical_weight)
    check_items(retriever, item_ids, item_texts, item_embeddings)
    if recommender is not None:
        _check_fits(recommender, retriever)
    retriever = retriever.as_float32()

    if columns:
        ItemColumns(columns, len(item_ids))  # which refuses what cannot be
    if item_embeddings is None:
        item_embeddings = retriever.encode_items(
            item_texts, progress=lambda done, total: report("encode items", done, total)
        )
    items = StoredItems(
        list(item_ids),
        list(item_texts),
        item_embeddings,
        {name: list(texts) for name, texts in (lexical_fields or {}).items()},
        {name: list(values) for name, values in (columns or {}).items()},
        recommender,
    )
    report("build index", 0, 1)
    built = build_version(
        retriever,
        items,
        index=index,
        index_parameters=index_parameters,
        k=k,
        sample_queries=sample_queries,
        lexical_weight=lexical_weight,
        run_id=run_id,
        seed=seed,
    )
    report("build index", 1, 1)

    report("write version", 0, 1)
    with new_version(output, follows=follows) as draft:
        manifest = built.write(draft.path, output.name, stock_server=stock_server)
    report("write version", 1, 1)
    assert draft.version is not None
    return ExportResult(draft.path, draft.version, manifest)


def build_version(
    retriever: Retriever,
    items: StoredItems,
    *,
    index: IndexKind,
    index_parameters: Mapping[str, int] | None,
    k: int,
    sample_queries: Sequence[str] | None,
    lexical_weight: float,
    run_id: str,
    seed: int = 0,
    shard: Shard | None = None,
) -> BuiltVersion:
    """Builds the search structures over items and the graph around them.

    Args:
        retriever: the towers, in float32.
        items: the items, with their embeddings; none at all for a shard that none fell to.
        index: as `checked_index` returns it.
        index_parameters: see `export_retriever`.
        k: see `export_retriever`.
        sample_queries: see `export_retriever`.
        lexical_weight: see `export_retriever`.
        run_id: see `export_retriever`.
        seed: see `export_retriever`.
        shard: which shard of a catalogue the items are; None for the whole of one.

    Returns:
        The version, ready to be written.

    Raises:
        InputError: what `choose_index`, `LexicalIndex.build` and `ItemColumns` refuse.
    """
    rows = max(1, len(items.ids))  # an empty index has one row
    columns = None
    if items.columns:
        columns = ItemColumns(
            {name: values or [None] for name, values in items.columns.items()},
            rows,
            shard.column_kinds if shard else None,
        )
    texts: list[str] = []
    source = ""
    if items.ids:
        if may_be_approximate(index, len(items.ids)):
            texts, source = recall_queries(sample_queries, items.texts, seed)
        chosen = choose_index(
            items.ids,
            items.embeddings,
            retriever.encode_queries(texts),
            kind=index,
            k=k,
            parameters=index_parameters,
        )
    else:
        chosen = ChosenIndex(EmptyIndex(k, retriever.embedding_dim), 1.0, 0, "no items")
    hybrid = lexical = None
    if lexical_weight:
        assert isinstance(chosen.index, ExactIndex)  # seen to by `checked_index`
        fields = items.fields or {"text": [text_of(text) for text in items.texts]}
        lexical = LexicalIndex.build(
            {name: of_field or [""] for name, of_field in fields.items()},
            statistics=shard.statistics if shard else None,
        )
        hybrid = HybridSearch(chosen.index, lexical, lexical_weight)
    users = None
    if items.recommender is not None:
        users = items.recommender.over(items.ids, items.texts, items.embeddings)
    module = (
        ExportedModule(retriever, chosen.index, hybrid, columns, users)
        if shard is None
        else ExportedShard(shard, retriever, chosen.index, hybrid, columns)
    )
    manifest = Manifest(
        encoder_fingerprint=retriever.fingerprint(),
        item_template=retriever.text.item_template,
        query_max_length=retriever.text.query_max_length,
        item_max_length=retriever.text.item_max_length,
        embedding_dim=retriever.embedding_dim,
        item_count=len(items.ids),
        k=k,
        index_kind=chosen.index.kind,
        index_parameters=chosen.index.parameters,
        index_recall=chosen.recall,
        index_recall_measured=f"{chosen.queries} {source}" if chosen.queries else "nothing",
        index_milliseconds=chosen.milliseconds,
        exact_milliseconds=chosen.exact_milliseconds,
        index_reason="the lexical score needs it" if lexical else chosen.reason,
        lexical_weight=lexical_weight,
        lexical_parameters=lexical.parameters if lexical else {},
        columns=columns.kinds if columns else {},
        recommender=items.recommender.facts() if items.recommender else {},
        shard=shard.facts() if shard else {},
        signatures=list(module.signatures),
        server="",  # known once the graph is written
        run_id=run_id,
    )
    return BuiltVersion(module, manifest, items, retriever, chosen.index, columns)


def checked_index(index: IndexKind, k: int, lexical_weight: float) -> IndexKind:
    """The kind of index to choose: the exact one where words count.

    Raises:
        InputError: an unknown kind, no positive `k`, a lexical weight out of its range or with an
            approximate index.
    """
    check_choice(index, k)
    if not 0 <= lexical_weight <= 1:
        raise InputError(f"the lexical weight must be from 0 to 1, not {lexical_weight}")
    if lexical_weight and index in _NAMES:
        raise InputError(
            f"{_NAMES[index]} index cannot be combined with a lexical score: choose the exact "
            "index, or a lexical weight of 0"
        )
    return "exact" if lexical_weight else index


def check_items(
    retriever: Retriever,
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    item_embeddings: np.ndarray | None,
) -> None:
    """Raises InputError where there are no items, or ids, texts and embeddings do not fit."""
    if not len(item_ids):
        raise InputError("the catalogue holds no items: there is nothing to export")
    checked_item_ids(item_ids, len(item_ids))
    if len(item_texts) != len(item_ids):
        raise InputError(f"{len(item_ids)} item ids need as many texts, not {len(item_texts)}")
    expected = (len(item_ids), retriever.embedding_dim)
    if item_embeddings is not None and item_embeddings.shape != expected:
        raise InputError(f"item embeddings must be {expected}, not {item_embeddings.shape}")


def _check_fits(recommender: Recommender, retriever: Retriever) -> None:
    fingerprint = recommender.encoder_fingerprint
    if fingerprint and fingerprint != retriever.fingerprint():
        raise InputError(
            "the recommender was trained on the embeddings of other towers: train it again with "
            "these, `towers train --histories`"
        )


def recall_queries(
    sample_queries: Sequence[str] | None,
    item_texts: Sequence[str],
    seed: int,
    count: int = _RECALL_QUERIES,
) -> tuple[list[str], str]:
    """Up to `count` queries to measure a recall on, and what they are."""
    draw = np.random.default_rng(seed)
    if sample_queries:
        distinct = list(dict.fromkeys(sample_queries))
        rows = draw.permutation(len(distinct))[:count]
        return [distinct[row] for row in rows], "sample queries"
    rows = draw.permutation(len(item_texts))[:count]
    return [_opening(item_texts[row]) for row in rows], "openings of item texts"


def _opening(text: str) -> str:
    return " ".join(text_of(text).split()[:_OPENING_WORDS])
