"""How much each part of the score counts, by users that no part has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize, minimize_scalar

_L2 = 1e-3
_EXAMPLES_AT_A_TIME = 256
_FACTORS = (0.0, 0.25, 0.5, 0.7, 1.4, 2.0, 4.0)
_SWEEPS = 3
_CUTOFF = 10


def choose_blend(
    parts: Sequence[np.ndarray], target: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, float]:
    """Weights that put the item that came next on top, on a scale that makes them logits.

    The likeliest weights (`fit_blend`) are drawn to users whose next item nothing could have told:
    for these, popularity is the best guess, and it costs places at the top for all others. So from
    there a coordinate search takes the weights with the best nDCG@10, and their common scale is
    then the likeliest one.

    Args and result: as of `fit_blend`.
    """
    weights, _ = fit_blend(parts, target, seen)
    counts = ~seen[np.arange(len(target)), target]
    users = np.flatnonzero(counts)
    if not len(users):
        return weights, 0.0
    parts = [part[users] for part in parts]
    target, seen = target[users], seen[users]

    def quality(weights: np.ndarray) -> float:
        ranks = _ranks(_logits(parts, weights, seen), target)
        return float(np.where(ranks < _CUTOFF, 1 / np.log2(ranks + 2), 0.0).mean())

    # Of a part that nobody needed by likelihood, something like the others' share is tried.
    spread = np.array([max(float(part.std()), 1e-12) for part in parts])
    least = 0.1 * float((weights * spread).max())
    best = quality(weights)
    for _ in range(_SWEEPS):
        before = best
        for number in range(len(parts)):
            start = max(weights[number], least / spread[number])
            for factor in _FACTORS:
                trial = weights.copy()
                trial[number] = factor * start
                if trial.any() and (found := quality(trial)) > best:
                    best, weights = found, trial
        if best == before:
            break

    def loss(log_scale: float) -> float:
        return -_log_likelihood(_logits(parts, np.exp(log_scale) * weights, seen), target)

    scale = float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
    return scale * weights, -loss(np.log(scale))


def _logits(parts: Sequence[np.ndarray], weights: np.ndarray, seen: np.ndarray) -> np.ndarray:
    logits = np.zeros(seen.shape, np.float32)
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            logits += np.float32(weight) * part
    logits[seen] = -np.inf
    return logits


def _ranks(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Ranks of the targets from 0; ties count half."""
    own = logits[np.arange(len(target)), target][:, None]
    return (logits > own).sum(axis=1) + ((logits == own).sum(axis=1) - 1) / 2


def _log_likelihood(logits: np.ndarray, target: np.ndarray) -> float:
    own = logits[np.arange(len(target)), target]
    most = logits.max(axis=1)
    total = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
    return float((own - total).mean())


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
