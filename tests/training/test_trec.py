"""TREC files: what is written comes back, and reads the same to ir-measures."""

from __future__ import annotations

import gzip
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.catalog import Catalog
from training.search import Run
from training.trec import queries_path, read_run, write_qrels, write_run


def catalog_of(folder: Path, item_ids: list[str]) -> Catalog:
    import json

    path = folder / "catalog.jsonl"
    lines = (json.dumps({"item_id": item_id, "title": "x"}) for item_id in item_ids)
    path.write_text("\n".join(lines), encoding="utf-8")
    return Catalog.read(path)


def run_of(queries: list[str], rows: list[list[int]], scores: list[list[float]]) -> Run:
    return Run(queries, np.array(rows, np.int64), np.array(scores, np.float32))


def test_the_format(tmp_path: Path) -> None:
    run = run_of(
        ["red chair", "desk\tlamp"], [[2, 0, 1], [1, -1, -1]],
        [[0.75, 0.5, -0.25], [1.5, -np.inf, -np.inf]],
    )  # fmt: skip
    path = tmp_path / "new folder" / "shop.trec"
    write_run(path, run, ["A", "B", "C"], depth=2, tag="bm25")
    assert path.read_text() == "1 Q0 C 1 0.75 bm25\n1 Q0 A 2 0.5 bm25\n2 Q0 B 1 1.5 bm25\n"
    assert queries_path(path) == tmp_path / "new folder" / "shop.trec.queries.tsv"
    assert queries_path(path).read_text() == "1\tred chair\n2\tdesk\\tlamp\n"
    assert len(list(path.parent.iterdir())) == 2  # no temporary file is left

    write_qrels(tmp_path / "shop.qrels", {"desk\tlamp": {"B": 2, "C": 0}}, run.queries)
    assert (tmp_path / "shop.qrels").read_text() == "2 0 B 2\n2 0 C 0\n"


def test_top_100_unless_told(tmp_path: Path) -> None:
    run = run_of(["q"], [list(range(120))], [[-float(i) for i in range(120)]])
    ids = [f"item{i}" for i in range(120)]
    write_run(tmp_path / "run", run, ids)
    assert len((tmp_path / "run").read_text().splitlines()) == 100
    back = read_run(tmp_path / "run", catalog_of(tmp_path, ids))
    assert back.item_rows.shape == (1, 100)
    np.testing.assert_array_equal(back.item_rows, run.item_rows[:, :100])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
