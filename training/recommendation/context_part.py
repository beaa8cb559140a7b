"""What contexts add to the score: lifts of items, fitted on what was taken in each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from towers.context_lifts import NUMBER, ContextColumn, ContextLifts
from towers.recommender import popularity_prior
from training.recommendation.choices import Choices, quality
from training.recommendation.held_out import HeldOut

_LEAST_EVENTS = 5  # of a value; rarer ones say nothing that would last
_MOST_VALUES = 200  # of a column, the most frequent
_MOST_ITEMS = 1_000  # of a value, those that stand out most
_CATEGORIES = 10  # a column of numbers with more different ones is put into bands
_BANDS = 5
_MIN_USERS = 20  # of held-out cases, with a value known before; fewer do not tell its weight

PSEUDO_COUNTS = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Strengths of the shrinkage that held-out cases choose from."""


class ContextPart:
    """Contexts of events, sorted into values, and the lifts of items by them.

    The lift of an item in a context is the ratio of how many users took it there to how many would
    have if contexts were all alike, shrunk towards 1, in logarithms:

        L[c, j] = log (n_cj + a) / (e_cj + a),  e_cj = n_c * n_j / n

    It is the posterior mean of a rate under a Gamma(a, a) prior (DuMouchel 1999, "Bayesian data
    mining in large frequency tables"): of an item taken seldom anywhere, nothing is concluded.
    Users without a value do not count for its column.

    Args:
        columns: for each column the texts of all events, object ``[events]``, those of one user
            after those of another; None where nothing is known.
        histories: rows of items of each user, int ``[events]``.
        item_count: items of the catalogue.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        histories: Sequence[np.ndarray],
        item_count: int,
    ) -> None:
        lengths = np.array([len(history) for history in histories], np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self._user = np.repeat(np.arange(len(histories)), lengths)
        self._item = np.concatenate([np.zeros(0, np.int64), *histories]).astype(np.int64)
        self._item_count = item_count
        self.values: dict[str, list[str]] = {}
        self.edges: dict[str, tuple[float, ...] | None] = {}
        self._codes: dict[str, np.ndarray] = {}
        for name, texts in columns.items():
            self.edges[name], self.values[name], self._codes[name] = _sorted(texts)
        self._histories = histories
        self.users = dict.fromkeys(columns, 0)
        self.pseudo_counts = dict.fromkeys(columns, PSEUDO_COUNTS[1])

    @staticmethod
    def name(column: str) -> str:
        """The name of a column's part of the score."""
        return f"context {column}"

    def usable(self) -> list[str]:
        """The columns of which enough users of held-out cases have a value known before."""
        return [column for column, users in self.users.items() if users >= _MIN_USERS]

    def choose(self, held_out: Sequence[HeldOut], choices: Choices) -> None:
        """Chooses the pseudo-counts: what each column and popularity find with nothing else known.

        Args:
            held_out: what to fit on, and to ask.
            choices: of the popularity.
        """
        for column in self.values:
            known: set[int] = set()
            qualities = dict.fromkeys(PSEUDO_COUNTS, 0.0)
            for part in held_out:
                rows = self.cases(part, column)
                counts = choices.counts(part.histories, part.times, self._item_count)
                prior = sp.csr_matrix(popularity_prior(counts)[None])
                everyone = np.ones((len(part), 1), np.float32)
                users = sp.hstack([everyone, _picked(rows, len(self.values[column]))]).tocsr()
                events = self.events(part)
                for count in PSEUDO_COUNTS:
                    lifts = self.lifts(column, count, events)
                    # A month that is new says nothing, nor what its weight should be.
                    judged = (rows >= 0) & (np.append(lifts.getnnz(axis=1), 0)[rows] > 0)
                    known |= set(part.users[judged].tolist())
                    items = sp.vstack([prior, lifts], dtype=np.float32).tocsr()
                    qualities[count] += quality(part, users, items)
            self.users[column] = len(known)
            self.pseudo_counts[column] = max(qualities, key=lambda count: qualities[count])

    def scores(self, part: HeldOut) -> dict[str, np.ndarray]:
        """The usable parts of the score, by name, each float32 ``[cases, items]``."""
        events = self.events(part)
        found = {}
        for column in self.usable():
            lifts = self.lifts(column, self.pseudo_counts[column], events)
            picked = _picked(self.cases(part, column), len(self.values[column]))
            found[self.name(column)] = (picked @ lifts).toarray()
        return found

    def facts(self) -> dict[str, dict[str, float]]:
        """For each column what it was judged by and how strongly it shrinks, for `json.dumps`."""
        return {
            column: {"users": users, "pseudo_count": self.pseudo_counts[column]}
            for column, users in self.users.items()
        }

    def events(self, part: HeldOut) -> np.ndarray:
        """Which events a part is fitted on, bool ``[events]``."""
        chosen = np.zeros(len(self._user), bool)
        for user, history in zip(part.fitted.tolist(), part.histories, strict=True):
            chosen[self._offsets[user] : self._offsets[user] + len(history)] = True
        return chosen

    def cases(self, part: HeldOut, name: str) -> np.ndarray:
        """The row of the value that a column has when a case's target is taken; -1 for none."""
        codes = self._codes[name]
        found = np.full(len(part), -1)
        cases = zip(part.users.tolist(), part.places.tolist(), part.target.tolist(), strict=True)
        for case, (user, place, target) in enumerate(cases):
            later = np.flatnonzero(self._histories[user][place:] == target)
            found[case] = codes[self._offsets[user] + place + later[0]]
        return found

    def lifts(
        self, name: str, pseudo_count: float, events: np.ndarray | None = None
    ) -> sp.csr_matrix:
        """Lifts of the items by the values of one column.

        Args:
            name: of the column.
            pseudo_count: `a`, above 0.
            events: bool ``[events]``, those to learn from; all if None.

        Returns:
            float32 ``[values, items]``, of each value the 1,000 that are farthest from 0.
        """
        codes, count = self._codes[name], len(self.values[name])
        known = codes >= 0 if events is None else events & (codes >= 0)
        keys = codes[known] * len(self._histories) + self._user[known]  # each a user, once a value
        keys, item = np.divmod(
            np.unique(keys * self._item_count + self._item[known]), self._item_count
        )
        row = keys // max(1, len(self._histories))
        taken = sp.csr_matrix((np.ones(len(row)), (row, item)), shape=(count, self._item_count))
        of_item = np.asarray(taken.sum(axis=0)).ravel()
        total = max(of_item.sum(), 1.0)
        rows = []
        for value in range(count):
            here = taken[value].toarray().ravel()
            expected = here.sum() * of_item / total
            lift = np.log((here + pseudo_count) / (expected + pseudo_count))
            if len(lift) > _MOST_ITEMS:
                lift[np.argpartition(np.abs(lift), -_MOST_ITEMS)[:-_MOST_ITEMS]] = 0.0
            rows.append(sp.csr_matrix(lift.astype(np.float32)))
        if not rows:
            return sp.csr_matrix((0, self._item_count), dtype=np.float32)
        return sp.vstack(rows, format="csr", dtype=np.float32)

    def learned(self, weights: Mapping[str, tuple[float, float]]) -> ContextLifts:
        """Lifts from all events, over the catalogue.

        Args:
            weights: of each column, beside a history and alone.
        """
        columns = {name: ContextColumn(*weights[name], self.edges[name]) for name in self.values}
        lifts = [self.lifts(name, self.pseudo_counts[name]) for name in self.values]
        values = [f"{name}={value}" for name in self.values for value in self.values[name]]
        return ContextLifts(columns, values, sp.vstack(lifts, dtype=np.float32).tocsr())


