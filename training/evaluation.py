"""Evaluation of a run against graded judgements over the full catalogue."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from towers.errors import InputError
from training import metrics
from training.atomic_file import atomic_file
from training.search import Run

if TYPE_CHECKING:
    from training.catalog import Catalog
    from training.interactions import Interactions

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@100", "AP@100", "Success@10", "Coverage@10")

_MEASURE = re.compile(r"(nDCG|R|RR|AP|Success|P|Coverage)(?:\(rel=(\d+)\))?(?:@(\d+))?")
_NEEDS_CUTOFF = {"R", "Success", "P", "Coverage"}
_WITHOUT_REL = {"nDCG", "Coverage"}


@dataclass(frozen=True)
class Measure:
    """A measure by its name in ir-measures: `nDCG@10`, `R@100`, `RR`, `AP`, `R(rel=2)@100`.

    `Coverage@10`, which ir-measures lacks, is the share of the catalogue shown in any top 10.

    Attributes:
        name: As asked for.
        kind: nDCG, R (recall), RR, AP, Success (hit rate), P (precision) or Coverage.
        cutoff: Ranks that count; None means the whole run.
        min_grade: Lowest grade of a relevant item; None where the evaluation's own holds.
    """

    name: str
    kind: str
    cutoff: int | None
    min_grade: int | None

    @classmethod
    def parse(cls, name: str) -> Measure:
        """Reads a measure's name, or raises `InputError`."""
        match = _MEASURE.fullmatch(name)
        if match is None:
            raise InputError(
                f"unknown measure {name!r}; known are nDCG@10, R@100, RR@10, AP, Success@10, P@10, "
                "Coverage@10 with any cutoff, and a lowest relevant grade as in R(rel=2)@100"
            )
        kind, rel, cutoff = match[1], match[2], match[3]
        if (cutoff is None and kind in _NEEDS_CUTOFF) or cutoff == "0":
            raise InputError(f"measure {name!r} needs a cutoff of 1 or more, such as {kind}@10")
        if rel is not None and (kind in _WITHOUT_REL or int(rel) < 1):
            raise InputError(
                f"measure {name!r}: rel is for R, RR, AP, Success and P, and 1 or more"
            )
        return cls(name, kind, int(cutoff) if cutoff else None, int(rel) if rel else None)


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    A query counts for nDCG if one of its judged items has a gain above 0, and for R, RR, AP,
    Success and P if one is relevant to the measure; otherwise it is left out of that mean.

    Attributes:
        means: Value of each measure: the mean over the queries that count.
        intervals: 95% bootstrap interval of each mean over queries; none for Coverage.
        counted: Queries that each mean is over; for Coverage all queries of the run.
        queries: The judged queries, in the order of the judgements.
        per_query: float64 `[queries]` of each measure but Coverage, NaN where a query is left out.
        queries_without_positives: Judged queries where no item has a gain above 0.
        queries_not_in_run: Judged queries that the run lacks. They count, with 0.
        queries_without_judgements: Queries of the run that are not judged. They do not count.
        gains: Gain of each grade that occurs.
        min_grade: Lowest grade of a relevant item where a measure does not say.
    """

    means: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counted: dict[str, int]
    queries: list[str]
    per_query: dict[str, np.ndarray]
    queries_without_positives: int
    queries_not_in_run: int
    queries_without_judgements: int
    gains: dict[int, float]
    min_grade: int

    def as_dict(self) -> dict[str, Any]:
        """Everything but the per-query values, ready for `json.dumps`."""
        return {
            "measures": {
                name: {
                    "mean": mean,
                    "interval_95": list(self.intervals[name]) if name in self.intervals else None,
                    "queries": self.counted[name],
                }
                for name, mean in self.means.items()
            },
            "queries": len(self.queries),
            "queries_without_positives": self.queries_without_positives,
            "queries_not_in_run": self.queries_not_in_run,
            "queries_without_judgements": self.queries_without_judgements,
            "gains": {str(grade): gain for grade, gain in self.gains.items()},
            "min_grade": self.min_grade,
        }

    def table(self) -> pa.Table:
        """One row a judged query: `query`, then each measure, null where it is left out."""
        columns = {name: pa.array(x, from_pandas=True) for name, x in self.per_query.items()}
        return pa.table({"query": pa.array(self.queries, pa.string()), **columns})

    def write_per_query(self, path: str | os.PathLike[str]) -> None:
        """Writes `table` to a file named `*.csv` or `*.parquet`, whole or not at all."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".csv", ".parquet"):
            raise InputError(f"per-query results go to a .csv or .parquet file, not {path}")
        with atomic_file(path) as temporary:
            if suffix == ".csv":
                pyarrow.csv.write_csv(self.table(), temporary)
            else:
                pyarrow.parquet.write_table(self.table(), temporary)


