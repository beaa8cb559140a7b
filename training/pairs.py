"""What training needs of pairs, whoever made them."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Pairs(Protocol):
    """Positive pairs: `training.interactions.Interactions`, or those made of a catalogue.

    Attributes:
        queries: distinct texts.
        query_row: int32 ``[pairs]``, index into `queries`.
        item_row: int32 ``[pairs]``, index into the item texts.
        grade: int32 ``[pairs]``, 1 or more.
        weight: float32 ``[pairs]``, above 0.
    """

    @property
    def queries(self) -> list[str]: ...  # noqa: D102

    @property
    def query_row(self) -> np.ndarray: ...  # noqa: D102

    @property
    def item_row(self) -> np.ndarray: ...  # noqa: D102

    @property
    def grade(self) -> np.ndarray: ...  # noqa: D102

    @property
    def weight(self) -> np.ndarray: ...  # noqa: D102

    def __len__(self) -> int: ...
