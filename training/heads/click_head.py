"""A head that says how likely a click is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from towers.errors import InputError
from training.heads.cross_validation import Split

STRENGTHS = tuple(10.0**step for step in range(-4, 4))
"""Inverse L2 penalties tried."""

MIN_ROWS = 5
"""A value of a category that fewer rows have says nothing."""

_FOLDS = 5


@dataclass(frozen=True)
class PairFeatures:
    """What is known of (query, item) pairs.

    Attributes:
        numeric: float64 ``[n]`` by name, NaN where a pair has no value.
        categorical: ``n`` values by name, None where a pair has none.
    """

    numeric: Mapping[str, np.ndarray]
    categorical: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.numeric.values())))

    def select(self, rows: np.ndarray) -> PairFeatures:
        """Some of the pairs: int ``[..]``."""
        return PairFeatures(
            {name: values[rows] for name, values in self.numeric.items()},
            {name: [values[row] for row in rows] for name, values in self.categorical.items()},
        )


@dataclass(frozen=True)
class ClickHead:
    """Click probability, ``sigmoid(bias + sum of weight * feature)``.

    A missing number counts as the mean of those that were fitted on, and a missing or unknown
    category adds nothing.

    Attributes:
        bias: of the sum.
        numeric: weight and mean of each numeric feature, by name.
        categorical: what each value of each categorical feature adds, by name and value.
    """

    bias: float
    numeric: Mapping[str, tuple[float, float]]
    categorical: Mapping[str, Mapping[str, float]]

    def probabilities(self, features: PairFeatures) -> np.ndarray:
        """Click probabilities, float64 ``[n]``.

        Raises:
            InputError: a feature is missing.
        """
        missing = [name for name in self.numeric if name not in features.numeric]
        missing += [name for name in self.categorical if name not in features.categorical]
        if missing:
            raise InputError(f"the click head needs the feature(s) {', '.join(missing)}")
        logits = np.full(len(features), self.bias)
        for name, (weight, mean) in self.numeric.items():
            values = features.numeric[name]
            logits += weight * np.where(np.isnan(values), mean, values)
        for name, by_value in self.categorical.items():
            logits += [by_value.get(value or "", 0.0) for value in features.categorical[name]]
        return expit(logits)

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "bias": self.bias,
            "numeric": {
                name: {"weight": weight, "mean": mean}
                for name, (weight, mean) in self.numeric.items()
            },
            "categorical": {name: dict(values) for name, values in self.categorical.items()},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ClickHead:
        """Rebuilds what `as_dict` made.

        Raises:
            KeyError, TypeError: the record is not one of its.
        """
        numeric = record["numeric"].items()
        return cls(
            bias=float(record["bias"]),
            numeric={name: (float(term["weight"]), float(term["mean"])) for name, term in numeric},
            categorical={
                name: {value: float(weight) for value, weight in values.items()}
                for name, values in record["categorical"].items()
            },
        )


def fit_click_head(
    features: PairFeatures,
    clicked: np.ndarray,
    query: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> ClickHead:
    """Logistic regression, calibrated on pairs that it was not fitted on.

    Folds by query choose the L2 penalty by log loss. The log-odds that their models give to the
    pairs of the queries left out are then brought in line with the clicks by slope and intercept
    (Platt 2000), which go into the weights of the head that is fitted on all pairs.

    Args:
        features: of the pairs, at least one of them numeric.
        clicked: bool ``[n]``.
        query: int ``[n]``, the query of each pair.
        weight: floating ``[n]``, above 0; 1 each if None.
        seed: decides the folds.

    Raises:
        InputError: there are too few queries with a click, or with an item that got none.
    """
    columns, means, scales, values = _design(features)
    folds = query_folds(clicked, query, _FOLDS, seed=seed)
    model = LogisticRegression(max_iter=1000)
    with threadpool_limits(1, user_api="blas"):  # see `fit_logistic`
        search = GridSearchCV(model, {"C": STRENGTHS}, scoring="neg_log_loss", cv=folds)
        best = search.fit(columns, clicked, sample_weight=weight).best_estimator_
        calibrated = CalibratedClassifierCV(best, method="sigmoid", cv=folds, ensemble=False)
        calibrated.fit(columns, clicked, sample_weight=weight)
    (result,) = calibrated.calibrated_classifiers_
    (platt,) = result.calibrators
    # The calibrated probability is sigmoid(-(a * log-odds + b)).
    weights = -platt.a_ * result.estimator.coef_[0] / scales
    bias = -(platt.a_ * float(result.estimator.intercept_[0]) + platt.b_) - weights @ means

    at = len(features.numeric)
    categorical: dict[str, dict[str, float]] = {}
    for name, known in values.items():
        categorical[name] = dict(zip(known, weights[at : at + len(known)].tolist(), strict=True))
        at += len(known)
    return ClickHead(
        bias=float(bias),
        numeric={
            name: (float(weights[n]), float(means[n])) for n, name in enumerate(features.numeric)
        },
        categorical=categorical,
    )


def query_folds(clicked: np.ndarray, query: np.ndarray, folds: int, *, seed: int) -> list[Split]:
    """Folds that no query is on both sides of, with about equal shares of clicks.

    Args:
        clicked: bool ``[n]``.
        query: int ``[n]``.
        folds: 2 or more; fewer come back where there are too few queries.
        seed: decides them.

    Raises:
        InputError: there are not enough queries for two folds with clicks and without.
    """
    ends = [len(np.unique(query[clicked])), len(np.unique(query[~clicked]))]
    if (most := min(folds, *ends)) >= 2:
        splitter = StratifiedGroupKFold(most, shuffle=True, random_state=seed)
        splits = list(splitter.split(clicked[:, None], clicked, groups=query))
        if all(len(np.unique(clicked[side])) == 2 for split in splits for side in split):
            return splits
    raise InputError(
        f"too few judged pairs for a click probability: queries with a click: {ends[0]}, queries "
        f"with an item that got none: {ends[1]}; dozens of both are needed"
    )


def _design(
    features: PairFeatures,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, list[str]]]:
    """Features as columns: standardised numbers, then 0 or 1 for each value of each category.

    Returns:
        The columns ``[n, f]``; what was subtracted from each and what it was then divided by,
        ``[f]``; the values of each category.
    """
    numeric = np.stack(list(features.numeric.values()), axis=1).astype(np.float64)
    known = ~np.isnan(numeric)
    count = np.maximum(known.sum(axis=0), 1)
    means = np.where(known, numeric, 0).sum(axis=0) / count
    centred = np.where(known, numeric - means, 0)
    scales = np.sqrt(np.square(centred).sum(axis=0) / count)
    scales[scales == 0] = 1.0
    columns = [centred / scales]
    values: dict[str, list[str]] = {}
    for name, column in features.categorical.items():
        texts = np.array([value or "" for value in column])
        found, counts = np.unique(texts, return_counts=True)
        values[name] = found[(counts >= MIN_ROWS) & (found != "")].tolist()
        columns.append((texts[:, None] == np.array(values[name], texts.dtype)).astype(np.float64))
    width = sum(map(len, values.values()))
    return (
        np.concatenate(columns, axis=1),
        np.append(means, np.zeros(width)),
        np.append(scales, np.ones(width)),
        values,
    )
