"""TREC files: what is written can be read back, and reads the same to ir-measures."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import ir_measures
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.search import Run
from training.trec import queries_path, write_qrels, write_run


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
    found = [item.doc_id for item in ir_measures.read_trec_run(str(tmp_path / "run"))]
    assert found == ids[:100]


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
def test_any_text_can_be_read_back(tmp_path: Path, queries: list[str], item_ids: list[str]) -> None:
    scores = [3.5, 0.1, -2e-8]
    write_run(
        tmp_path / "run",
        run_of(queries, [[1, 2, 0]] * len(queries), [scores] * len(queries)),
        item_ids,
    )
    lines = (tmp_path / "run").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    fields = [line.split() for line in lines]
    assert [field[0] for field in fields] == [
        str(q + 1) for q in range(len(queries)) for _ in "abc"
    ]
    found = [unquote(field[2]) for field in fields]
    assert found == [item_ids[row] for row in (1, 2, 0)] * len(queries)
    assert [np.float32(field[4]) for field in fields] == [np.float32(x) for x in scores] * len(
        queries
    )

    lines = queries_path(tmp_path / "run").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    plain = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}
    for qid, (line, query) in enumerate(zip(lines, queries, strict=True), 1):
        number, text = line.split("\t")
        assert number == str(qid)
        assert re.sub(r"\\(.)", lambda code: plain[code[1]], text) == query


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
    assert [item.doc_id for item in found] == [ids[row] for row in rows]
    np.testing.assert_allclose([item.score for item in found], score, rtol=1e-5, atol=1e-10)


def test_an_empty_run(tmp_path: Path) -> None:
    run = Run(["q"], np.full((1, 2), -1), np.full((1, 2), -np.inf, np.float32))
    write_run(tmp_path / "run", run, ["a"])
    assert (tmp_path / "run").read_text() == ""
    assert queries_path(tmp_path / "run").read_text() == "1\tq\n"


def test_refusals_leave_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("old")
    with pytest.raises(InputError, match="'other' is not in the run"):
        write_qrels(tmp_path / "qrels", {"q": {"a": 1}, "other": {"a": 1}}, ["q"])
    assert (tmp_path / "qrels").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["qrels"]
    with pytest.raises(InputError, match="tag 'my system'"):
        write_run(tmp_path / "run", run_of(["q"], [[0]], [[1]]), ["a"], tag="my system")
