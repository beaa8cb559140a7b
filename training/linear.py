"""A linear map of frozen embeddings, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from towers.encoding import Progress
from towers.retriever import Retriever
from training.held_out import CandidatePool
from training.interactions import Interactions

# From the identity to maps that hardly hold on to it.
STRENGTHS = (math.inf, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
_FOLDS = 5


@dataclass(frozen=True)
class LinearFit:
    """A map and how it was chosen.

    Attributes:
        kernel: float32 ``[d, d]``; vectors, as rows, are multiplied by it and normalised.
        strength: how firmly it was held to the identity; infinite: it is the identity.
        scores: cross-validated score of each strength.
    """

    kernel: np.ndarray
    strength: float
    scores: dict[float, float]


def query_map(
    queries: np.ndarray, items: np.ndarray, weights: np.ndarray, strength: float
) -> np.ndarray:
    """Ridge regression from queries to their items, held to the identity.

    ``W = argmin sum_i w_i |q_i W - d_i|^2 + strength |W - I|^2`` with weights that sum to 1.

    Args:
        queries: ``[pairs, d]``.
        items: ``[pairs, d]``.
        weights: ``[pairs]``.
        strength: above 0.

    Returns:
        float64 ``[d, d]``.
    """
    identity = np.eye(queries.shape[1])
    if math.isinf(strength):
        return identity
    weighted = (queries * (weights / weights.sum())[:, None]).astype(np.float64)
    moment = weighted.T @ queries
    return np.linalg.solve(moment + strength * identity, weighted.T @ items + strength * identity)


def shared_map(
    queries: np.ndarray, items: np.ndarray, weights: np.ndarray, strength: float
) -> np.ndarray:
    """One map for queries and items: shrinks the directions in which the two of a pair differ.

    ``W = (I + C / strength)^(-1/2)`` with ``C = sum_i w_i (q_i - d_i)^T (q_i - d_i)``: relevant
    component analysis (Bar-Hillel et al. 2005, "Learning a Mahalanobis Metric from Equivalence
    Constraints"), held to the identity.

    Args and result: as of `query_map`.
    """
    difference = (queries - items).astype(np.float64)
    spread = difference.T @ (difference * (weights / weights.sum())[:, None])
    values, vectors = np.linalg.eigh(spread)
    return (vectors / np.sqrt(1.0 + np.maximum(values, 0.0) / strength)) @ vectors.T


def fit_linear(
    retriever: Retriever,
    pairs: Interactions,
    judgements: Interactions,
    item_texts: Sequence[str],
    *,
    shared: bool,
    seed: int = 0,
    progress: Progress | None = None,
) -> LinearFit:
    """Fits a map; cross-validation over queries chooses how firmly it is held to the identity.

    Args:
        retriever: makes the embeddings.
        pairs: positive pairs.
        judgements: judged pairs of the same queries, which the score ranks by.
        item_texts: item text of every catalogue row.
        shared: `shared_map` if true, `query_map` if not.
        seed: decides the folds and the candidates.
        progress: told (steps done, steps in all).
    """
    pool = CandidatePool(judgements, item_texts, seed=seed)
    pool_vectors = retriever.encode_items(pool.texts, progress=progress)
    query_vectors = retriever.encode_queries(pairs.queries)
    q = query_vectors[pairs.query_row]  # [pairs, d]
    d = pool_vectors[np.searchsorted(pool.rows, pairs.item_row)]

    def fit(rows: np.ndarray, strength: float) -> np.ndarray:
        make = shared_map if shared else query_map
        return make(q[rows], d[rows], pairs.weight[rows], strength)

    def score(kernel: np.ndarray, fold: np.ndarray) -> float:
        chosen = {pairs.queries[row] for row in fold.tolist()}
        part = [row for row, query in enumerate(judgements.queries) if query in chosen]
        held_out = judgements.select_queries(part)
        where = {query: row for row, query in enumerate(pairs.queries)}
        vectors = query_vectors[[where[query] for query in held_out.queries]] @ kernel
        items = pool_vectors @ kernel if shared else pool_vectors
        return pool.score_vectors(_unit(vectors), _unit(items), held_out)

    folds = _folds(pairs.queries, seed)
    scores = {math.inf: 0.0}
    if len(folds) > 1:
        for strength in STRENGTHS:
            total = 0.0
            for fold in folds:
                kernel = fit(~np.isin(pairs.query_row, fold), strength)
                total += score(kernel, fold) * len(fold)
            scores[strength] = total / len(pairs.queries)
    best = max(scores, key=lambda strength: (scores[strength], strength))
    return LinearFit(fit(np.ones(len(pairs), bool), best).astype(np.float32), best, scores)


def _folds(queries: Sequence[str], seed: int) -> list[np.ndarray]:
    """Rows of queries, dealt to folds in an order that the order of the file does not decide."""
    order = np.argsort(np.array(queries, dtype=object), kind="stable")
    order = order[np.random.default_rng(seed).permutation(len(queries))]
    return [order[start::_FOLDS] for start in range(min(_FOLDS, len(queries)))]


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
