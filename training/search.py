"""Exact search: the k items with the largest dot product for each query, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import tensorflow as tf

from towers.errors import InputError
from towers.even_columns import even_columns

# A block of scores has at most this many entries: 64 MiB of float32.
_SCORES = 1 << 24


@dataclass(frozen=True)
class Run:
    """What a system found for a list of queries.

    Attributes:
        queries: Query texts, `Q` of them, each once.
        item_rows: int64 `[Q, k]`, catalogue rows from best to worst. Where fewer than `k` items
            were found the row ends in -1.
        scores: float32 `[Q, k]`, never rising along a row; -inf beside a -1.
    """

    queries: list[str]
    item_rows: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        """Checks that the three belong together."""
        n_queries = len(self.queries)
        if self.item_rows.ndim != 2 or self.item_rows.shape[0] != n_queries:
            raise InputError(
                f"item_rows has shape {self.item_rows.shape}, expected [{n_queries}, k] for "
                f"{n_queries} queries"
            )
        if self.scores.shape != self.item_rows.shape:
            raise InputError(
                f"scores has shape {self.scores.shape}, item_rows {self.item_rows.shape}"
            )
        query, times = next(iter(Counter(self.queries).most_common(1)), ("", 0))
        if times > 1:
            raise InputError(f"query {query!r} is {times} times in the run")
        scored = np.isfinite(self.scores)
        without_score = np.not_equal(self.item_rows >= 0, scored)
        self._refuse(without_score.any(axis=1), "an item without a score")
        rising = np.greater(self.scores[:, 1:], self.scores[:, :-1])
        self._refuse(rising.any(axis=1), "a better score after a worse one")
        rows = np.sort(self.item_rows, axis=1)
        self._refuse(
            ((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)).any(axis=1), "an item twice"
        )

    def _refuse(self, bad: np.ndarray, what: str) -> None:
        if bad.any():
            raise InputError(f"the run of query {self.queries[int(np.argmax(bad))]!r} has {what}")


def top_k(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    *,
    block_items: int = 65536,
    exclude: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the `k` items with the largest dot product for each query, exactly.

    With rows of length 1 that is the cosine. The score matrix is never whole in memory: beside its
    inputs and results the search needs one block of items in float32 and 64 MiB of scores. Items
    may be a memory map.

    Args:
        queries: floating `[Q, d]`.
        items: floating `[N, d]`, any precision; scores are computed in float32.
        k: Items wanted for each query.
        block_items: Items scored at a time, at most.
        exclude: Integer `[Q, E]`, rows of `items` that a query must not find, padded with -1.
        progress: Called with (scores computed, scores in all) after each block.

    Returns:
        Scores float32 `[Q, min(k, N)]` from best to worst, and their rows in `items`, int64 of the
        same shape. Equal scores: the lower row first. Where exclusion leaves fewer items, the rest
        is -inf and row -1.

    Raises:
        InputError: A shape or type is wrong, `k` is below 1, or an embedding is not finite.
    """
    _check(queries, items, k, exclude)
    n_queries, n_items = len(queries), len(items)
    queries = _finite(queries, "query", 0)
    scores = np.full((n_queries, min(k, n_items)), -np.inf, np.float32)
    rows = np.full(scores.shape, -1, np.int64)
    block_queries = max(1, _SCORES // block_items)
    # Blocks of even size: a matrix product with few columns rounds differently, too.
    bounds = np.linspace(0, n_items, -(-n_items // block_items) + 1).astype(int).tolist()
    for start, stop in pairwise(bounds):
        block = even_columns(_finite(items[start:stop], "item", start))
        for first in range(0, n_queries, block_queries):
            part = slice(first, first + block_queries)
            product = tf.matmul(queries[part], block)  # NumPy's rounds equal columns unequally
            found = np.array(product[:, : stop - start])  # [block_queries, block_items]
            if exclude is not None:
                _exclude(found, exclude[part] - start)
            _merge(scores[part], rows[part], found, start)
            if progress is not None:
                done = start * n_queries + (first + len(found)) * (stop - start)
                progress(done, n_queries * n_items)
    return scores, rows


def _check(queries: np.ndarray, items: np.ndarray, k: int, exclude: np.ndarray | None) -> None:
    for name, array in (("queries", queries), ("items", items)):
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            raise InputError(
                f"{name} is {array.dtype}{list(array.shape)}, expected floating [rows, d]"
            )
    if queries.shape[1] != items.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} dimensions, items {items.shape[1]}")
    if k < 1:
        raise InputError(f"k is {k}, expected 1 or more")
    if exclude is not None and (exclude.ndim != 2 or len(exclude) != len(queries)):
        raise InputError(f"exclude has shape {exclude.shape}, expected [{len(queries)}, E]")


def _finite(embeddings: np.ndarray, kind: str, start: int) -> np.ndarray:
    """Returns the block in float32, or raises naming its first row that is not finite."""
    block = np.asarray(embeddings, np.float32)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        row = start + int(np.argmin(finite))
        raise InputError(f"the embedding of {kind} row {row} is not finite in float32")
    return block


def _exclude(found: np.ndarray, columns: np.ndarray) -> None:
    """Sets the scores at `columns` `[Q, E]` to -inf; columns outside of the block are ignored."""
    query, slot = np.nonzero((columns >= 0) & (columns < found.shape[1]))
    found[query, columns[query, slot]] = -np.inf


def _merge(scores: np.ndarray, rows: np.ndarray, found: np.ndarray, start: int) -> None:
    """Merges a block's scores `[Q, block]` into the best so far `[Q, k]`, in place."""
    k = scores.shape[1]
    for query, row_scores in enumerate(found):
        # Only what beats the worst so far comes in: ties lose against earlier, lower rows.
        columns = np.flatnonzero(row_scores > scores[query, -1])
        if not len(columns):
            continue
        new = row_scores[columns]
        if len(new) > k:
            enough = new >= np.partition(new, -k)[-k]  # k and all ties of the last
            columns, new = columns[enough], new[enough]
        both = np.concatenate([scores[query], new])
        # Stable: among equal scores the earlier stay first, then the columns as they ascend.
        best = np.argsort(-both, kind="stable")[:k]
        scores[query] = both[best]
        rows[query] = np.concatenate([rows[query], start + columns])[best]
