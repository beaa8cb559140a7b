"""From measured cells to the numbers of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from training.evaluation import bootstrap_interval
from training.report.cells import Cell, Measurement, View
from training.report.plan import BM25, HYBRID, PEER, ZERO_SHOT, Plan, Task
from training.statistics import Comparison, Interval, compare, holm, mean_interval

SIGNIFICANT = 0.05
_EXAMPLES = 5

ADAPTED_VIEWS: tuple[View, ...] = ("dense", "hybrid")
UNTRAINED: dict[View, str] = {"dense": ZERO_SHOT, "hybrid": HYBRID}
"""The baseline that is the same ranking without any training."""
_NOT_COMPARED = {("dense", HYBRID)}
"""Towers alone have to beat themselves untrained; that words help them is another finding."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Point(_Record):
    """One system at one number of shots.

    Attributes:
        view: what it ranks by.
        system: its name.
        shots: pairs it was adapted to.
        seeds: of the draws measured.
        values: mean over queries, for each draw.
        mean: over draws.
        interval_95: of that mean over draws, by Student's t; None for a single draw.
        interval_95_over_queries: bootstrap interval over queries, of the mean over draws.
    """

    view: View
    system: str
    shots: int
    seeds: list[int]
    values: list[float]
    mean: float
    interval_95: Interval | None
    interval_95_over_queries: Interval


