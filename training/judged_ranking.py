"""Judged queries that versions of towers are compared on, query by query, words included."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from towers.encoding import fast_dtype
from towers.errors import InputError
from towers.retriever import Retriever
from training.evaluation import Measure, evaluate
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer, fused
from training.query_parts import query_parts
from training.search import Run

ItemEncoder = Callable[[Retriever, Sequence[str]], np.ndarray]
"""From towers and item texts to their vectors, float32 ``[items, d]``."""

Vectors = tuple[np.ndarray, np.ndarray]
"""Of the queries ``[queries, d]`` and of the items that are ranked ``[items, d]``."""

_DEPTH = 100


def encode_items(retriever: Retriever, texts: Sequence[str]) -> np.ndarray:
    """Encodes item texts as `towers evaluate` and `towers export` do."""
    return retriever.encode_items(texts, dtype=fast_dtype())


class JudgedRanking:
    """Ranks the same items for the same queries by any towers and any lexical weight.

    Args:
        judgements: the queries and what is known of them.
        item_texts: item text of every catalogue row.
        rows: the catalogue rows that are ranked, ascending; all if None.
        measure: name of a measure that has a value for each query; see `Measure`.
        min_grade: lowest relevant grade, where the measure does not say.
        lexical: the lexical score; needed for a weight above 0.

    Raises:
        InputError: the measure is unknown, or has no value for a query.
    """

    def __init__(
        self,
        judgements: Interactions,
        item_texts: Sequence[str],
        *,
        rows: np.ndarray | None = None,
        measure: str = "nDCG@10",
        min_grade: int = 1,
        lexical: LexicalScorer | None = None,
    ) -> None:
        self.judgements, self.measure, self.min_grade = judgements, measure, min_grade
        self._depth = require_per_query(measure).cutoff or _DEPTH
        self._lexical = lexical
        self._rows = np.arange(len(item_texts)) if rows is None else rows
        self._texts = [item_texts[row] for row in self._rows.tolist()]

    def encode(self, retriever: Retriever, encode: ItemEncoder = encode_items) -> Vectors:
        """Vectors of the queries and items."""
        return retriever.encode_queries(self.judgements.queries), encode(retriever, self._texts)

    def values(self, vectors: Vectors, weight: float) -> np.ndarray:
        """The measure of each query by the fused score, ``[queries]``.

        NaN where a query has nothing relevant, whatever the vectors and the weight. Equal scores:
        the lower row first.

        Args:
            vectors: what `encode` gave.
            weight: of the lexical score.

        Raises:
            InputError: no query has anything relevant.
        """
        queries, items = vectors
        texts = self.judgements.queries
        found = np.empty((len(texts), min(self._depth, len(items))), np.int64)
        scores = np.empty(found.shape, np.float32)
        for part in query_parts(len(texts)):
            score = queries[part] @ items.T  # [part, items]
            if weight:
                assert self._lexical is not None
                score = fused(score, self._lexical(texts[part])[:, self._rows], weight)
            found[part] = np.argsort(-score, axis=1, kind="stable")[:, : found.shape[1]]
            scores[part] = np.take_along_axis(score, found[part], axis=1)
        result = evaluate(
            Run(texts, self._rows[found], scores),
            self.judgements,
            self.judgements.catalog,
            measures=[self.measure],
            min_grade=self.min_grade,
        )
        return result.per_query[self.measure]


def require_per_query(measure: str) -> Measure:
    """A measure by its name, if it has a value for each query.

    Raises:
        InputError: it has none, or is unknown.
    """
    parsed = Measure.parse(measure)
    if parsed.kind == "Coverage":
        raise InputError(
            f"{measure} has no value for a single query, by which versions could be compared: "
            "name another measure, such as nDCG@10"
        )
    return parsed