def evaluate(
    run: Run,
    interactions: Interactions,
    catalog: Catalog,
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    gains: Mapping[int, float] | None = None,
    min_grade: int = 1,
) -> Evaluation:
    """Evaluates a run against the judgements of all queries in `interactions`.

    What is not judged is not relevant. Queries of the run and of the judgements are
    matched by their text.

    Args:
        run: Items found for each query, as deep as the largest cutoff.
        interactions: The judgements.
        catalog: The catalogue that both refer to by row.
        measures: Names of measures, see `Measure`.
        gains: Gain of each grade, for nDCG; None: the grade itself.
        min_grade: Lowest grade of a relevant item, for measures that do not say (`R(rel=2)@100`).

    Returns:
        Means, intervals and per-query values.

    Raises:
        InputError: A measure is unknown or deeper than the run, a grade has no gain, the run holds
            rows that are not in the catalogue, or no query counts for a measure.
    """
    parsed = [Measure.parse(name) for name in dict.fromkeys(measures)]
    n_items, n_queries = len(catalog), len(interactions.queries)
    if not len(interactions):
        raise InputError(f"{interactions.path}: no judgements to evaluate against")
    _check(run, parsed, min_grade, n_items)

    query_rows, grades = interactions.query_row, interactions.grade  # [R]
    gain_of = _gains(grades, gains)
    judged_gains = np.array([gain_of[grade] for grade in grades.tolist()], np.float64)  # [R]

    in_run = {query: row for row, query in enumerate(run.queries)}
    run_rows = np.array([in_run.get(query, -1) for query in interactions.queries], np.int64)
    ranked_items = np.full((n_queries, run.item_rows.shape[1]), -1, np.int64)
    ranked_items[run_rows >= 0] = run.item_rows[run_rows[run_rows >= 0]]
    judgement = _find(ranked_items, interactions, n_items)  # [Q, n], -1 = unjudged
    ranked_gains = np.append(judged_gains, 0.0)[judgement]
    ranked_grades = np.append(grades, -1)[judgement]

    means, intervals, counted, per_query = {}, {}, {}, {}
    for measure in parsed:
        if measure.kind == "Coverage":
            assert measure.cutoff is not None  # parse() sees to it
            means[measure.name] = metrics.coverage(run.item_rows, n_items, measure.cutoff)
            counted[measure.name] = len(run.queries)
            continue
        if measure.kind == "nDCG":
            ideal = metrics.ideal_dcg_at_k(query_rows, judged_gains, n_queries, measure.cutoff)
            counts = ideal > 0
            values = metrics.ndcg_at_k(ranked_gains, ideal, measure.cutoff)
        else:
            grade = min_grade if measure.min_grade is None else measure.min_grade
            n_relevant = np.bincount(query_rows[grades >= grade], minlength=n_queries)
            counts = n_relevant > 0
            values = _binary(measure, ranked_grades >= grade, n_relevant)
        if not counts.any():
            wanted = "a gain above 0" if measure.kind == "nDCG" else f"grade {grade} or more"
            raise InputError(
                f"{measure.name}: none of the {n_queries} queries has an item with {wanted}"
            )
        means[measure.name] = float(values[counts].mean())
        intervals[measure.name] = bootstrap_interval(values[counts])
        counted[measure.name] = int(counts.sum())
        per_query[measure.name] = np.where(counts, values, np.nan)

    with_positives = np.bincount(query_rows[judged_gains > 0], minlength=n_queries) > 0
    return Evaluation(
        means=means,
        intervals=intervals,
        counted=counted,
        queries=list(interactions.queries),
        per_query=per_query,
        queries_without_positives=int((~with_positives).sum()),
        queries_not_in_run=int((run_rows < 0).sum()),
        queries_without_judgements=len(run.queries) - int((run_rows >= 0).sum()),
        gains=gain_of,
        min_grade=min_grade,
    )


