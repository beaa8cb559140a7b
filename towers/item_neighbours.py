"""For each item the few others that speak for or follow from it, with weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from towers.item_text import text_of

WORD_NEIGHBOURS = 50
_COMMON = 2_000  # items; words of more say little and cost most
_DENSE_ENTRIES = 4_000_000  # held at a time


@dataclass(frozen=True)
class ItemNeighbours:
    """A sparse item-item matrix with at most `n` entries a row.

    Attributes:
        rows: int32 `[items, n]`, rows of other items; -1 where there is none.
        weights: float32 `[items, n]`; 0 where there is none.
    """

    rows: np.ndarray
    weights: np.ndarray

    @classmethod
    def none(cls, item_count: int) -> ItemNeighbours:
        """No neighbours for anything."""
        return cls(np.zeros((item_count, 0), np.int32), np.zeros((item_count, 0), np.float32))

    @classmethod
    def of_dense(cls, block: np.ndarray, count: int, first: int = 0) -> ItemNeighbours:
        """The entries of each row that are farthest from 0, the diagonal aside.

        Args:
            block: `[rows, items]`, some rows of a matrix.
            count: entries of a row, at most.
            first: row of the matrix that the block begins with.
        """
        block = block.astype(np.float32)
        block[np.arange(len(block)), np.arange(first, first + len(block))] = 0.0
        count = min(count, block.shape[1])
        rows = np.argpartition(-np.abs(block), count - 1, axis=1)[:, :count].astype(np.int32)
        weights = np.take_along_axis(block, rows, axis=1)
        order = np.argsort(-np.abs(weights), axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, axis=1)
        weights = np.take_along_axis(weights, order, axis=1)
        return cls(np.where(weights != 0, rows, -1).astype(np.int32), weights)

    @classmethod
    def largest(cls, matrix: sp.csr_matrix, count: int) -> ItemNeighbours:
        """The entries of each row that are farthest from 0, the diagonal aside.

        Args:
            matrix: `[items, items]`.
            count: entries of a row, at most.
        """
        items = matrix.shape[0]
        coo = matrix.tocoo()
        keep = (coo.data != 0) & (coo.row != coo.col)
        row, column, value = coo.row[keep], coo.col[keep], coo.data[keep]
        order = np.lexsort((column, -np.abs(value), row))
        row, column, value = row[order], column[order], value[order]
        starts = np.searchsorted(row, np.arange(items))
        rank = np.arange(len(row)) - starts[row]
        row, column, value, rank = (part[rank < count] for part in (row, column, value, rank))
        width = int(rank.max(initial=-1)) + 1
        rows = np.full((items, width), -1, np.int32)
        weights = np.zeros((items, width), np.float32)
        rows[row, rank], weights[row, rank] = column, value
        return cls(rows, weights)

    def matrix(self) -> sp.csr_matrix:
        """The matrix, float32 `[items, items]`."""
        items = len(self.rows)
        row, place = np.nonzero(self.rows >= 0)
        entries = (self.weights[row, place], (row, self.rows[row, place]))
        return sp.csr_matrix(entries, shape=(items, items), dtype=np.float32)

    def moved(self, to: np.ndarray, item_count: int) -> ItemNeighbours:
        """The neighbours in another catalogue.

        Args:
            to: int `[items]`, the row of each item there; -1 for an item that is not.
            item_count: number of items there.
        """
        row, place = np.nonzero((self.rows >= 0) & (to[:, None] >= 0))
        column = to[self.rows[row, place]]
        there = column >= 0
        entries = (self.weights[row, place][there], (to[row][there], column[there]))
        matrix = sp.csr_matrix(entries, shape=(item_count, item_count), dtype=np.float32)
        return ItemNeighbours.largest(matrix, self.rows.shape[1])


def word_neighbours(texts: Sequence[str], count: int = WORD_NEIGHBOURS) -> ItemNeighbours:
    """The items whose texts share the most words with each: cosine of TF-IDF.

    Embeddings blur what series and part numbers keep apart; words do not.

    Args:
        texts: item texts.
        count: neighbours of an item, at most.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", max_df=_COMMON, dtype=np.float32
    )
    try:
        vectors = vectorizer.fit_transform(map(text_of, texts)).tocsr()  # [items, words]
    except ValueError:  # no text holds a word
        return ItemNeighbours.none(len(texts))
    columns = vectors.T.tocsr()
    step = max(1, _DENSE_ENTRIES // len(texts))
    parts = [
        ItemNeighbours.of_dense((vectors[start : start + step] @ columns).toarray(), count, start)
        for start in range(0, len(texts), step)
    ]
    rows, weights = zip(*((part.rows, part.weights) for part in parts), strict=True)
    return ItemNeighbours(np.concatenate(rows), np.concatenate(weights))
