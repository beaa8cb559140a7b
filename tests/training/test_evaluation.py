"""Evaluation against ir-measures, on random runs, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from towers.errors import InputError
from training.catalog import Catalog
from training.evaluation import Evaluation, Measure, bootstrap_interval, evaluate
from training.interactions import Interactions
from training.search import Run
from training.trec import write_qrels, write_run

N_ITEMS = 40
GAINS = {0: 0, 1: 1, 2: 10, 3: 100}
# Our name, and what ir-measures is asked: all gains are whole numbers there.
MEASURES = {
    "nDCG@10": nDCG(gains=GAINS) @ 10,
    "nDCG@3": nDCG(gains=GAINS) @ 3,
    "nDCG": nDCG(gains=GAINS),
    "R@5": R @ 5,
    "R(rel=2)@20": R(rel=2) @ 20,
    "RR": RR,
    "RR(rel=3)": RR(rel=3),
    "AP": AP,
    "AP(rel=2)@7": AP(rel=2) @ 7,
    "Success@1": Success @ 1,
    "Success(rel=2)@10": Success(rel=2) @ 10,
    "P@10": P @ 10,
    "P(rel=2)@4": P(rel=2) @ 4,
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("shop") / "catalog.csv"
    rows = "\n".join(f"i{n},x" for n in range(N_ITEMS))
    path.write_text(f"item_id,title\n{rows}\n")
    return Catalog.read(path)


def judged(catalog: Catalog, grades: dict[str, dict[int, int]]) -> Interactions:
    """Judgements from grade by query and item row, in shuffled order."""
    rows = [(q, i, g) for q, items in enumerate(grades.values()) for i, g in items.items()]
    np.random.default_rng(len(rows)).shuffle(rows)
    columns = np.array(rows, np.int32).reshape(-1, 3)
    return Interactions(
        queries=list(grades),
        query_row=columns[:, 0],
        item_row=columns[:, 1],
        grade=columns[:, 2],
        weight=np.ones(len(rows), np.float32),
        catalog=catalog,
        path="judgements.csv",
        sha256="",
    )


def random_judgements(rng: np.random.Generator, catalog: Catalog, n_queries: int) -> Interactions:
    """Up to 12 judged items a query; some queries have only grade 0."""
    grades = {}
    for query in range(n_queries):
        highest = rng.choice([1, 2, 3, 4])  # 1: nothing above grade 0
        items = rng.choice(N_ITEMS, rng.integers(1, 13), replace=False)
        grades[f"query {query}"] = {int(i): int(rng.integers(highest)) for i in items}
    grades["query 0"][int(rng.integers(N_ITEMS))] = 3  # every measure has a query to count
    return judged(catalog, grades)


def random_run(rng: np.random.Generator, queries: list[str], depth: int, levels: int) -> Run:
    """Random items; with few levels of score many ties, and for some queries few items."""
    rows = np.array([rng.permutation(N_ITEMS)[:depth] for _ in queries]).reshape(-1, depth)
    scores = -np.sort(-rng.integers(levels, size=rows.shape) / 7, axis=1).astype(np.float32)
    n_found = rng.integers(depth + 1, size=len(queries)) + rng.integers(depth, size=len(queries))
    empty = np.arange(depth) >= n_found[:, None]
    rows[empty], scores[empty] = -1, -np.inf
    return Run(queries, rows, scores)


def assert_agrees(ours: Evaluation, qrels_file: Path, run_file: Path, qids: dict[str, str]) -> None:
    qrels = list(ir_measures.read_trec_qrels(str(qrels_file)))
    run = list(ir_measures.read_trec_run(str(run_file)))
    values = {
        (metric.measure, metric.query_id): metric.value
        for metric in ir_measures.iter_calc(MEASURES.values(), qrels, run)
    }
    for name, theirs in MEASURES.items():
        counted = ~np.isnan(ours.per_query[name])
        of_counted = {qids[q] for q, counts in zip(ours.queries, counted, strict=True) if counts}
        for query, value in zip(ours.queries, ours.per_query[name], strict=True):
            if qids[query] in of_counted:
                assert value == pytest.approx(values[theirs, qids[query]], abs=1e-6), (name, query)
        mean = ir_measures.calc_aggregate(
            [theirs], [qrel for qrel in qrels if qrel.query_id in of_counted], run
        )[theirs]
        assert ours.means[name] == pytest.approx(mean, abs=1e-6), name
        assert ours.counted[name] == len(of_counted)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), levels=st.sampled_from([1, 3, 1000]))
def test_agrees_with_ir_measures(
    catalog: Catalog, tmp_path_factory: pytest.TempPathFactory, seed: int, levels: int
) -> None:
    """Our own run, written to a file; score ties, queries missing on either side."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(seed)
    judgements = random_judgements(rng, catalog, 12)
    in_run = [query for query in judgements.queries if rng.random() < 0.8]
    run = random_run(rng, [*in_run, "a query without judgements"], 20, levels)
    ours = evaluate(run, judgements, catalog, measures=list(MEASURES), gains=GAINS)

    everything = run.queries + [q for q in judgements.queries if q not in run.queries]
    write_run(folder / "run", run, catalog.item_ids)
    write_qrels(folder / "qrels", judgements.qrels(), everything)
    qids = {query: str(number) for number, query in enumerate(everything, 1)}
    assert_agrees(ours, folder / "qrels", folder / "run", qids)
    assert ours.queries_not_in_run == 12 - len(in_run)
    assert ours.queries_without_judgements == 1