def _picked(rows: np.ndarray, count: int) -> sp.csr_matrix:
    """The row of each case, as a matrix float32 ``[cases, count]``; zeros for row -1."""
    chosen = np.flatnonzero(rows >= 0)
    entries = (np.ones(len(chosen), np.float32), (chosen, rows[chosen]))
    return sp.csr_matrix(entries, shape=(len(rows), count))


def _sorted(texts: np.ndarray) -> tuple[tuple[float, ...] | None, list[str], np.ndarray]:
    """Edges of bands if any, names of the values, and the value of each event or -1."""
    given = np.array([text is not None for text in texts], bool)
    names, inverse, counts = np.unique(
        texts[given].astype(str), return_inverse=True, return_counts=True
    )
    codes = np.full(len(texts), -1)
    if len(names) > _CATEGORIES and all(_is_number(name) for name in names.tolist()):
        numbers = names.astype(np.float64)[inverse]
        inner = np.quantile(numbers, np.arange(1, _BANDS) / _BANDS)
        edges = tuple(edge for edge in np.unique(inner).tolist() if edge > numbers.min())
        column = ContextColumn(edges=edges)
        codes[given] = np.searchsorted(edges, numbers, side="right")
        return edges, column.bands(), codes
    frequent = np.argsort(-counts, kind="stable")[:_MOST_VALUES]
    kept = np.sort(frequent[counts[frequent] >= _LEAST_EVENTS])
    place = np.full(len(names), -1)
    place[kept] = np.arange(len(kept))
    codes[given] = place[inverse]
    return None, names[kept].tolist(), codes


def _is_number(text: str) -> bool:
    return re.fullmatch(NUMBER, text) is not None and math.isfinite(float(text))
