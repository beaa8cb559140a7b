"""What a recommender is to everything that measures or compares one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Scorer(Protocol):
    """Scores every item of a catalogue for users who are known by their histories alone."""

    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores items.

        Args:
            histories: one for each user: rows of the catalogue, int ``[events]``, oldest first; an
                item may come several times, and a history may be empty.

        Returns:
            float32 ``[users, items]``, finite, higher is better. Only the order within a row
            counts. Items of the history are scored like any other: leaving them out is the
            caller's business.
        """
        ...
