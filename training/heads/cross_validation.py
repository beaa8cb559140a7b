"""Cross-validation of heads: fitted on some rows, measured on others, several times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from towers.encoding import Progress
from training.heads.measures import (
    ReliabilityBin,
    Repeated,
    confidence,
    measure,
    reliability_bins,
)

Split = tuple[np.ndarray, np.ndarray]
"""Rows to fit on and rows to measure on, int ``[..]`` each."""

Predictor = Callable[[np.ndarray], np.ndarray]
"""From rows, int ``[n]``, to class probabilities, floating ``[n, C]``."""


@dataclass(frozen=True)
class Quality:
    """What cross-validation found.

    Attributes:
        measures: each of `training.heads.measures.measure`.
        reliability: of all predictions on rows that were not fitted on.
        rows: number of these predictions.
    """

    measures: dict[str, Repeated]
    reliability: list[ReliabilityBin]
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)


def cross_validate(
    fit: Callable[[np.ndarray], Predictor],
    label: np.ndarray,
    splits: Sequence[Split],
    *,
    weight: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Fits and measures once a split.

    Args:
        fit: from the rows to fit on to a predictor.
        label: int ``[rows]``, the class of each row.
        splits: at least one.
        weight: floating ``[rows]``, how much a row counts in the measures; 1 each if None.
        progress: told (splits done, splits in all).
    """
    found: list[dict[str, float]] = []
    probabilities = []
    for done, (train, test) in enumerate(splits, 1):
        probabilities.append(fit(train)(test))
        found.append(
            measure(probabilities[-1], label[test], None if weight is None else weight[test])
        )
        if progress is not None:
            progress(done, len(splits))
    tested = np.concatenate([test for _, test in splits])
    certainty, came_true = confidence(np.concatenate(probabilities), label[tested])
    return Quality(
        measures={
            name: Repeated.of([one[name] for one in found])
            for name in found[0]
            if all(name in one for one in found)
        },
        reliability=reliability_bins(
            certainty, came_true, None if weight is None else weight[tested]
        ),
        rows=len(tested),
    )
