"""Lexical and hybrid retrieval beside bm25s: quality, build time, latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer
import tensorflow as tf
from reporting import HOMEDEPOT_TEXT, arguments, esci, homedepot, judgements, report

from serving.lexical import LexicalIndex, fuse
from towers import Retriever, TextSettings
from training.catalog import Catalog
from training.evaluation import evaluate
from training.interactions import Interactions
from training.search import Run

MEASURES = ("nDCG@10", "RR@10", "R@100")
ESCI_FIELDS = ("title", "brand", "color", "bullet_points", "description")
GAINS = {"homedepot": None, "esci": {0: 0.0, 1: 1.0, 2: 10.0, 3: 100.0}}
BM25S = {"k1": 1.5, "b": 0.75}
WEIGHTS = (0.4, 0.5, 0.6, 0.7)
QUERIES_AT_A_TIME = 64
TIMED = 300

Scorer = Callable[[int, int], np.ndarray]
"""From the first and last of some queries to their scores, float32 ``[n, items]``."""


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--split", default="valid", help="of homedepot; esci has train and test")
    parser.add_argument(
        "--embeddings", type=Path, help=".npy of the homedepot items, made if absent"
    )
    options = parser.parse_args()

    rows = []
    esci_split = "test" if options.split == "test" else "train"
    catalog, _ = esci(options.data)
    fields = {name: [text or "" for text in catalog.column(name)] for name in ESCI_FIELDS}
    asked = judgements(options.data, "esci", esci_split, catalog)
    everything = {"text": [" ".join(texts) for texts in zip(*fields.values(), strict=True)]}
    measured = partial(_measured, f"esci {esci_split}", asked, catalog, GAINS["esci"])
    rows.append(measured("bm25s, one text", *_bm25s(everything["text"], asked.queries)))
    for method, columns, settings in (
        ("BM25, one text", everything, BM25S | {"correct_spelling": False}),
        ("BM25F", fields, BM25S | {"correct_spelling": False}),
        ("BM25F, defaults", fields, {"correct_spelling": False}),
        ("+ spelling", fields, {}),
    ):
        scorer, seconds, milliseconds = _lexical(columns, asked.queries, settings)
        rows.append(measured(method, scorer, seconds, milliseconds))

    catalog, titles = homedepot(options.data)
    asked = judgements(options.data, "homedepot", options.split, catalog)
    measured = partial(_measured, f"homedepot {options.split}", asked, catalog, None)
    rows.append(measured("bm25s", *_bm25s(titles, asked.queries)))
    for method, settings in (
        ("BM25", BM25S | {"correct_spelling": False}),
        ("BM25, defaults", {"correct_spelling": False}),
        ("+ spelling", {}),
    ):
        scorer, seconds, milliseconds = _lexical({"title": titles}, asked.queries, settings)
        rows.append(measured(method, scorer, seconds, milliseconds))

    retriever = Retriever.from_preset(text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))
    if options.embeddings and options.embeddings.exists():
        items = np.load(options.embeddings)
    else:
        items = retriever.encode_items(titles)
        if options.embeddings:
            np.save(options.embeddings, items)
    queries = retriever.encode_queries(asked.queries)
    lexical = scorer

    def dense(first: int, last: int) -> np.ndarray:
        return queries[first:last] @ items.T

    rows.append(measured("dense, zero-shot", dense))
    for name, combine in FUSIONS.items():
        for weight in WEIGHTS:
            # Bound as defaults: the loop goes on.
            def fused(
                first: int, last: int, combine: Any = combine, weight: float = weight
            ) -> np.ndarray:
                return combine(dense(first, last), lexical(first, last), weight)

            rows.append(measured(f"{name}, weight {weight}", fused))
    report("lexical", "Lexical and hybrid retrieval", rows, bm25s=BM25S, split=options.split)


def _measured(
    data: str,
    asked: Interactions,
    catalog: Catalog,
    gains: Mapping[int, float] | None,
    method: str,
    scorer: Scorer,
    seconds: float | str = "",
    milliseconds: float | str = "",
) -> dict[str, Any]:
    """One row of the table."""
    scores, rows = [], []
    for first in range(0, len(asked.queries), QUERIES_AT_A_TIME):
        found = tf.math.top_k(scorer(first, first + QUERIES_AT_A_TIME), 100)
        scores.append(found.values.numpy())
        rows.append(found.indices.numpy().astype(np.int64))
    run = Run(list(asked.queries), np.concatenate(rows), np.concatenate(scores))
    means = evaluate(run, asked, catalog, measures=MEASURES, gains=gains).means
    row = {"data": data, "method": method} | {name: round(means[name], 4) for name in MEASURES}
    return row | {"build, s": seconds, "one query p50, ms": milliseconds}


def _bm25s(texts: list[str], queries: list[str]) -> tuple[Scorer, float, float]:
    stemmer = Stemmer.Stemmer("english")
    tokenize = partial(
        bm25s.tokenize, stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False
    )
    start = time.perf_counter()
    peer = bm25s.BM25(method="lucene", **BM25S)
    peer.index(tokenize(texts), show_progress=False)
    seconds = time.perf_counter() - start

    def score(query: str) -> np.ndarray:
        tokens = tokenize([query])[0]
        return peer.get_scores(tokens) if tokens else np.zeros(len(texts), np.float32)

    milliseconds = _p50(score, queries)
    return (
        lambda first, last: np.stack(list(map(score, queries[first:last]))),
        seconds,
        milliseconds,
    )


def _lexical(
    fields: Mapping[str, list[str]], queries: list[str], settings: Mapping[str, Any]
) -> tuple[Scorer, float, float]:
    start = time.perf_counter()
    index = LexicalIndex.build(fields, **settings)
    seconds = time.perf_counter() - start
    score = tf.function(index.scores, input_signature=[tf.TensorSpec([None], tf.string)])
    milliseconds = _p50(lambda query: score(tf.constant([query])), queries)
    return (
        lambda first, last: score(tf.constant(queries[first:last])).numpy(),
        seconds,
        milliseconds,
    )


def _p50(score: Callable[[str], Any], queries: list[str]) -> float:
    seconds = []
    for query in queries[:TIMED]:
        start = time.perf_counter()
        score(query)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1e3


def _fuse(dense: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    return fuse(tf.constant(dense), tf.constant(lexical), weight).numpy()


def _fuse_spread(dense: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    """Both scaled from their least to their best."""

    def scaled(scores: np.ndarray) -> np.ndarray:
        low, high = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
        return (scores - low) / np.maximum(high - low, 1e-9)

    return (1 - weight) * scaled(dense) + weight * scaled(lexical)


def _fuse_standard(dense: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    """Both in standard deviations from their mean."""

    def standard(scores: np.ndarray) -> np.ndarray:
        centred = scores - scores.mean(1, keepdims=True)
        return centred / np.maximum(scores.std(1, keepdims=True), 1e-9)

    return (1 - weight) * standard(dense) + weight * standard(lexical)


def _fuse_ranks(dense: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    """Reciprocal ranks, Cormack et al. 2009, weighted."""

    def reciprocal(scores: np.ndarray) -> np.ndarray:
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty(scores.shape, np.float32)
        np.put_along_axis(
            ranks, order, np.arange(1, scores.shape[1] + 1, dtype=np.float32)[None], 1
        )
        return 1 / (60 + ranks)

    return (1 - weight) * reciprocal(dense) + weight * reciprocal(lexical)


FUSIONS = {
    "cosine + BM25 / best": _fuse,
    "both from least to best": _fuse_spread,
    "both standardised": _fuse_standard,
    "reciprocal ranks": _fuse_ranks,
}


if __name__ == "__main__":
    main()