item_texts = st.text(
    st.sampled_from(" \t\u00a0\u3000%2050aFé") | st.characters(exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    queries=st.lists(
        texts | st.text(st.sampled_from("\\nrt\t\n\r\u2028 ")), min_size=1, max_size=4, unique=True
    ),
    item_ids=st.lists(
        item_texts.filter(lambda x: x == x.strip()), min_size=3, max_size=3, unique=True
    ),
)
def test_any_text_comes_back(tmp_path: Path, queries: list[str], item_ids: list[str]) -> None:
    catalog = catalog_of(tmp_path, item_ids)
    n = len(queries)
    run = run_of(queries, [[1, 2, 0]] * n, [[3.5, 0.1, -2e-8]] * n)
    write_run(tmp_path / "run", run, catalog.item_ids)
    lines = (tmp_path / "run").read_bytes().split(b"\n")
    assert all(len(line.decode().split()) == 6 for line in lines[:-1])
    assert len(queries_path(tmp_path / "run").read_bytes().split(b"\n")) == n + 1
    back = read_run(tmp_path / "run", catalog, depth=3)
    assert back.queries == queries
    np.testing.assert_array_equal(back.item_rows, run.item_rows)
    np.testing.assert_array_equal(back.scores, run.scores)


def test_ordinary_ids_stand_as_they_are(tmp_path: Path) -> None:
    ids = ["50%off", "a/b?c=d", "Stuhl-größe", "two words", "100%25"]
    run = run_of(["q"], [[0, 1, 2, 3, 4]], [[5, 4, 3, 2, 1]])
    write_run(tmp_path / "run", run, ids)
    docids = [line.split()[2] for line in (tmp_path / "run").read_text("utf-8").splitlines()]
    assert docids == ["50%off", "a/b?c=d", "Stuhl-größe", "two%20words", "100%2525"]


@pytest.mark.parametrize("score", [1.0, 0.0, -0.0, 1e-30, -7.25, 3e8])
def test_ties_keep_their_order_for_other_tools(tmp_path: Path, score: float) -> None:
    """trec_eval would order equal scores by id, from high to low."""
    ids = [f"item{i:03}" for i in range(50)]
    rows = np.random.default_rng(0).permutation(50)
    run = run_of(["q"], [rows.tolist()], [[score] * 50])
    write_run(tmp_path / "run", run, ids)
    found = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    qrels = [ir_measures.Qrel("1", item.doc_id, 1) for item in found]
    for rank, qrel in enumerate(qrels, 1):
        rr = ir_measures.calc_aggregate([ir_measures.RR], [qrel], found)[ir_measures.RR]
        assert rr == pytest.approx(1 / rank)
    back = read_run(tmp_path / "run", catalog_of(tmp_path, ids), depth=50)
    np.testing.assert_array_equal(back.item_rows, run.item_rows)
    np.testing.assert_allclose(back.scores, run.scores, rtol=1e-5, atol=1e-10)


def test_a_foreign_run_is_ordered_as_trec_eval_does(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "run").write_text(
        "q7 Q0 a 1 2 x\nq7 Q0 d 2 2 x\n\nq3 Q0 c 9 1 x\r\nq7 Q0 b 0 5e0 x\n"
    )
    queries_path(tmp_path / "run").write_text("q7\tfirst\nq3\tsecond\nq9\tthird\n")
    run = read_run(tmp_path / "run", catalog, depth=3)
    assert run.queries == ["first", "second", "third"]
    np.testing.assert_array_equal(run.item_rows, [[1, 3, 0], [2, -1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(run.scores[0], [5, 2, 2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 Q0 a 1 2", "line 2: 5 fields"),
        ("1 Q0 a b 1 2 x", "line 2: 7 fields"),
        ("9 Q0 a 1 2 x", "line 2: qid '9'"),
        ("1 Q0 zz 1 2 x", "line 2: the catalogue has no item 'zz'"),
        ("1 Q0 a 1 two x", "line 2: score 'two'"),
        ("1 Q0 a 1 nan x", "line 2: score 'nan'"),
        ("1 Q0 b 1 2 x", "run: .* an item twice"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run").write_text(f"1 Q0 b 1 3 x\n{line}\n")
    queries_path(tmp_path / "run").write_text("1\tquery\n")
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "run", catalog_of(tmp_path, ["a", "b"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [("1 query", "line 1: expected"), ("1\ta\n1\tb", "line 2: qid '1'"), ("1\ta\n2\ta", "2 times")],
)
def test_bad_map(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run").write_text("1 Q0 a 1 3 x\n")
    queries_path(tmp_path / "run").write_text(content)
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "run", catalog_of(tmp_path, ["a"]))


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, ["a"])
    (tmp_path / "run").write_text("1 Q0 a 1 3 x\n")
    with pytest.raises(InputError, match=r"no file .*run\.queries\.tsv"):
        read_run(tmp_path / "run", catalog)
    queries_path(tmp_path / "run").write_bytes(gzip.compress(b"1\ta"))
    with pytest.raises(InputError, match="not UTF-8 at byte 1"):
        read_run(tmp_path / "run", catalog)


def test_an_empty_run(tmp_path: Path) -> None:
    run = Run(["q"], np.full((1, 2), -1), np.full((1, 2), -np.inf, np.float32))
    write_run(tmp_path / "run", run, ["a"])
    assert (tmp_path / "run").read_text() == ""
    back = read_run(tmp_path / "run", catalog_of(tmp_path, ["a"]), depth=2)
    assert back.queries == ["q"]
    assert (back.item_rows == -1).all()


def test_refusals_leave_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("old")
    with pytest.raises(InputError, match="'other' is not in the run"):
        write_qrels(tmp_path / "qrels", {"q": {"a": 1}, "other": {"a": 1}}, ["q"])
    assert (tmp_path / "qrels").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["qrels"]
    with pytest.raises(InputError, match="tag 'my system'"):
        write_run(tmp_path / "run", run_of(["q"], [[0]], [[1]]), ["a"], tag="my system")
