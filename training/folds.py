"""Shot queries held out of training in turn, and how well towers do on them, words included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from towers.encoding import fast_dtype
from towers.retriever import Retriever
from training.config import FitConfig
from training.contrast import has_contrast
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.lexical_weight import (
    CANDIDATES,
    LexicalScorer,
    fused,
    likeliest_weight,
    ndcg_by_query,
)
from training.query_parts import query_parts

# With this many queries a quarter of them judges well enough, and one training is enough.
_ENOUGH_QUERIES = 128
_HELD_OUT_FOLDS = 4
_FEW_FOLDS = 2


class HeldOutFolds:
    """The queries of some pairs, in two folds, or one quarter of them where there are 128 or more.

    They are ranked among 5,000 items, by towers and words together where there is a lexical score.

    Args:
        pairs: positive pairs.
        item_texts: item text of every catalogue row.
        config: the recipe, which says whether a part of the pairs is enough to train on.
        judgements: all judgements known of the queries of `pairs`; `pairs` if None.
        lexical: the lexical score; None for the towers alone.
        weight: of the lexical score; None to choose it for each ranking.
        seed: decides folds and random items.

    Attributes:
        folds: rows of the queries that are held out together; none where there are too few.
        queries: the held-out queries, fold after fold; all of them where there is no fold.
        pairs: all pairs.
        pool: the items that are ranked.
    """

    def __init__(
        self,
        pairs: Interactions,
        item_texts: Sequence[str],
        config: FitConfig,
        *,
        judgements: Interactions | None = None,
        lexical: LexicalScorer | None = None,
        weight: float | None = None,
        seed: int = 0,
    ) -> None:
        self.pairs, self._judgements = pairs, judgements or pairs
        self._weight = 0.0 if lexical is None else weight
        folds = _folds(pairs, seed)
        parts = (_without(pairs, fold) for fold in folds)
        self.folds = folds if all(has_contrast(p, item_texts, config) for p in parts) else []
        self.pool = CandidatePool(self._judgements, item_texts, size=CANDIDATES, seed=seed)
        rows = np.concatenate(self.folds) if self.folds else np.arange(len(pairs.queries))
        self.queries = [pairs.queries[row] for row in rows.tolist()]
        self._words = None
        if lexical is not None:
            self._words = _words(lexical, self.queries, self.pool.rows)
        self._base = dict[str, np.ndarray]()
        self._gains = _gains(self._judgements, self.queries, self.pool.rows)
        self._positive = _gains(pairs, self.queries, self.pool.rows) > 0

    def training_part(self, number: int) -> tuple[Interactions, Interactions]:
        """Pairs without the queries of a fold, and the judgements of the queries that are left."""
        train = _without(self.pairs, self.folds[number])
        return train, self._judgements.of_queries(train.queries)

    def fold_queries(self, number: int) -> list[str]:
        """The queries of a fold."""
        return [self.pairs.queries[row] for row in self.folds[number].tolist()]

    def knowing(self, retriever: Retriever) -> Retriever:
        """The same towers, which look the ranked items up: they are encoded once.

        What is trained of them linearly, or by attributes, knows the items too.
        """
        if retriever.known_items is not None:
            return retriever
        encoder = retriever.base_fingerprint()
        if encoder not in self._base:
            self._base[encoder] = retriever.encode_base(self.pool.texts, dtype=fast_dtype())
        return retriever.knowing(self.pool.texts, self._base[encoder])

    def cosine(self, retriever: Retriever, number: int | None) -> np.ndarray:
        """Cosines of a fold's queries, or of all, and the items: ``[queries, items]``."""
        queries = self.queries if number is None else self.fold_queries(number)
        items = retriever.encode_items(self.pool.texts, dtype=fast_dtype())
        return retriever.encode_queries(queries) @ items.T

    def ndcg(self, cosines: Sequence[np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
        """The lexical weight that cosines go best with, and nDCG@10 with and without words.

        Args:
            cosines: of each fold, by towers trained without it.

        Returns:
            The weight, nDCG@10 with it, and that of the cosines alone, both ``[queries]``.
        """
        cosine = np.concatenate(cosines)
        weight = self._weight
        if weight is None:
            assert self._words is not None
            weight = likeliest_weight([cosine], self._words, self._positive)
        alone = ndcg_by_query(cosine, self._gains)
        if self._words is None or not weight:
            return weight, alone, alone
        return weight, ndcg_by_query(fused(cosine, self._words, weight), self._gains), alone


def _folds(pairs: Interactions, seed: int) -> list[np.ndarray]:
    """Rows of queries to hold out together; none where there are too few queries."""
    n = len(pairs.queries)
    if n < 2 * _FEW_FOLDS:
        return []
    order = np.argsort(np.array(pairs.queries, dtype=object), kind="stable")
    order = order[np.random.default_rng([seed, 9]).permutation(n)]
    if n >= _ENOUGH_QUERIES:
        return [order[::_HELD_OUT_FOLDS]]
    return [order[start::_FEW_FOLDS] for start in range(_FEW_FOLDS)]


def _without(pairs: Interactions, fold: np.ndarray) -> Interactions:
    """The pairs of the queries that are not in a fold."""
    return pairs.select_queries(np.setdiff1d(np.arange(len(pairs.queries)), fold))


def _words(lexical: LexicalScorer, queries: Sequence[str], rows: np.ndarray) -> np.ndarray:
    return np.concatenate([lexical(queries[part])[:, rows] for part in query_parts(len(queries))])


def _gains(judgements: Interactions, queries: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Grades ``[queries, items]`` of the judged pairs, 0 elsewhere."""
    place = {query: row for row, query in enumerate(queries)}
    row = np.array([place.get(query, -1) for query in judgements.queries])[judgements.query_row]
    gains = np.zeros((len(queries), len(rows)), np.float32)
    known = row >= 0
    gains[row[known], np.searchsorted(rows, judgements.item_row[known])] = judgements.grade[known]
    return gains
