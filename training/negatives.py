"""Negatives from the whole catalogue: mined hard ones, and cached vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import keras
import numpy as np

from towers.encoding import Progress
from towers.retriever import Retriever
from training.checkpoints import Checkpoints
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer, fused
from training.pair_vectors import PairVectors, encode_pairs
from training.query_parts import query_parts

Source = Literal["towers", "lexical", "both"]
"""Whose ranking hard negatives come from."""

# Weight of the lexical score in the ranking that negatives are mined from.
_LEXICAL_WEIGHT: dict[Source, float] = {"towers": 0.0, "lexical": 1.0, "both": 0.5}
# Of the items that rank high and may be negatives, so many are kept for each pair to draw from.
_DEPTH = 30
# What scores above this share of the positive's score is taken for one more positive.
_SHARE = 0.95


def limit(scores: np.ndarray) -> np.ndarray:
    """The highest score of a negative beside positives of these scores.

    95% of the positive's, the rule of NV-Retriever; below 0, as far under it.
    """
    return scores - (1 - _SHARE) * np.abs(scores)


def text_ids(item_texts: Sequence[str]) -> np.ndarray:
    """A number for each distinct text, int32 ``[items]``: to the towers these are one item."""
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(text, len(ids)) for text in item_texts], np.int32)


def judged_below(
    pairs: Interactions, known: Interactions, text_id: np.ndarray
) -> dict[int, np.ndarray]:
    """What was judged for queries, and lower than every positive of theirs.

    Args:
        pairs: positive pairs.
        known: judgements, of these queries and others.
        text_id: see `text_ids`; an item of equal text with a positive is left out.

    Returns:
        Catalogue rows, ascending, by the number of the query in `pairs`; queries without any are
        not there.
    """
    place = {query: number for number, query in enumerate(pairs.queries)}
    positives: list[set[int]] = [set() for _ in pairs.queries]
    lowest = np.full(len(pairs.queries), np.iinfo(np.int32).max)
    np.minimum.at(lowest, pairs.query_row, pairs.grade)
    for query, item in zip(pairs.query_row.tolist(), pairs.item_row, strict=True):
        positives[query].add(int(text_id[item]))
    found: dict[int, set[int]] = {}
    for query, item, grade in zip(
        known.query_row.tolist(), known.item_row.tolist(), known.grade.tolist(), strict=True
    ):
        number = place.get(known.queries[query])
        if number is None or grade >= lowest[number] or int(text_id[item]) in positives[number]:
            continue
        found.setdefault(number, set()).add(item)
    return {number: np.array(sorted(rows), np.int64) for number, rows in found.items()}


class CatalogNegatives:
    """Candidates for the in-batch softmax from outside of the batch.

    Hard negatives: for each pair the catalogue is ranked for its query. Known positives of the
    query and items of equal text are left out, and so is what scores above 95% of the pair's own
    item: most of that is relevant, too, and just not judged. From the 30 best of the rest each
    epoch draws anew. They are encoded by the item tower like the batch's own items.

    Judged negatives: what was judged for a query, and lower than its positives: the one kind that
    is certain. Each epoch draws anew from them. No score keeps them from counting for their query;
    for the other queries of the batch they are under the rule like all others.

    Cached negatives: vectors of random items as the towers made them before training, or at the
    last `look`. They cost no encoding, and thousands of them make a small batch a large one. Where
    the item tower is frozen they are exact; else they lag behind it, and training that moves items
    together with what lies in the cache would not notice.

    All of them are negatives for every query of a batch for which they are no known positive and
    have a cosine of at most 95% of its own item's.

    No correction for sampling (logQ: Yi et al. 2019) is made, though `towers.TwoTower` has one. An
    item of the pairs stands in a batch with probability ``batch / pairs``, a cached one with
    ``cached / items``. For 32 of 512 and 4,096 of 50,000 that is 1/16 and 1/12: nearly a constant,
    which a softmax does not see. For 8 of 32 pairs the batch's own items count three times as often
    as if drawn evenly, once an epoch each, whether they are bought often or not: there is no
    popularity in it to be corrected.

    References:
        - Moreira et al. 2024, "NV-Retriever: Improving text embedding models with effective
          hard-negative mining", https://arxiv.org/abs/2407.15831 (95% of the positive's score)
        - Xiong et al. 2021, "Approximate Nearest Neighbor Negative Contrastive Learning for Dense
          Text Retrieval" (ANCE), https://arxiv.org/abs/2007.00808 (mining anew while training)

    Args:
        pairs: positive pairs that are trained on.
        item_texts: item text of every catalogue row.
        vectors: of the queries of `pairs` and of the whole catalogue; with judged negatives alone,
            of the items of the pairs and of these is enough.
        hard: hard negatives a pair.
        source: whose ranking they come from.
        judged: judged negatives a pair.
        cached: cached negatives a batch, at most as many as there are items.
        lexical: the lexical score; needed unless `source` is ``towers``.
        known: further judgements: judged negatives come from there, and what has a grade there is
            no negative of any other kind of its query.
    """

    def __init__(
        self,
        pairs: Interactions,
        item_texts: Sequence[str],
        vectors: PairVectors,
        *,
        hard: int = 0,
        source: Source = "towers",
        judged: int = 0,
        cached: int = 0,
        lexical: LexicalScorer | None = None,
        known: Interactions | None = None,
    ) -> None:
        assert source == "towers" or lexical is not None
        self.pairs, self.item_texts, self.vectors = pairs, item_texts, vectors
        self.hard, self.source, self.cached, self.lexical = hard, source, cached, lexical
        self.judged = judged
        self._text_id = text_ids(item_texts)
        # The first row of each distinct text stands for it.
        self._first = np.zeros(len(item_texts), bool)
        self._first[np.unique(self._text_id, return_index=True)[1]] = True
        self._positive_ids = self._positives(pairs, known)
        self._judged = judged_below(pairs, known, self._text_id) if judged and known else {}
        self._pools: list[np.ndarray] = []
        if hard:
            self._mine()

    def _positives(self, pairs: Interactions, known: Interactions | None) -> list[np.ndarray]:
        """Text ids of each query's positives."""
        place = {query: number for number, query in enumerate(pairs.queries)}
        positives: list[set[int]] = [set() for _ in pairs.queries]
        for judged in (pairs, known):
            if judged is None:
                continue
            rows = zip(
                judged.query_row.tolist(), judged.item_row, judged.grade.tolist(), strict=True
            )
            for query, item, grade in rows:
                number = place.get(judged.queries[query])
                if grade > 0 and number is not None:
                    positives[number].add(int(self._text_id[item]))
        return [np.array(sorted(ids), np.int32) for ids in positives]

    def look(
        self, retriever: Retriever, *, items: bool = True, progress: Progress | None = None
    ) -> None:
        """Encodes and mines anew with towers as they are now.

        Args:
            retriever: the towers.
            items: false where the item tower has not changed.
            progress: told about encoding the items.
        """
        if items:
            self.vectors = encode_pairs(
                retriever, self.pairs.queries, self.item_texts, progress=progress
            )
        else:
            queries = retriever.encode_queries(self.pairs.queries)
            self.vectors = replace(self.vectors, queries=queries)
        if self.hard:
            self._mine()

    def _mine(self) -> None:
        weight = _LEXICAL_WEIGHT[self.source]
        items = self.vectors.of_items(np.arange(len(self.item_texts)))
        own = self.pairs.item_row
        pools: list[np.ndarray] = [np.zeros(0, np.int64)] * len(self.pairs)
        for part in query_parts(len(self.pairs.queries)):
            queries = self.pairs.queries[part]
            scores = self.vectors.queries[part] @ items.T  # [queries, items]
            if self.lexical is not None and weight:
                scores = fused(scores, self.lexical(queries), weight)
            of_pair = self.pairs.query_row
            for pair in np.flatnonzero((part.start <= of_pair) & (of_pair < part.stop)).tolist():
                query = int(of_pair[pair])
                score = scores[query - part.start]
                allowed = self._first & (score <= limit(score[own[pair]]))
                allowed &= ~np.isin(self._text_id, self._positive_ids[query])
                if self.source == "lexical":
                    allowed &= score > 0  # without a word in common nothing is hard
                pool = np.flatnonzero(allowed)
                if len(pool) > _DEPTH:
                    pool = pool[np.argpartition(-score[pool], _DEPTH)[:_DEPTH]]
                pools[pair] = pool[np.argsort(-score[pool], kind="stable")]
        self._pools = pools

    def pool(self, pair: int) -> np.ndarray:
        """Catalogue rows that are hard negatives of a pair, the hardest first; up to 30."""
        return self._pools[pair]

    @property
    def encoded(self) -> bool:
        """Whether there are negatives that the item tower has to encode."""
        return bool(self.hard or self._judged)

    def draw(self, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Hard and judged negatives for a batch.

        Args:
            pairs: numbers of the batch's pairs.
            rng: decides which.

        Returns:
            Catalogue rows in ascending order, none of equal text with another or with an item of
            the pairs. There may be none.
        """
        nothing = np.zeros(0, np.int64)
        drawn = [nothing]
        if self.hard:
            pools = [self._pools[pair] for pair in pairs.tolist()]
            drawn += [rng.choice(pool, min(self.hard, len(pool)), replace=False) for pool in pools]
        if self._judged:
            pools = [self._judged.get(query, nothing) for query in self.pairs.query_row[pairs]]
            drawn += [
                rng.choice(pool, min(self.judged, len(pool)), replace=False) for pool in pools
            ]
        rows = np.unique(np.concatenate(drawn)).astype(np.int64)
        # Of rows of equal text the first: to the towers they are one.
        rows = rows[np.sort(np.unique(self._text_id[rows], return_index=True)[1])]
        return rows[~np.isin(self._text_id[rows], self._text_id[self.pairs.item_row[pairs]])]

    def draw_cached(self, rng: np.random.Generator) -> np.ndarray:
        """Catalogue rows of the cached negatives of a batch, each once."""
        count = len(self.item_texts)
        return rng.choice(count, min(self.cached, count), replace=False)

    def too_near(self, pairs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Marks items that may be positives: known ones, and those above 95% of the own item.

        Args:
            pairs: numbers of the batch's pairs, ``B`` of them.
            rows: catalogue rows, ``M`` of them.

        Returns:
            bool ``[B, M]``.
        """
        queries, own = self.pairs.query_row[pairs], self.pairs.item_row[pairs]
        vectors = self.vectors
        score = np.einsum("bd,bd->b", vectors.queries[queries], vectors.of_items(own))
        near = vectors.cosines(queries, rows) > limit(score)[:, None]
        for row, query in enumerate(queries.tolist()):
            near[row] |= np.isin(self._text_id[rows], self._positive_ids[query])
            if query in self._judged:
                near[row] &= ~np.isin(self._text_id[rows], self._text_id[self._judged[query]])
        return near


class Remine(keras.callbacks.Callback):
    """Lets negatives be found anew, every so many epochs, with the towers as they are by then.

    A run that was killed and taken up again looks with the towers of the epoch it was last time for
    it, which its checkpoints have kept.

    Args:
        negatives: what is to look.
        checkpoints: of the model that is trained.
        every: number of epochs.
        items: whether the item tower is trained.
    """

    def __init__(
        self, negatives: CatalogNegatives, checkpoints: Checkpoints, every: int, *, items: bool
    ) -> None:
        super().__init__()
        self.negatives, self.checkpoints = negatives, checkpoints
        self.every, self.items = every, items
        self._looked = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks anew where it is time."""
        last = epoch - epoch % self.every
        if last == self._looked:
            return
        with self.checkpoints.towers_of(last) as retriever:
            self.negatives.look(retriever, items=self.items)
        self._looked = last
