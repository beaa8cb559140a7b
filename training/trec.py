"""Run and qrels files of TREC, which trec_eval, ir-measures and ranx read.

A run file has one line an item, `qid Q0 docid rank score tag`, a qrels file one a judgement,
`qid 0 docid grade`. Fields are split at white space, so queries are numbered (`1`, `2`, ...), and
a map `qid<TAB>query` stands beside the run, named as the run with `.queries.tsv` behind it. Two
kinds of text do not fit as they are:

- White space in an item id is percent-encoded (`a b` -> `a%20b`), and so is a `%` that would read
  as such a code. Other ids stand as they are.
- Tab, line feed, carriage return and backslash in a query are written `\\t`, `\\n`, `\\r`, `\\\\`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from towers.errors import InputError
from training.atomic_file import atomic_file
from training.search import Run

_UNSAFE = re.compile(r"\s|%(?=[0-9A-Fa-f]{2})")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def queries_path(run_path: str | os.PathLike[str]) -> Path:
    """Path of the map from qid to query that stands beside a run file."""
    return Path(f"{os.fspath(run_path)}.queries.tsv")


def write_run(
    path: str | os.PathLike[str],
    run: Run,
    item_ids: Sequence[str] | np.ndarray,
    *,
    depth: int = 100,
    tag: str = "fewshot-towers",
) -> None:
    """Writes a run and its map of queries, each whole or not at all.

    TREC tools order by score alone and break ties by item id. So that they see the order of the
    run, a score that is not below the one before it is written as the next lower float32.

    Args:
        path: Run file.
        run: Items found for each query.
        item_ids: Ids of the catalogue, by row.
        depth: Items written for each query.
        tag: Name of the system, without white space.

    Raises:
        InputError: The tag has white space.
    """
    if not tag or re.search(r"\s", tag):
        raise InputError(f"tag {tag!r} of a run must be a word without white space")
    rows = run.item_rows[:, :depth]
    scores = _falling(run.scores[:, :depth])
    docids = {row: _docid(item_ids[row]) for row in np.unique(rows[rows >= 0]).tolist()}
    # The map first: a run never stands there without it.
    with (
        atomic_file(queries_path(path)) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        for qid, query in enumerate(run.queries, 1):
            file.write(f"{qid}\t{_escape(query)}\n")
    with (
        atomic_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        for qid in range(1, len(rows) + 1):
            found = zip(rows[qid - 1].tolist(), scores[qid - 1], strict=True)
            for rank, (row, score) in enumerate(found, 1):
                if row >= 0:
                    file.write(f"{qid} Q0 {docids[row]} {rank} {score!s} {tag}\n")


def write_qrels(
    path: str | os.PathLike[str],
    qrels: Mapping[str, Mapping[str, int]],
    queries: Sequence[str],
) -> None:
    """Writes judgements with the query numbers of a run, whole or not at all.

    Args:
        path: Qrels file.
        qrels: Grade of each item id of each query.
        queries: The run's queries, in order.

    Raises:
        InputError: A judged query is not among the run's.
    """
    qids = {query: qid for qid, query in enumerate(queries, 1)}
    with (
        atomic_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        for query, grades in qrels.items():
            if query not in qids:
                raise InputError(f"the judged query {query!r} is not in the run, it has no number")
            for item_id, grade in grades.items():
                file.write(f"{qids[query]} 0 {_docid(item_id)} {grade}\n")


def _falling(scores: np.ndarray) -> np.ndarray:
    """Scores `[Q, k]` that fall strictly along each row, changed as little as float32 allows."""
    scores = scores.astype(np.float32)
    for rank in range(1, scores.shape[1]):
        before = scores[:, rank - 1]
        # Not a subnormal below 0: code built to flush those to 0 would see a tie again.
        below = np.minimum(np.nextafter(before, np.float32(-np.inf)), before - np.float32(1e-12))
        scores[:, rank] = np.minimum(scores[:, rank], below)
    return scores


def _docid(item_id: str) -> str:
    return _UNSAFE.sub(lambda match: quote(match[0], safe=""), item_id)


def _escape(query: str) -> str:
    return re.sub(r"[\\\t\n\r]", lambda match: _ESCAPES[match[0]], query)
