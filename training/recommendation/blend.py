"""How much each part of the score counts: softmax regression on users that no part has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

_L2 = 1e-3
_EXAMPLES_AT_A_TIME = 256


def fit_blend(
    parts: Sequence[np.ndarray], target: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, float]:
    """Weights that make the item that came next the likeliest of the candidates.

    A conditional logit (McFadden 1974): `P(j) = softmax_j(sum_f w_f x_f[j])` over the candidates
    that were not seen, weights of 0 and more, fitted by maximum likelihood with a small ridge on
    the weights of the standardised parts.

    Args:
        parts: float32 `[users, candidates]` each, scores of the same candidates.
        target: int `[users]`, the candidate that came next.
        seen: bool `[users, candidates]`, candidates that are not offered; a user whose target is
            one of them does not count.

    Returns:
        The weights, float64 `[parts]`, and the mean log likelihood with them; all zeros where no
        user counts.
    """
    scale = np.array([max(float(part.std()), 1e-12) for part in parts])
    counts = ~seen[np.arange(len(target)), target]
    users = np.flatnonzero(counts)
    if not len(users):
        return np.zeros(len(parts)), 0.0

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = 0.0, np.zeros(len(parts))
        for start in range(0, len(users), _EXAMPLES_AT_A_TIME):
            some = users[start : start + _EXAMPLES_AT_A_TIME]
            at = np.arange(len(some)), target[some]
            features = [part[some] / np.float32(s) for part, s in zip(parts, scale, strict=True)]
            logits = sum(np.float32(w) * x for w, x in zip(weights, features, strict=True))
            logits = np.where(seen[some], -np.inf, logits)
            logits -= logits.max(axis=1, keepdims=True)
            chance = np.exp(logits)
            total = chance.sum(axis=1)
            loss += float((np.log(total) - logits[at]).sum())
            chance /= total[:, None]
            slope += [float(np.vdot(chance, x) - x[at].sum()) for x in features]
        penalty = _L2 * float(weights @ weights)
        return loss / len(users) + penalty, slope / len(users) + 2 * _L2 * weights

    found = minimize(
        objective,
        np.full(len(parts), 0.3),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * len(parts),
        options={"maxiter": 40},
    )
    return found.x / scale, -float(objective(found.x)[0] - _L2 * float(found.x @ found.x))