def bootstrap_interval(
    values: np.ndarray, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: floating `[n]`, `n` at least 1; drawn from with replacement.
        confidence: Coverage of the interval.
        resamples: Means drawn.
        seed: Makes the interval reproducible.

    Returns:
        Lower and upper end.
    """
    random = np.random.default_rng(seed)
    # One resample at a time: all at once would need resamples x n indices.
    means = [
        values[random.integers(len(values), size=len(values))].mean() for _ in range(resamples)
    ]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check(run: Run, measures: Sequence[Measure], min_grade: int, n_items: int) -> None:
    if min_grade < 1:
        raise InputError(f"min_grade is {min_grade}, expected 1 or more: grade 0 is not relevant")
    depth = run.item_rows.shape[1]
    if run.item_rows.size and run.item_rows.max() >= n_items:
        raise InputError(
            f"the run has item row {run.item_rows.max()}, the catalogue {n_items} items"
        )
    for measure in measures:
        if measure.cutoff is not None and depth < min(measure.cutoff, n_items):
            raise InputError(
                f"{measure.name} needs a run of {measure.cutoff} items a query, not of {depth}"
            )


def _gains(grades: np.ndarray, gains: Mapping[int, float] | None) -> dict[int, float]:
    """Gain of each grade that occurs."""
    occurring = np.unique(grades).tolist()
    if gains is None:
        return {grade: float(grade) for grade in occurring}
    missing = [grade for grade in occurring if grade not in gains]
    if missing:
        raise InputError(
            f"grade {missing[0]} is among the judgements and has no gain in {dict(gains)}"
        )
    bad = [grade for grade in occurring if not 0 <= gains[grade] < np.inf]
    if bad:
        raise InputError(f"grade {bad[0]} has gain {gains[bad[0]]}, expected a number, 0 or more")
    return {grade: float(gains[grade]) for grade in occurring}


def _find(ranked_items: np.ndarray, interactions: Interactions, n_items: int) -> np.ndarray:
    """Row of the judgement of each ranked item, `[Q, n]`, -1 where there is none."""
    judged = interactions.query_row.astype(np.int64) * n_items + interactions.item_row
    order = np.argsort(judged)
    wanted = np.arange(len(ranked_items))[:, None] * n_items + ranked_items  # [Q, n]
    place = np.minimum(np.searchsorted(judged, wanted, sorter=order), len(judged) - 1)
    rows = order[place]
    return np.where((judged[rows] == wanted) & (ranked_items >= 0), rows, -1)


def _binary(measure: Measure, relevant: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """Per-query values of a measure that knows relevant or not: bool `[Q, n]` -> `[Q]`."""
    cutoff = measure.cutoff
    if measure.kind == "RR":
        return metrics.reciprocal_rank(relevant, cutoff)
    if measure.kind == "AP":
        return metrics.average_precision(relevant, n_relevant, cutoff)
    assert cutoff is not None  # Measure.parse sees to it
    if measure.kind == "R":
        return metrics.recall_at_k(relevant, n_relevant, cutoff)
    if measure.kind == "Success":
        return metrics.hit_rate(relevant, cutoff)
    return metrics.precision_at_k(relevant, cutoff)
