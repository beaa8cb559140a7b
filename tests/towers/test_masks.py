"""Masks against plain Python loops over ids."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from towers.losses import accidental_hits, known_positives, same_query


def as_numpy(mask: object) -> np.ndarray:
    result = ops.convert_to_numpy(mask)
    assert result.dtype == np.bool_
    return result


def hits_by_loop(rows: list[tuple[int, ...]], n_queries: int) -> np.ndarray:
    mask = np.zeros((n_queries, len(rows)), bool)
    for i in range(n_queries):
        for j, row in enumerate(rows):
            same = [a for a, b in zip(rows[i], row, strict=True) if a == b and a >= 0]
            mask[i, j] = j != i and bool(same)
    return mask


def test_accidental_hits_by_hand() -> None:
    expected = [
        # item 0, 1, 2, then extra 3, 4
        [False, False, True, False, True],
        [False, False, False, False, False],
        [True, False, False, False, True],
    ]
    mask = as_numpy(accidental_hits(np.array([7, 5, 7, 9, 7]), 3))
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_accidental_hits_in_any_column(columns: int, dtype: str) -> None:
    rng = np.random.default_rng(columns)
    for n_queries, n_candidates in [(1, 1), (6, 6), (6, 11)]:
        ids = rng.integers(-1, 5, (n_candidates, columns)).astype(dtype)
        expected = hits_by_loop([tuple(row) for row in ids.tolist()], n_queries)
        np.testing.assert_array_equal(as_numpy(accidental_hits(ids, n_queries)), expected)


def test_one_column_is_the_same_as_a_vector() -> None:
    ids = np.array([1, 2, 1, 2, 3])
    np.testing.assert_array_equal(
        as_numpy(accidental_hits(ids, 4)), as_numpy(accidental_hits(ids[:, None], 4))
    )


def test_known_positives_by_loop() -> None:
    rng = np.random.default_rng(0)
    candidates = rng.integers(-1, 12, 9)
    positives = rng.integers(-1, 12, (5, 4))
    expected = np.zeros((5, 9), bool)
    for i in range(5):
        known = {int(p) for p in positives[i]} - {-1}
        for j in range(9):
            expected[i, j] = int(candidates[j]) in known
    assert expected.any()
    np.testing.assert_array_equal(as_numpy(known_positives(candidates, positives)), expected)


def test_padding_is_never_a_known_positive() -> None:
    assert not as_numpy(known_positives(np.array([-1, 3]), np.full((2, 3), -1))).any()


def test_same_query_by_hand() -> None:
    mask = as_numpy(same_query(np.array([4, 4, 2, -1, -1]), 7))
    expected = np.zeros((5, 7), bool)
    expected[0, 1] = expected[1, 0] = True
    np.testing.assert_array_equal(mask, expected)