@pytest.fixture
def small(catalog: Catalog) -> tuple[Run, Interactions]:
    """Three judged queries: positives of grade 2 and 1, of grade 1, and none."""
    judgements = judged(
        catalog,
        {"chair": {3: 2, 4: 1, 5: 0}, "lamp": {7: 1}, "desk": {8: 0}},
    )
    rows = [[9, 3, 5, 4], [1, 2, 8, 7], [8, 9, 1, 2]]
    scores = np.tile(np.array([4, 3, 2, 1], np.float32), (3, 1))
    return Run(["lamp", "chair", "desk"], np.array(rows)[[1, 0, 2]], scores), judgements


def test_by_hand(small: tuple[Run, Interactions], catalog: Catalog) -> None:
    run, judgements = small
    result = evaluate(
        run,
        judgements,
        catalog,
        measures=["nDCG@4", "RR@3", "R(rel=2)@4", "Coverage@2"],
        gains={0: 0, 1: 1, 2: 3},
    )
    log3, log5 = math.log2(3), math.log2(5)
    chair = (3 / log3 + 1 / log5) / (3 + 1 / log3)
    assert result.queries == ["chair", "lamp", "desk"]
    np.testing.assert_allclose(result.per_query["nDCG@4"], [chair, 1 / log5, np.nan])
    np.testing.assert_allclose(result.per_query["RR@3"], [1 / 2, 0, np.nan])
    np.testing.assert_allclose(result.per_query["R(rel=2)@4"], [1, np.nan, np.nan])
    assert result.means["nDCG@4"] == pytest.approx((chair + 1 / log5) / 2)
    assert result.means["Coverage@2"] == 5 / N_ITEMS  # items 9, 3, 1, 2, 8
    assert result.counted == {"nDCG@4": 2, "RR@3": 2, "R(rel=2)@4": 1, "Coverage@2": 3}
    assert result.queries_without_positives == 1


def test_min_grade_holds_where_a_measure_does_not_say(
    small: tuple[Run, Interactions], catalog: Catalog
) -> None:
    run, judgements = small
    names = ["RR@4", "RR(rel=2)@4", "RR(rel=1)@4", "nDCG@4"]
    result = evaluate(run, judgements, catalog, measures=names, min_grade=2)
    np.testing.assert_array_equal(result.per_query["RR@4"], result.per_query["RR(rel=2)@4"])
    assert result.counted == {"RR@4": 1, "RR(rel=2)@4": 1, "RR(rel=1)@4": 2, "nDCG@4": 2}


def test_positives_are_gains_above_zero(small: tuple[Run, Interactions], catalog: Catalog) -> None:
    """Grade 1 without gain: lamp has nothing to find for nDCG, yet counts for recall."""
    run, judgements = small
    result = evaluate(
        run, judgements, catalog, measures=["nDCG@4", "R@4"], gains={0: 0, 1: 0, 2: 1}
    )
    assert result.queries_without_positives == 2
    assert result.counted == {"nDCG@4": 1, "R@4": 2}


