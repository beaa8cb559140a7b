"""Where the item that came next stands among all that were not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def next_ranks(scores: np.ndarray, seen: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
    """Ranks of the targets, from 0, the seen items left out; ties count half.

    Args:
        scores: float `[users, items]`.
        seen: rows of items of each user.
        target: int `[users]`.

    Returns:
        float64 `[users]`; NaN where the target was seen, so that it is not offered.
    """
    users = np.arange(len(target))
    scores = scores.copy()
    for user, rows in enumerate(seen):
        scores[user, rows] = -np.inf
    own = scores[users, target][:, None]
    above = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return np.where(np.isfinite(own[:, 0]), above, np.nan)
