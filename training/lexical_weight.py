"""How much the words count: the lexical weight that the shots speak for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from towers.encoding import Progress, fast_dtype, part_of
from towers.retriever import Retriever
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.metrics import ideal_dcg_at_k, ndcg_at_k
from training.query_parts import query_parts

LexicalScorer = Callable[[Sequence[str]], np.ndarray]
"""From queries to the lexical score of every item, float32 ``[queries, items]``, 0 or more, with 1
for a query's best item; all 0 where no item shares a word with the query."""

PRIOR_WEIGHT = 0.25
"""The weight without any shot: it helped on all validation queries looked at; docs/lexical.md."""

# Chosen on Home Depot's and the sample shop's validation queries and ESCI's train queries, never on
# test queries; docs/lexical.md has what else was tried.
_TEMPERATURE = 0.07
_PRIOR_SPREAD = 0.1
_WEIGHTS = np.arange(21) / 20
CANDIDATES = 5_000
"""Items that queries are ranked against."""
_MAX_QUERIES = 1_000


@dataclass(frozen=True)
class LexicalChoice:
    """The weight of the lexical score, and why.

    Attributes:
        weight: from 0 (the towers alone) to 1 (words alone).
        reason: one line for people.
        queries: shot queries behind the choice.
        candidates: items that each of them was ranked against.
        ndcg: nDCG@10 of those queries among those items, by weight.
    """

    weight: float
    reason: str
    queries: int = 0
    candidates: int = 0
    ndcg: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)


def choose_lexical_weight(
    retriever: Retriever,
    shots: Interactions | None,
    item_texts: Sequence[str],
    lexical_scores: LexicalScorer,
    *,
    adapted: Retriever | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LexicalChoice:
    """Chooses the weight ``w`` of ``(1 - w) * cosine + w * lexical`` from the shots.

    Trained towers find the items of the shots better than those of any other query: by them alone
    the words would count too little, and by the towers before training too much. So both are
    asked, and weighed equally.

    Queries are ranked against all items of the shots and random ones, 5,000 in all: more would
    take long to encode, and more of them would be relevant without anybody having said so.

    Args:
        retriever: the towers before training.
        shots: positive pairs; None or none of them gives `PRIOR_WEIGHT`.
        item_texts: item text of every catalogue row.
        lexical_scores: the lexical score as an export computes it.
        adapted: the towers after training on the shots; None where nothing was trained.
        seed: decides the random items, and the queries looked at where there are over 1,000.
        progress: told about encoding the items.
    """
    if shots is None or not len(shots):
        return LexicalChoice(PRIOR_WEIGHT, "no shots to choose it from")
    queries = np.random.default_rng(seed).permutation(len(shots.queries))[:_MAX_QUERIES]
    shots = shots.select_queries(queries)
    pool = CandidatePool(shots, item_texts, size=CANDIDATES, seed=seed)
    towers = [retriever] if adapted is None else [retriever, adapted]
    cosines = [  # [queries, candidates] each
        _cosine(one, shots.queries, pool.texts, part_of(progress, place, len(towers)))
        for place, one in enumerate(towers)
    ]
    lexical = np.empty_like(cosines[0])
    for part in query_parts(len(lexical)):
        lexical[part] = lexical_scores(shots.queries[part])[:, pool.rows]
    gains = np.zeros_like(lexical)
    gains[shots.query_row, np.searchsorted(pool.rows, shots.item_row)] = shots.grade

    weight = likeliest_weight(cosines, lexical, gains > 0)
    ndcg = {
        w: float(ndcg_by_query(fused(cosines[0], lexical, w), gains).mean())
        for w in sorted({0.0, weight, 1.0})
    }
    count = len(shots.queries)
    return LexicalChoice(
        weight=weight,
        reason=(
            f"nDCG@10 on {count:,} shot {'queries' if count > 1 else 'query'} among "
            f"{len(pool.rows):,} items{' before training' if adapted else ''} {ndcg[weight]:.3f}, "
            f"{ndcg[0.0]:.3f} at weight 0, {ndcg[1.0]:.3f} at 1"
        ),
        queries=count,
        candidates=len(pool.rows),
        ndcg={f"{w:g}": value for w, value in ndcg.items()},
    )


def likeliest_weight(
    cosines: Sequence[np.ndarray], lexical: np.ndarray, positive: np.ndarray
) -> float:
    """The weight under which the positives are likeliest, drawn towards `PRIOR_WEIGHT`.

    A positive has the probability of the softmax over itself and all items that are no positive of
    its query (conditional logit, McFadden 1974). The logarithms are averaged over a query's
    positives and over towers, and added up over queries; to that comes a Gaussian prior of the
    weight. Unlike a measure of the first ten ranks that says something at every query, so that
    eight are enough.

    Args:
        cosines: ``[queries, items]`` by each of some towers.
        lexical: ``[queries, items]``, see `LexicalScorer`.
        positive: bool ``[queries, items]``, at least one in each row.

    Returns:
        A multiple of .05 from 0 to 1.
    """
    log_posterior = -((_WEIGHTS - PRIOR_WEIGHT) ** 2) / (2 * _PRIOR_SPREAD**2)
    for place, weight in enumerate(_WEIGHTS):
        by_towers = [log_likelihood(fused(one, lexical, weight), positive) for one in cosines]
        log_posterior[place] += np.mean(by_towers, axis=0).sum()
    return float(_WEIGHTS[int(np.argmax(log_posterior))])


def log_likelihood(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Mean log-probability of each query's positives, ``[queries]``; see `likeliest_weight`."""
    logits = scores / _TEMPERATURE
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))  # [queries, items]
    others = np.where(positive, 0, exponentials).sum(axis=1, dtype=np.float64)
    # Where an exponential is 0, the item is out of sight: no more than the least float32 then.
    exponentials = np.maximum(exponentials, np.finfo(np.float32).tiny)
    log_probability = np.log(exponentials) - np.log(exponentials + others[:, None])
    return np.where(positive, log_probability, 0).sum(axis=1) / positive.sum(axis=1)


def fused(cosine: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    """The score that an export ranks by; weight 0 is the cosine."""
    return (1 - weight) * cosine + weight * lexical


def _cosine(
    retriever: Retriever, queries: Sequence[str], items: Sequence[str], progress: Progress | None
) -> np.ndarray:
    vectors = retriever.encode_items(items, dtype=fast_dtype(), progress=progress)
    return retriever.encode_queries(queries) @ vectors.T


def ndcg_by_query(scores: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """nDCG@10, ``[queries]``; ties to the earlier item.

    Args:
        scores: ``[queries, items]``.
        gains: ``[queries, items]``, 0 where an item is not relevant.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    query, item = np.nonzero(gains)
    ideal = ideal_dcg_at_k(query, gains[query, item], len(gains), 10)
    return ndcg_at_k(np.take_along_axis(gains, best, axis=1), ideal, 10)
