"""Intervals, paired tests and Holm's correction against tables, R and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.statistics import compare, holm, mean_interval

# Student's sleep data, with R's t.test(extra ~ group, data = sleep, paired = TRUE).
DRUG_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
DRUG_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def test_interval_of_five_draws_by_the_table_of_t() -> None:
    low, high = mean_interval([1, 2, 3, 4, 5])
    assert low == pytest.approx(3 - 2.776445 * np.sqrt(2.5 / 5), abs=1e-6)
    assert high == pytest.approx(3 + 2.776445 * np.sqrt(2.5 / 5), abs=1e-6)


def test_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.4, 0.02, (2000, 5))
    held = [low <= 0.4 <= high for low, high in map(mean_interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_one_draw_has_no_interval_and_equal_draws_an_empty_one() -> None:
    assert mean_interval([0.3]) is None
    assert mean_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))


def test_paired_t_test_as_in_r() -> None:
    found = compare(DRUG_1, DRUG_2)
    assert found.difference == pytest.approx(-1.58)
    assert found.interval_95 == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert found.p_t == pytest.approx(0.002833, abs=5e-7)
    assert (found.wins, found.ties, found.losses) == (0, 1, 9)


def test_randomisation_test_is_the_share_of_all_sign_changes() -> None:
    differences = DRUG_1 - DRUG_2 + 0.9  # not as clear a case
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    means = np.abs((signs * differences).mean(axis=1))
    expected = np.mean(means >= abs(differences.mean()) - 1e-12)
    found = compare(differences, np.zeros(10))
    assert 0.01 < expected < 0.9
    assert found.p_randomisation == pytest.approx(expected)


def test_both_tests_agree_on_many_queries() -> None:
    random = np.random.default_rng(1)
    baseline = random.uniform(0, 1, 400)
    system = baseline + random.normal(0.02, 0.2, 400)
    found = compare(system, baseline)
    assert 0.001 < found.p_t < 0.5
    assert found.p_randomisation == pytest.approx(found.p_t, abs=0.02)
    assert compare(system, baseline) == found


def test_no_difference_proves_nothing() -> None:
    same = compare(DRUG_1, DRUG_1 + 1e-12)
    assert (same.difference, same.p_t, same.p_randomisation) == (0, 1, 1)
    assert (same.wins, same.ties, same.losses) == (0, 10, 0)


def test_one_query_proves_nothing() -> None:
    one = compare(np.array([0.9]), np.array([0.1]))
    assert (one.p_t, one.p_randomisation, one.interval_95) == (1, 1, None)
    assert one.wins == 1


def test_holm_as_in_r() -> None:
    # p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    # p.adjust(c(0.04, 0.001, 0.6, 0.013), "holm")
    assert holm([0.04, 0.001, 0.6, 0.013]) == pytest.approx([0.08, 0.004, 0.6, 0.039])
    assert holm([]) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    # A hypothesis is rejected if Bonferroni rejects every intersection that it is part of.
    count = len(p_values)
    subsets = [
        subset for n in range(1, count + 1) for subset in itertools.combinations(range(count), n)
    ]
    expected = [
        max(
            min(1.0, len(subset) * min(p_values[i] for i in subset))
            for subset in subsets
            if own in subset
        )
        for own in range(count)
    ]
    assert holm(p_values) == pytest.approx(expected)