def test_default_measures_and_shallow_catalogue(catalog: Catalog) -> None:
    """A run as deep as the catalogue is enough for any cutoff."""
    rng = np.random.default_rng(0)
    judgements = random_judgements(rng, catalog, 5)
    rows = np.array([rng.permutation(N_ITEMS) for _ in range(5)])
    scores = np.tile(-np.arange(N_ITEMS, dtype=np.float32), (5, 1))
    result = evaluate(Run(judgements.queries, rows, scores), judgements, catalog)
    assert result.means["R@100"] == 1
    assert set(result.means) == {
        "nDCG@10", "RR@10", "R@100", "AP@100", "Success@10", "Coverage@10",
    }  # fmt: skip


def test_json_and_tables(small: tuple[Run, Interactions], catalog: Catalog, tmp_path: Path) -> None:
    run, judgements = small
    result = evaluate(run, judgements, catalog, measures=["RR@3", "nDCG@4", "Coverage@1"])
    data = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert data["measures"]["RR@3"]["mean"] == 0.25
    assert data["measures"]["RR@3"]["queries"] == 2
    assert data["measures"]["Coverage@1"] == {
        "mean": 3 / N_ITEMS, "interval_95": None, "queries": 3,
    }  # fmt: skip
    assert data["queries"] == 3
    assert data["queries_without_positives"] == 1
    assert data["gains"] == {"0": 0.0, "1": 1.0, "2": 2.0}

    result.write_per_query(tmp_path / "results" / "per_query.parquet")
    table = pa.parquet.read_table(tmp_path / "results" / "per_query.parquet")
    assert table.column_names == ["query", "RR@3", "nDCG@4"]
    assert table.column("RR@3").to_pylist() == [0.5, 0.0, None]
    result.write_per_query(tmp_path / "per_query.csv")
    with open(tmp_path / "per_query.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows] == ["chair", "lamp", "desk"]
    assert [row["RR@3"] for row in rows] == ["0.5", "0", ""]
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        result.write_per_query(tmp_path / "per_query.xlsx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measures": ["nDCG@5"]}, "nDCG@5 needs a run of 5 items a query, not of 4"),
        ({"measures": ["NDCG@4"]}, "unknown measure 'NDCG@4'"),
        ({"measures": ["nDCG@4 "]}, "unknown measure"),
        ({"measures": ["R"]}, "'R' needs a cutoff"),
        ({"measures": ["RR@0"]}, "'RR@0' needs a cutoff"),
        ({"measures": ["RR(rel=0)@3"]}, "1 or more"),
        ({"measures": ["nDCG(rel=2)@3"]}, "rel is for"),
        ({"measures": ["R(rel=3)@4"]}, "none of the 3 queries has an item with grade 3 or more"),
        ({"gains": {0: 0, 1: 0, 2: 0}}, "nDCG@4: none of the 3 queries .* a gain above 0"),
        ({"gains": {0: 0, 1: 1}}, "grade 2 .* has no gain"),
        ({"gains": {0: -1, 1: 1, 2: 2}}, "grade 0 has gain -1"),
        ({"gains": {0: 0, 1: 1, 2: float("nan")}}, "grade 2 has gain nan"),
        ({"min_grade": 0}, "min_grade is 0"),
    ],
)
def test_wrong_arguments(
    small: tuple[Run, Interactions], catalog: Catalog, change: dict[str, Any], message: str
) -> None:
    run, judgements = small
    with pytest.raises(InputError, match=message):
        evaluate(run, judgements, catalog, **{"measures": ["nDCG@4"], **change})


def test_a_run_of_another_catalogue(small: tuple[Run, Interactions], catalog: Catalog) -> None:
    run, judgements = small
    run.item_rows[0, 0] = N_ITEMS
    with pytest.raises(InputError, match=f"item row {N_ITEMS}, the catalogue {N_ITEMS} items"):
        evaluate(run, judgements, catalog, measures=["RR@4"])


def test_no_judgements(small: tuple[Run, Interactions], catalog: Catalog) -> None:
    with pytest.raises(InputError, match=r"judgements\.csv: no judgements"):
        evaluate(small[0], judged(catalog, {}), catalog, measures=["RR@4"])


def test_measure_names() -> None:
    assert Measure.parse("R(rel=2)@100") == Measure("R(rel=2)@100", "R", 100, 2)
    assert Measure.parse("AP") == Measure("AP", "AP", None, None)


def test_bootstrap_interval_equals_scipy() -> None:
    values = np.random.default_rng(5).beta(0.5, 0.5, 300)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    ours = bootstrap_interval(values, resamples=20_000)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.002)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(np.array([0.25])) == (0.25, 0.25)
    wide, narrow = bootstrap_interval(values, confidence=0.99), bootstrap_interval(values)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
