"""Retrieval quality on held-out queries while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from towers.retriever import Retriever
from training.evaluation import evaluate
from training.interactions import Interactions
from training.search import Run, top_k

MEASURE = "nDCG@10"


class CandidatePool:
    """Held-out queries with the candidates they are ranked against.

    The whole catalogue would cost more to encode than the epoch cost to train. The pool holds
    every judged item of the held-out queries and random ones up to its size.

    Args:
        interactions: judged pairs of the held-out queries.
        item_texts: item text of every catalogue row.
        size: number of candidates, at least; judged items are never left out.
        seed: decides the random candidates.
    """

    def __init__(
        self,
        interactions: Interactions,
        item_texts: Sequence[str],
        *,
        size: int = 1000,
        seed: int = 0,
    ) -> None:
        self.interactions = interactions
        judged = np.unique(interactions.item_row)
        others = np.setdiff1d(np.arange(len(item_texts)), judged)
        drawn = np.random.default_rng(seed).permutation(others)[: max(0, size - len(judged))]
        self.rows = np.sort(np.concatenate([judged, drawn]))
        self.texts = [item_texts[row] for row in self.rows]

    def score(self, retriever: Retriever) -> float:
        """Mean nDCG@10 of the held-out queries with the towers as they are.

        Towers that training has driven to NaN find nothing: 0.
        """
        queries = retriever.encode_queries(self.interactions.queries)
        items = retriever.encode_items(self.texts)
        if not (np.isfinite(queries).all() and np.isfinite(items).all()):
            return 0.0
        return self.score_vectors(queries, items, self.interactions)

    def score_vectors(
        self, queries: np.ndarray, items: np.ndarray, interactions: Interactions
    ) -> float:
        """Mean nDCG@10 of vectors.

        Args:
            queries: ``[queries of interactions, d]``.
            items: ``[candidates, d]``.
            interactions: judgements of these queries.
        """
        scores, found = top_k(queries, items, 10)
        run = Run(interactions.queries, self.rows[found], scores)
        result = evaluate(run, interactions, interactions.catalog, measures=[MEASURE])
        return result.means[MEASURE]
