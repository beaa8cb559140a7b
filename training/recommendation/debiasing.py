"""Recommending less of what is popular anyway, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from towers.errors import InputError
from training.recommendation.baselines import standardised
from training.recommendation.evaluation import evaluate_recommendations
from training.recommendation.scorer import Scorer
from training.recommendation.splits import Cases


class LogQ:
    """Takes a multiple of an item's log-probability off its score: ``score - strength * log q``.

    With strength 1 that makes of the logits of a softmax over the catalogue, ``log p(item | user)``
    up to a constant, the pointwise mutual information of item and user, in which popularity has no
    part; what the same correction does to the logits in training is described by Yi et al. 2019,
    "Sampling-bias-corrected neural modeling". The scale is the scorer's own: for scores that are no
    logits, see `Reranked`.

    Args:
        scorer: whose scores to correct.
        counts: int ``[items]``, how many users took each item; ``q`` is in proportion to
            ``count + 1``.
        strength: 0 changes nothing; below 0 popular items gain.
    """

    def __init__(self, scorer: Scorer, counts: np.ndarray, strength: float) -> None:
        self.scorer = scorer
        self.offset = (strength * np.log((counts + 1) / (counts + 1).sum())).astype(np.float32)

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`."""
        return self.scorer(histories) - self.offset


class Reranked:
    """Re-orders the best of a scorer's items by ``score - strength * log popularity``.

    Both are standardised over these candidates first, so that a strength means the same whatever
    the scorer, and nothing that the scorer thinks little of comes up for being rare alone. Items of
    the user's history are no candidates.

    Args:
        scorer: whose items to re-order.
        counts: int ``[items]``, how many users took each item; popularity is ``count + 1``.
        strength: 0 changes nothing; with 1, log popularity counts as much as the score.
        candidates: items that are re-ordered, those with the best scores; the others stay below.
    """

    def __init__(
        self, scorer: Scorer, counts: np.ndarray, strength: float, *, candidates: int = 100
    ) -> None:
        if candidates < 1:
            raise InputError(f"the number of candidates is {candidates}, expected 1 or more")
        self.scorer = scorer
        self.log_popularity = np.log(counts + 1.0).astype(np.float32)
        self.strength = np.float32(strength)
        self.candidates = candidates

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items, see `Scorer`."""
        scores = self.scorer(histories)
        unseen = np.array(scores)
        for user, history in enumerate(histories):
            unseen[user, history] = -np.inf
        best = np.argsort(-unseen, axis=1, kind="stable")[:, : self.candidates]
        new = standardised(np.take_along_axis(scores, best, axis=1)) - self.strength * standardised(
            self.log_popularity[best]
        )
        # The others keep their order, from the least candidate downwards.
        least, most = new.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
        scores = least + (scores - most) - 1
        np.put_along_axis(scores, best, new, axis=1)
        return scores


def trade_off(
    debiased: Callable[[float], Scorer],
    strengths: Sequence[float],
    cases: Cases,
    counts: np.ndarray,
    *,
    trained_users: int,
    k: int = 10,
    items: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """What each strength of a correction gives and takes.

    Args:
        debiased: makes the scorer of a strength, such as
            ``lambda strength: Reranked(scorer, counts, strength)``.
        strengths: the points of the curve.
        cases: see `evaluate_recommendations`.
        counts: likewise.
        trained_users: likewise.
        k: length of the lists.
        items: see `evaluate_recommendations`.

    Returns:
        For each strength: ``strength``, ``R@k``, ``nDCG@k``, ``R@k tail``, ``Popularity@k`` and
        ``Novelty@k``, with `items` ``Diversity@k``, all means over users, None where a measure says
        nothing of any; and ``Coverage@k`` and ``Gini@k``.
    """
    curve = []
    for strength in strengths:
        evaluation = evaluate_recommendations(
            debiased(strength),
            cases,
            counts,
            trained_users=trained_users,
            cutoffs=(k,),
            items=items,
        )
        names = (f"{name}@{k}" for name in ("R", "nDCG", "Popularity", "Novelty", "Diversity"))
        means = {
            name: estimate.mean if (estimate := evaluation.estimate(name)) else None
            for name in (*names, f"R@{k} tail")
            if name in evaluation.per_user
        }
        curve.append({"strength": strength, **means, **evaluation.catalog})
    return curve
