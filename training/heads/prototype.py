"""Classes by the nearest mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from training.heads.class_head import ClassHead

# Where no class has two rows nothing can be learned about the scale: the inverse of the temperature
# that the towers are trained with.
_DEFAULT_SCALE = 20.0
_LOG_SCALES = (np.log(1.0), np.log(200.0))


def fit_prototype(vectors: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> ClassHead:
    """A head that scores a class by the cosine to the mean of its vectors.

    Snell et al. 2017, "Prototypical networks for few-shot learning", with cosines instead of
    distances and no training of the encoder. Cosines become probabilities by a softmax with a
    scale, under which the labels are likeliest when each row is left out of its own class's mean.

    Args:
        vectors: float32 ``[n, d]``, rows of length one.
        label: int ``[n]``; every class has a row at least.
        classes: names, ``C`` of them.
    """
    sums = np.zeros((len(classes), vectors.shape[1]))
    np.add.at(sums, label, vectors)
    prototypes = _unit(sums)  # [C, d]
    scale = _likeliest_scale(_left_out_cosines(vectors, label, sums, prototypes), label)
    return ClassHead(
        tuple(classes),
        (scale * prototypes.T).astype(np.float32),
        np.zeros(len(classes), np.float32),
    )


def _left_out_cosines(
    vectors: np.ndarray, label: np.ndarray, sums: np.ndarray, prototypes: np.ndarray
) -> np.ndarray:
    """Cosines to the class means as they are without the row itself: ``[n, C]``.

    A row that is all of its class has NaN there.
    """
    cosines = vectors @ prototypes.T
    own = np.arange(len(label)), label
    others = sums[label] - vectors
    alone = np.bincount(label, minlength=len(sums))[label] == 1
    cosines[own] = np.where(alone, np.nan, (_unit(others) * vectors).sum(axis=1))
    return cosines


def _likeliest_scale(cosines: np.ndarray, label: np.ndarray) -> float:
    known = np.isfinite(cosines).all(axis=1)
    if not known.any():
        return _DEFAULT_SCALE
    cosines, own = cosines[known], (np.arange(known.sum()), label[known])
    result = minimize_scalar(
        lambda log_scale: -log_softmax(np.exp(log_scale) * cosines, axis=1)[own].mean(),
        bounds=_LOG_SCALES,
        method="bounded",
    )
    return float(np.exp(result.x))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