class PairedTest(Comparison):
    """A system against a baseline, each query's value averaged over draws.

    Attributes:
        view: what the system ranks by.
        system: its name.
        shots: pairs it was adapted to.
        baseline: what it is compared with.
        p_holm: of the t test, corrected for all tests of the report.
    """

    view: View
    system: str
    shots: int
    baseline: str
    p_holm: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is more than chance and many tests explain."""
        return self.p_holm < SIGNIFICANT


class Shown(_Record):
    """An item in an example; an item without a judgement has no grade."""

    item_id: str
    title: str
    grade: int | None


class Example(_Record):
    """A query that gained or lost, with its first items before and after.

    Attributes:
        query: the query.
        before: its value without training.
        after: its value after training, mean over draws.
        seed: the draw whose items are shown: the one nearest to that mean.
        items_before: first items without training.
        items_after: first items after training.
    """

    query: str
    before: float
    after: float
    seed: int
    items_before: list[Shown]
    items_after: list[Shown]


class Examples(_Record):
    """The queries that training changed most."""

    view: View
    system: str
    shots: int
    gained: list[Example]
    lost: list[Example]


class Cost(_Record):
    """What adapting takes.

    Attributes:
        system: its name.
        shots: pairs it was adapted to.
        trained_parameters: weights that training may change.
        seconds: of the whole adaptation, mean over draws that were not interrupted.
        peak_memory: bytes of the process, the most of any draw.
        lexical_weights: chosen, one a draw.
        methods: what ``auto`` chose, and for how many draws.
    """

    system: str
    shots: int
    trained_parameters: int
    seconds: float | None
    peak_memory: int | None
    lexical_weights: list[float]
    methods: dict[str, int]


class Best(_Record):
    """The method with the highest mean.

    Attributes:
        point: its result.
        test: against the same ranking without training, if that is among the baselines.
    """

    point: Point
    test: PairedTest | None


class Report(_Record):
    """Everything that the page shows.

    Attributes:
        command: that made it.
        created: ISO 8601, UTC.
        measure: name of the measure.
        data: the files.
        summary: findings in words.
        notes: what a reader should know of how it was measured.
        shots: numbers of shots, 0 included where asked for.
        baselines: what systems are compared with.
        best: the best method of each view and number of shots.
        points: every system at every number of shots.
        tests: every system against every baseline.
        examples: queries that changed most.
        costs: of adapting.
        settings: of the trainings, and of the measurements.
        machine: what it ran on.
        packages: versions, of each package all that cells were measured with.
        cells: (finished, planned).
    """

    command: str
    created: str
    measure: str
    data: dict[str, dict[str, Any]]
    summary: list[str]
    notes: list[str]
    shots: list[int]
    baselines: list[str]
    best: list[Best]
    points: list[Point]
    tests: list[PairedTest]
    examples: list[Examples]
    costs: list[Cost]
    settings: dict[str, Any]
    machine: dict[str, Any]
    packages: dict[str, list[str]]
    cells: tuple[int, int]

    def point(self, view: View, system: str, shots: int) -> Point | None:
        """A point, or None where nothing was measured."""
        key = view, system, shots
        return next((p for p in self.points if (p.view, p.system, p.shots) == key), None)

    def level(self, baseline: str) -> Point | None:
        """What a baseline without training reaches; None for one with training."""
        if baseline == PEER:
            return None
        return self.point(*_against(baseline, "dense", 0))


@dataclass(frozen=True)
class Results:
    """Measured cells of a plan, some of which may be missing.

    Args:
        task: what they were measured on.
        plan: which there should be.
        measured: those there are; without any, there is nothing to report.
    """

    task: Task
    plan: Plan
    measured: Mapping[Cell, Measurement]

    @cached_property
    def points(self) -> list[Point]:
        """All points: without training first, then by view, system and shots."""
        return [point for key in self._keys if (point := self._point(*key)) is not None]

    @cached_property
    def tests(self) -> list[PairedTest]:
        """All tests, corrected together."""
        keys, found = [], []
        for view, system, shots in self._keys:
            for baseline in self.plan.baselines if shots else ():
                against = _against(baseline, view, shots)
                if against == (view, system, shots) or (view, baseline) in _NOT_COMPARED:
                    continue
                values, others = self._values(view, system, shots), self._values(*against)
                if values is None or others is None:
                    continue
                keys.append((view, system, shots, baseline))
                found.append(compare(values.mean(axis=0), others.mean(axis=0)))
        corrected = holm([one.p_t for one in found])
        return [
            PairedTest(
                view=view,
                system=system,
                shots=shots,
                baseline=baseline,
                p_holm=p,
                **one.model_dump(),
            )
            for (view, system, shots, baseline), one, p in zip(keys, found, corrected, strict=True)
        ]

    @cached_property
    def best(self) -> list[Best]:
        """By view and shots."""
        best = []
        for view in ADAPTED_VIEWS:
            for shots in self.plan.counts:
                there = [
                    point
                    for point in self.points
                    if (point.view, point.shots) == (view, shots) and point.system != PEER
                ]
                if there:
                    point = max(there, key=lambda point: point.mean)
                    key = view, point.system, shots, UNTRAINED[view]
                    test = [
                        test
                        for test in self.tests
                        if (test.view, test.system, test.shots, test.baseline) == key
                    ]
                    best.append(Best(point=point, test=test[0] if test else None))
        return best

    @cached_property
    def examples(self) -> list[Examples]:
        """For each method and view, with the most shots measured."""
        most: dict[tuple[View, str], int] = {}
        for point in self.points:
            if point.system in self.plan.methods and point.shots:
                most[point.view, point.system] = point.shots
        return [self._examples(view, system, shots) for (view, system), shots in most.items()]

    @cached_property
    def costs(self) -> list[Cost]:
        """By system and shots."""
        costs = []
        for system in self.plan.trained:
            for shots in self.plan.counts:
                found = [self.measured[cell] for cell in self._cells(system, shots)]
                if not found:
                    continue
                seconds = [one.seconds for one in found if one.seconds is not None]
                memory = [one.peak_memory for one in found if one.peak_memory is not None]
                weights = [one.lexical_weight for one in found if one.lexical_weight is not None]
                choices = [one.training.get("choice") for one in found]
                costs.append(
                    Cost(
                        system=system,
                        shots=shots,
                        trained_parameters=max(one.trained_parameters for one in found),
                        seconds=float(np.mean(seconds)) if seconds else None,
                        peak_memory=max(memory, default=None),
                        lexical_weights=weights,
                        methods=Counter(choice["method"] for choice in choices if choice),
                    )
                )
        return costs

    @cached_property
    def _keys(self) -> list[tuple[View, str, int]]:
        keys: list[tuple[View, str, int]] = [
            ("dense", ZERO_SHOT, 0),
            ("hybrid", ZERO_SHOT, 0),
            ("lexical", BM25, 0),
        ]
        keys += [
            (view, system, shots)
            for view in ADAPTED_VIEWS
            for system in self.plan.trained
            for shots in self.plan.counts
            # The towers of zero-shot are the same with any shots; the weight of the words is not.
            if (view, system) != ("dense", ZERO_SHOT)
        ]
        return keys

    def _cells(self, system: str, shots: int) -> list[Cell]:
        return sorted(
            cell for cell in self.measured if (cell.system, cell.shots) == (system, shots)
        )

    def _values(self, view: View, system: str, shots: int) -> np.ndarray | None:
        """Float64 ``[draws, queries that count]``; None where nothing was measured."""
        rankings = [
            self.measured[cell].views[view]
            for cell in self._cells(system, shots)
            if view in self.measured[cell].views
        ]
        if not rankings:
            return None
        return np.array([one.values for one in rankings], np.float64)[:, self.task.counted]

    def _point(self, view: View, system: str, shots: int) -> Point | None:
        values = self._values(view, system, shots)
        if values is None:
            return None
        draws = values.mean(axis=1)
        return Point(
            view=view,
            system=system,
            shots=shots,
            seeds=[cell.seed for cell in self._cells(system, shots)],
            values=draws.tolist(),
            mean=float(draws.mean()),
            interval_95=mean_interval(draws),
            interval_95_over_queries=bootstrap_interval(values.mean(axis=0)),
        )

    def _examples(self, view: View, system: str, shots: int) -> Examples:
        after, before = self._values(view, system, shots), self._values(view, ZERO_SHOT, 0)
        assert after is not None
        if before is None:
            return Examples(view=view, system=system, shots=shots, gained=[], lost=[])
        gain = after.mean(axis=0) - before[0]
        order = np.argsort(-gain, kind="stable")
        gained = [row for row in order[:_EXAMPLES].tolist() if gain[row] > 0]
        lost = [row for row in order[::-1][:_EXAMPLES].tolist() if gain[row] < 0]
        cells, asked = self._cells(system, shots), np.flatnonzero(self.task.counted)

        def example(row: int) -> Example:
            mean = float(after[:, row].mean())
            cell = cells[int(np.argmin(np.abs(after[:, row] - mean)))]
            query = int(asked[row])
            zero_shot = self.measured[Cell(ZERO_SHOT)]
            return Example(
                query=self.task.test.queries[query],
                before=float(before[0, row]),
                after=mean,
                seed=cell.seed,
                items_before=self._shown(query, zero_shot.views[view].first[query]),
                items_after=self._shown(query, self.measured[cell].views[view].first[query]),
            )

        return Examples(
            view=view,
            system=system,
            shots=shots,
            gained=[example(row) for row in gained],
            lost=[example(row) for row in lost],
        )

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.task.catalog.item_ids.tolist())}

    def _shown(self, query: int, item_ids: Sequence[str]) -> list[Shown]:
        titles = self.task.catalog.table.column("title")
        judged = self.task.test.query_row == query
        grades = dict(
            zip(
                self.task.test.item_row[judged].tolist(),
                self.task.test.grade[judged].tolist(),
                strict=True,
            )
        )
        return [
            Shown(item_id=item_id, title=titles[row].as_py(), grade=grades.get(row))
            for item_id, row in ((item_id, self._row_of[item_id]) for item_id in item_ids)
        ]


def _against(baseline: str, view: View, shots: int) -> tuple[View, str, int]:
    """Where a baseline is measured, for systems of a view and number of shots."""
    if baseline == "bm25":
        return "lexical", BM25, 0
    if baseline == PEER:
        return view, PEER, shots
    return ("dense" if baseline == "zero-shot" else "hybrid"), ZERO_SHOT, 0
