"""What is known of a user or a moment beside the history, and which items it speaks for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from towers.context_text import Context, context_texts

NUMBER = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
"""How a number is written."""


@dataclass(frozen=True)
class ContextColumn:
    """How a column of contexts counts.

    Attributes:
        weight: of its lifts in the score.
        alone: the same for users of whom nothing else is known: no past item, no query.
        edges: numbers between the bands that a column of numbers is sorted into, rising; None for
            a column of categories.
    """

    weight: float = 0.0
    alone: float = 0.0
    edges: tuple[float, ...] | None = None

    def bands(self) -> list[str]:
        """Names of the bands, the lowest first."""
        if self.edges is None:
            return []
        if not self.edges:
            return ["any"]
        inner = [f"{low:.12g} to {high:.12g}" for low, high in pairwise(self.edges)]
        return [f"under {self.edges[0]:.12g}", *inner, f"{self.edges[-1]:.12g} and over"]

    def facts(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        bands = {} if self.edges is None else {"edges": list(self.edges)}
        return {"weight": self.weight, "alone": self.alone} | bands

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> ContextColumn:
        """What `facts` told of."""
        edges = facts.get("edges")
        return cls(facts["weight"], facts["alone"], None if edges is None else tuple(edges))


@dataclass(frozen=True)
class ContextLifts:
    """How much more, or less, often items were taken in some context than elsewhere.

    Attributes:
        columns: name of a column to how it counts.
        values: `column=value`, or the name of a band in place of the value; `V`, distinct.
        lifts: float32 `[V, items]`, logarithms; 0 where nothing stands out.
    """

    columns: dict[str, ContextColumn]
    values: list[str]
    lifts: sp.csr_matrix = field(repr=False)

    @classmethod
    def none(cls) -> ContextLifts:
        """No column at all."""
        return cls({}, [], sp.csr_matrix((0, 0), dtype=np.float32))

    def of_items(self, items: np.ndarray) -> ContextLifts:
        """The lifts of some of the items, int `[some]`."""
        return replace(self, lifts=self.lifts[:, items])

    def moved(self, to: np.ndarray, lent: sp.csr_matrix) -> ContextLifts:
        """The lifts in another catalogue.

        Args:
            to: int `[items]`, the row of each item there; -1 for an item that is not.
            lent: float32 `[items there, items there]`; see `towers.recommender.lending`.
        """
        if not self.values:
            return replace(self, lifts=sp.csr_matrix((0, lent.shape[0]), dtype=np.float32))
        known = np.flatnonzero(to >= 0)
        entries = (np.ones(len(known), np.float32), (known, to[known]))
        places = sp.csr_matrix(entries, shape=(len(to), lent.shape[0]))
        return replace(self, lifts=(self.lifts @ places @ lent).tocsr())

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each value."""
        return {value: row for row, value in enumerate(self.values)}

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights of the values, float32 `[V, 2]`: beside a history, and alone."""
        columns = [self.columns[value.partition("=")[0]] for value in self.values]
        pairs = [(column.weight, column.alone) for column in columns]
        return np.array(pairs, np.float32).reshape(len(pairs), 2)

    def first_bands(self) -> dict[str, int]:
        """The row of the lowest band of each column of numbers; the others follow it."""
        return {
            name: self.row_of[f"{name}={column.bands()[0]}"]
            for name, column in self.columns.items()
            if column.edges is not None
        }

    def rows(self, context: Context) -> dict[str, int]:
        """The rows of what is known of a context, by `column=value`; the rest is passed over."""
        found = {}
        for text in context_texts(context):
            name, _, value = text.partition("=")
            row = self.row_of.get(text)
            column = self.columns.get(name)
            banded = row is None and column is not None and column.edges is not None
            if banded and re.fullmatch(NUMBER, value) and math.isfinite(float(value)):
                band = int(np.searchsorted(self.columns[name].edges or (), float(value), "right"))
                row = self.first_bands()[name] + band
            if row is not None:
                found[text] = row
        return found

    def user_weights(self, contexts: Sequence[Context], alone: np.ndarray) -> sp.csr_matrix:
        """What to multiply the lifts by, for each user: float32 `[users, V]`.

        Args:
            contexts: of the users.
            alone: bool `[users]`, of whom nothing else is known.
        """
        rows = [list(self.rows(context).values()) for context in contexts]
        user = np.repeat(np.arange(len(rows)), [len(of_user) for of_user in rows])
        row = np.array([row for of_user in rows for row in of_user], np.int64)
        weight = self.weights[row, np.asarray(alone, np.int64)[user]]
        return sp.csr_matrix((weight, (user, row)), shape=(len(rows), len(self.values)))

    def facts(self) -> dict[str, Any]:
        """Column to its weights and values, ready for `json.dumps`."""
        values: dict[str, list[str]] = {name: [] for name in self.columns}
        for text in self.values:
            name, _, value = text.partition("=")
            values[name].append(value)
        return {
            name: column.facts() | {"values": values[name]} for name, column in self.columns.items()
        }
