"""How good predicted probabilities are: right or wrong, in which order, and how well calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of about the same probability, and how often they came true.

    Attributes:
        predicted: mean probability.
        observed: share that came true.
        weight: total weight of the predictions; their number where all weigh 1.
    """

    predicted: float
    observed: float
    weight: float


def reliability_bins(
    probability: np.ndarray, came_true: np.ndarray, weight: np.ndarray | None = None
) -> list[ReliabilityBin]:
    """Groups predictions into ten bins of equal width (Niculescu-Mizil & Caruana 2005).

    Args:
        probability: floating ``[n]``, from 0 to 1.
        came_true: bool ``[n]``.
        weight: floating ``[n]``; 1 each if None.

    Returns:
        The bins that are not empty, in order of probability.
    """
    weight = np.ones(len(probability)) if weight is None else weight
    place = np.minimum((probability * BINS).astype(int), BINS - 1)  # [n]
    total, predicted, observed = (
        np.bincount(place, weight * value, BINS) for value in (1.0, probability, came_true)
    )
    return [
        ReliabilityBin(
            float(predicted[b] / total[b]), float(observed[b] / total[b]), float(total[b])
        )
        for b in np.flatnonzero(total)
    ]


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance of predicted and observed over all predictions (Naeini et al. 2015)."""
    distance = sum(one.weight * abs(one.predicted - one.observed) for one in bins)
    return distance / sum(one.weight for one in bins)


def confidence(probabilities: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What calibration is asked of: with two classes the second one, else the likeliest one.

    Args:
        probabilities: floating ``[n, C]``.
        label: int ``[n]``, the true class.

    Returns:
        Probabilities floating ``[n]``, and whether they came true, bool ``[n]``.
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], label == 1
    best = probabilities.argmax(axis=1)
    return probabilities[np.arange(len(best)), best], label == best


def measure(
    probabilities: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, float]:
    """All measures of a set of predictions.

    Args:
        probabilities: floating ``[n, C]``, rows that add up to 1.
        label: int ``[n]``, the true class of each, from 0 to C - 1.
        weight: floating ``[n]``; 1 each if None.

    Returns:
        ``accuracy``; ``macro_f1``, the mean over the classes that occur or are predicted; ``auc``,
        with more than two classes the mean of each against the rest, over those that some of the
        rows have and some have not, and left out if there are none; ``log_loss`` in nats; ``ece``,
        the expected calibration error of `confidence`.
    """
    predicted = probabilities.argmax(axis=1)
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [
        roc_auc_score(label == one, probabilities[:, one], sample_weight=weight)
        for one in classes
        if 0 < np.count_nonzero(label == one) < len(label)
    ]
    numbers = range(probabilities.shape[1])
    bins = reliability_bins(*confidence(probabilities, label), weight)
    values = {
        "accuracy": accuracy_score(label, predicted, sample_weight=weight),
        "macro_f1": f1_score(label, predicted, average="macro", sample_weight=weight),
        **({"auc": np.mean(areas)} if areas else {}),
        "log_loss": log_loss(label, probabilities, labels=numbers, sample_weight=weight),
        "ece": expected_calibration_error(bins),
    }
    return {name: float(value) for name, value in values.items()}


@dataclass(frozen=True)
class Repeated:
    """A measure taken several times: on several folds, or after draws with several seeds.

    Attributes:
        mean: of the values.
        interval_95: Student's t interval of the mean; None for a single value. Folds share most of
            their training data, which makes it somewhat too narrow (Bengio & Grandvalet 2004).
        values: one a fold or seed.
    """

    mean: float
    interval_95: tuple[float, float] | None
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Repeated:
        """Summarises at least one value."""
        mean, n = float(np.mean(values)), len(values)
        if n == 1:
            return cls(mean, None, list(values))
        reach = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        return cls(mean, (mean - reach, mean + reach), list(values))

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)
