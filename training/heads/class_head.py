"""A head that says which class a text belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax


@dataclass(frozen=True)
class ClassHead:
    """Class probabilities of unit vectors, ``softmax(vectors @ kernel + bias)``.

    Nearest class mean and logistic regression both are of this form
    (`training.heads.prototype`, `training.heads.logistic`), so that a graph needs one matrix
    product, one sum and one softmax for either.

    Attributes:
        classes: names, ``C`` of them.
        kernel: float32 ``[d, C]``.
        bias: float32 ``[C]``.
    """

    classes: tuple[str, ...]
    kernel: np.ndarray
    bias: np.ndarray

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Class probabilities: float32 ``[N, d]`` to float32 ``[N, C]``."""
        return softmax(vectors @ self.kernel + self.bias, axis=1)
