"""Export: towers, item embeddings and index become one versioned SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.exported_module import ExportedModule
from serving.graph_ops import foreign_ops, server_for
from serving.index.auto import IndexKind, check_choice, choose_index, may_be_approximate
from serving.index.exact import ExactIndex
from serving.index.item_index import checked_item_ids
from serving.index.scann import ScannIndex
from serving.item_columns import ItemColumns
from serving.lexical import HybridSearch, LexicalIndex
from serving.manifest import Manifest
from serving.stored_items import Column, StoredItems
from serving.versions import check_model_folder, new_version
from serving.warmup import write_warmup
from towers.errors import InputError
from towers.item_text import text_of
from towers.recommender import CatalogRecommender, Recommender
from towers.retriever import Retriever

DEFAULT_K = 10

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, what is done of it, and what there is to do."""

_RECALL_QUERIES = 512
_OPENING_WORDS = 4
_WARMUP_TEXTS = 32
_NAMES = {"scann": "a ScaNN", "partitioned": "a partitioned"}


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
            `recommend` and `score`, and both with reviews.
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
    check_choice(index, k)
    if not 0 <= lexical_weight <= 1:
        raise InputError(f"the lexical weight must be from 0 to 1, not {lexical_weight}")
    if lexical_weight:
        if index in _NAMES:
            raise InputError(
                f"{_NAMES[index]} index cannot be combined with a lexical score: choose the exact "
                "index, or a lexical weight of 0"
            )
        index = "exact"
    _check_items(retriever, item_ids, item_texts, item_embeddings)
    if recommender is not None:
        _check_fits(recommender, retriever)
    retriever = retriever.as_float32()

    item_columns = ItemColumns(columns, len(item_ids)) if columns else None
    if item_embeddings is None:
        item_embeddings = retriever.encode_items(
            item_texts, progress=lambda done, total: report("encode items", done, total)
        )
    report("build index", 0, 1)
    texts, source = recall_queries(sample_queries, item_texts, seed)
    if not may_be_approximate(index, len(item_ids)):
        texts = []
    chosen = choose_index(
        item_ids,
        item_embeddings,
        retriever.encode_queries(texts),
        kind=index,
        k=k,
        parameters=index_parameters,
    )
    hybrid = lexical = None
    if lexical_weight:
        assert isinstance(chosen.index, ExactIndex)  # seen to above
        lexical = LexicalIndex.build(lexical_fields or {"text": [text_of(x) for x in item_texts]})
        hybrid = HybridSearch(chosen.index, lexical, lexical_weight)
    report("build index", 1, 1)

    report("write version", 0, 1)
    users = None
    if recommender is not None:
        users = recommender.over(item_ids, item_texts, item_embeddings)
    module = ExportedModule(retriever, chosen.index, hybrid, item_columns, users)
    manifest = Manifest(
        encoder_fingerprint=retriever.fingerprint(),
        item_template=retriever.text.item_template,
        query_max_length=retriever.text.query_max_length,
        item_max_length=retriever.text.item_max_length,
        embedding_dim=retriever.embedding_dim,
        item_count=len(item_ids),
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
        columns=item_columns.kinds if item_columns else {},
        recommender=recommender.facts() if recommender else {},
        signatures=list(module.signatures),
        server="",  # known once the graph is written
        run_id=run_id,
    )
    items = StoredItems(
        list(item_ids),
        list(item_texts),
        item_embeddings,
        {name: list(texts) for name, texts in (lexical_fields or {}).items()},
        {name: list(values) for name, values in (columns or {}).items()},
        recommender,
    )
    with new_version(output, follows=follows) as draft:
        tf.saved_model.save(module, str(draft.path), signatures=module.signatures)
        foreign = foreign_ops(draft.path)
        if stock_server and foreign:
            raise InputError(
                f"a stock TensorFlow Serving lacks the ops {', '.join(sorted(foreign))} of this "
                "export: choose the exact or partitioned index"
            )
        manifest = replace(manifest, server=server_for(foreign), foreign_ops=sorted(foreign))
        _write_warmup(draft.path, output.name, item_ids, item_texts, item_columns, users)
        items.write(draft.path, retriever)
        manifest.write(draft.path)
    if isinstance(chosen.index, ScannIndex):
        chosen.index.release()
    report("write version", 1, 1)
    assert draft.version is not None
    return ExportResult(draft.path, draft.version, manifest)


def _check_items(
    retriever: Retriever,
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    item_embeddings: np.ndarray | None,
) -> None:
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


def _write_warmup(
    folder: Path,
    model_name: str,
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    columns: ItemColumns | None,
    users: CatalogRecommender | None,
) -> None:
    texts = item_texts[:_WARMUP_TEXTS]
    openings = [_opening(text) for text in texts]
    inputs: dict[str, dict[str, Any]] = {
        "serving_default": {"query": openings},
        "search": {"query": openings},
        "encode_query": {"query": openings},
        "encode_item": {"text": texts},
        "similar": {"item_id": item_ids[:_WARMUP_TEXTS]},
    }
    if columns is not None:
        kinds = {"exclude": tf.string} | {n: spec.dtype for n, spec in columns.inputs.items()}
        nothing = {name: tf.zeros([len(openings), 0], dtype) for name, dtype in kinds.items()}
        inputs["search_filtered"] = {"query": openings} | nothing
    if users is not None:
        histories = [[item_id] for item_id in item_ids[:_WARMUP_TEXTS]]
        # Every second one asks as well, so that both ways are warm.
        queries = [text if place % 2 else "" for place, text in enumerate(openings)]
        inputs["recommend"] = {"history": histories, "query": queries}
        inputs["score"] = inputs["recommend"] | {"item_ids": histories}
        ratings = np.full((len(openings), 1), 5.0, np.float32)
        reviews = {"reviews": [[text] for text in openings], "ratings": ratings}
        for name in ("recommend", "score"):
            inputs[f"{name}_reviews"] = inputs[name] | reviews
    write_warmup(folder, model_name, inputs)
