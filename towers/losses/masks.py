"""Masks over the in-batch candidates: which of them are not to be called negatives of a query.

Masks are bool `[B, C]`, true where candidate `j` must not count as a negative of query `i`, and
are joined with `|` into the `ignored` argument of `in_batch_softmax`. Rows `0..B-1` of the
candidates are the queries' own positives, rows `B..C-1` extra negatives.

Ids are integers. A negative id means "no id" (padding, an item without text) and matches nothing.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def same_item(row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """Marks pairs of candidates that are the same item.

    Args:
        row_ids: int `[R]`, or `[R, n]` for `n` kinds of id: equal in any kind counts.
        column_ids: int `[C]`, or `[C, n]`.

    Returns:
        bool `[R, C]`.
    """
    rows, columns = (
        ops.reshape(ids, (ops.shape(ids)[0], -1))
        for ids in (ops.convert_to_tensor(row_ids), ops.convert_to_tensor(column_ids))
    )
    own = ops.expand_dims(rows, 1)  # [R, 1, n]
    return ops.any((own == ops.expand_dims(columns, 0)) & (own >= 0), axis=-1)


def accidental_hits(candidate_ids: Tensor, n_queries: int | Tensor) -> Tensor:
    """Marks candidates that are a query's own item once more.

    Two pairs of one batch often share their item, and an extra negative may be some query's
    positive; counting that item as a negative pushes a true pair apart.

    Args:
        candidate_ids: int `[C]`, or `[C, n]` for `n` kinds of id (say the item's id and an id of
            its text): a hit in any column counts.
        n_queries: `B`, at most `C`.

    Returns:
        bool `[B, C]`, false on the diagonal.
    """
    ids = ops.convert_to_tensor(candidate_ids)
    return same_item(ids[:n_queries], ids) & ~ops.eye(n_queries, ops.shape(ids)[0], dtype="bool")


def known_positives(candidate_ids: Tensor, positive_ids: Tensor) -> Tensor:
    """Marks candidates that the training data knows as positives of the query.

    Args:
        candidate_ids: int `[C]`.
        positive_ids: int `[B, P]`, the ids of each query's positives, padded with -1.

    Returns:
        bool `[B, C]`, true on the diagonal too where the query's own item is among its positives.
    """
    ids = ops.convert_to_tensor(candidate_ids)
    positives = ops.expand_dims(ops.convert_to_tensor(positive_ids), 2)  # [B, P, 1]
    return ops.any((positives == ids) & (positives >= 0), axis=1)  # [B, C]


def known_grades(candidate_ids: Tensor, positive_ids: Tensor, positive_grades: Tensor) -> Tensor:
    """Grades of the candidates that the training data knows as positives of the query.

    Args:
        candidate_ids: int `[C]`.
        positive_ids: int `[B, P]`, the ids of each query's positives, padded with -1.
        positive_grades: `[B, P]`, theirs.

    Returns:
        float32 `[B, C]`, 0 where a candidate is not among a query's positives.
    """
    ids = ops.convert_to_tensor(candidate_ids)
    positives = ops.expand_dims(ops.convert_to_tensor(positive_ids), 2)  # [B, P, 1]
    grades = ops.expand_dims(ops.cast(positive_grades, "float32"), 2)
    known = (positives == ids) & (positives >= 0)  # [B, P, C]
    return ops.max(ops.where(known, grades, 0.0), axis=1)  # [B, C]


def same_query(query_ids: Tensor, n_candidates: int | Tensor) -> Tensor:
    """Marks the items of other rows that hold the same query.

    Args:
        query_ids: int `[B]`.
        n_candidates: `C`, at least `B`.

    Returns:
        bool `[B, C]`, false on the diagonal and for the extra negatives.
    """
    ids = ops.convert_to_tensor(query_ids)
    n_queries = ops.shape(ids)[0]
    no_query = ops.full((n_candidates - n_queries,), -1, dtype=ids.dtype)
    return accidental_hits(ops.concatenate([ids, no_query]), n_queries)
