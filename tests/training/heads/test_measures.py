"""Measures of probabilities against hand-worked cases, formulas and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from training.heads.cross_validation import cross_validate
from training.heads.measures import (
    Repeated,
    confidence,
    expected_calibration_error,
    measure,
    reliability_bins,
)


def test_bins_are_those_of_a_calibration_curve() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=500)
    came_true = rng.uniform(size=500) < probability**2
    observed, predicted = calibration_curve(came_true, probability, n_bins=10)
    bins = reliability_bins(probability, came_true)
    np.testing.assert_allclose([one.observed for one in bins], observed)
    np.testing.assert_allclose([one.predicted for one in bins], predicted)
    assert sum(one.weight for one in bins) == 500


def test_calibration_error_by_hand() -> None:
    probability = np.array([0.0, 0.04, 0.72, 0.78, 0.75, 1.0])
    came_true = np.array([0, 1, 1, 0, 1, 1], bool)
    # Bins 0 (.02 against 1/2), 7 (.75 against 2/3) and 9 (1 against 1).
    bins = reliability_bins(probability, came_true)
    assert [one.weight for one in bins] == [2, 3, 1]
    expected = (2 * 0.48 + 3 * (0.75 - 2 / 3) + 0) / 6
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_measures_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]])
    label = np.array([0, 1, 2, 0])
    found = measure(probabilities, label)
    assert found["accuracy"] == 0.75
    # F1: class 0 has precision 2/3 and recall 1, class 1 is never found, class 2 is perfect.
    assert found["macro_f1"] == pytest.approx((0.8 + 0 + 1) / 3)
    # Pairs in order: class 0 3 of 4 (.4 is below .5), class 1 2.5 of 3 (a tie), class 2 3 of 3.
    assert found["auc"] == pytest.approx((3 / 4 + 2.5 / 3 + 1) / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.4]).mean())
    # Confidences .7 right, .5 wrong, .8 right, .4 right, each in a bin of its own.
    assert found["ece"] == pytest.approx((0.3 + 0.5 + 0.2 + 0.6) / 4)


def test_several_classes_as_one_against_the_rest() -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(4, size=200)
    probabilities = rng.dirichlet(np.ones(4), size=200)
    expected = roc_auc_score(label, probabilities, multi_class="ovr", average="macro")
    assert measure(probabilities, label)["auc"] == pytest.approx(expected)


def test_two_classes_are_judged_by_the_second() -> None:
    probability = np.array([0.1, 0.4, 0.35, 0.8])
    label = np.array([0, 0, 1, 1])
    both = np.stack([1 - probability, probability], axis=1)
    certainty, came_true = confidence(both, label)
    np.testing.assert_array_equal(certainty, probability)
    np.testing.assert_array_equal(came_true, label == 1)
    assert measure(both, label)["auc"] == 0.75  # 3 of 4 pairs in order


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(2)
    label, probabilities = rng.integers(3, size=60), rng.dirichlet(np.ones(3), size=60)
    weight = rng.integers(1, 4, size=60)
    rows = np.repeat(np.arange(60), weight)
    weighted, repeated = (
        measure(probabilities, label, weight.astype(float)),
        measure(probabilities[rows], label[rows]),
    )
    assert weighted == pytest.approx(repeated)


def test_without_two_classes_there_is_no_auc() -> None:
    found = measure(np.array([[0.4, 0.6], [0.2, 0.8]]), np.array([1, 1]))
    assert "auc" not in found
    assert found["accuracy"] == 1


def test_interval_is_students() -> None:
    values = [0.71, 0.74, 0.69, 0.73, 0.78]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = Repeated.of(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.interval_95 == pytest.approx((expected.low, expected.high))
    assert Repeated.of([0.5]).interval_95 is None


def test_cross_validation_measures_what_was_not_fitted_on() -> None:
    label = np.array([0, 1, 0, 1, 1, 0])
    splits = [(np.array([2, 3, 4, 5]), np.array([0, 1])), (np.array([0, 1]), np.array([4, 5]))]
    fitted: list[list[int]] = []

    def fit(rows: np.ndarray):
        fitted.append(rows.tolist())
        certainty = 0.9 if len(fitted) == 1 else 0.3
        return lambda others: np.where(np.eye(2)[label[others]] > 0, certainty, 1 - certainty)

    quality = cross_validate(fit, label, splits)
    assert fitted == [[2, 3, 4, 5], [0, 1]]
    assert quality.measures["accuracy"].values == [1.0, 0.0]
    assert quality.measures["log_loss"].mean == pytest.approx(-(np.log(0.9) + np.log(0.3)) / 2)
    assert quality.rows == 4
    assert [(one.predicted, one.observed) for one in quality.reliability] == [
        (pytest.approx(p), observed) for p, observed in [(0.1, 0), (0.3, 1), (0.7, 0), (0.9, 1)]
    ]
