"""Classes by logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from threadpoolctl import threadpool_limits

from training.heads.class_head import ClassHead

STRENGTHS = tuple(10.0 ** (step / 2) for step in range(-2, 7))
"""Inverse L2 penalties tried, .1 to 1,000: on unit vectors from the class frequencies alone to a
nearly perfect fit."""

_DEFAULT_STRENGTH = 10.0
_FOLDS = 5


def fit_logistic(
    vectors: np.ndarray, label: np.ndarray, classes: Sequence[str], *, seed: int = 0
) -> ClassHead:
    """Multinomial logistic regression; its L2 penalty has the lowest cross-validated log loss.

    Where a class has a single row there is nothing to cross-validate with, and the penalty's
    inverse is 10.

    Args:
        vectors: float32 ``[n, d]``, rows of length one.
        label: int ``[n]``; every class has a row at least.
        classes: names, ``C`` of them, two or more.
        seed: decides the folds.
    """
    rarest = int(np.bincount(label, minlength=len(classes)).min())
    model = LogisticRegression(C=_DEFAULT_STRENGTH, tol=1e-6, max_iter=1000)
    vectors = vectors.astype(np.float64)  # float32 stops well before that
    # Several threads on matrices as small as these wait for each other most of the time.
    with threadpool_limits(1, user_api="blas"):
        if rarest >= 2:
            folds = StratifiedKFold(min(rarest, _FOLDS), shuffle=True, random_state=seed)
            search = GridSearchCV(model, {"C": STRENGTHS}, scoring="neg_log_loss", cv=folds)
            model = search.fit(vectors, label).best_estimator_
        else:
            model.fit(vectors, label)
    kernel, bias = model.coef_, model.intercept_
    if len(classes) == 2:  # one row, of the second class; softmax([0, x]) is sigmoid(x)
        kernel, bias = np.vstack([np.zeros_like(kernel), kernel]), np.append(0.0, bias)
    return ClassHead(tuple(classes), kernel.T.astype(np.float32), bias.astype(np.float32))
