"""Checks of a version: a sound one passes; each fault that is put in is found, and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.export import export_retriever
from serving.index.scann import ScannIndex
from serving.stored_items import STORE
from serving.verify import Verification, verify
from towers import InputError, Retriever


@pytest.fixture(scope="module")
def exported(
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return export_retriever(
        tiny_retriever,
        tiny_catalog["item_id"],
        tiny_retriever.template.render(tiny_catalog),
        tmp_path_factory.mktemp("models") / "shop",
        k=3,
        lexical_weight=0.4,
        lexical_fields={name: tiny_catalog[name] for name in ("title", "description")},
    ).path


@pytest.fixture
def version(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "1"))


@pytest.fixture
def catalog(tiny_retriever: Retriever, tiny_catalog: dict[str, list[str]]) -> dict[str, str]:
    texts = tiny_retriever.template.render(tiny_catalog)
    return dict(zip(tiny_catalog["item_id"], texts, strict=True))


def _found(result: Verification) -> dict[str, tuple[int, list[str]]]:
    return {problem.check: (problem.count, problem.examples) for problem in result.problems}


def _change_items(version: Path, **columns: list[Any]) -> None:
    path = version / STORE / "items.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        row = table.column_names.index(name)
        table = table.set_column(row, name, pa.array(values, pa.large_string()))
    pq.write_table(table, path)


def _change_embeddings(version: Path, rows: dict[int, Any]) -> None:
    path = version / STORE / "item_embeddings.npy"
    embeddings = np.load(path)
    for row, value in rows.items():
        embeddings[row] = value
    np.save(path, embeddings)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_a_sound_version_has_no_problem(
    weight: float,
    exported: Path,
    catalog: dict[str, str],
    tiny_retriever: Retriever,
    tmp_path: Path,
) -> None:
    if not weight:
        texts = list(catalog.values())
        exported = export_retriever(tiny_retriever, list(catalog), texts, tmp_path / "shop").path
    result = verify(exported, catalog=catalog, queries=["mug", "electric kettel", "漢字", "mug"])
    assert result == Verification(8, 1.0, 3, "sample queries", [])
    assert verify(exported, sample=5).queries == 5


def test_ids_and_counts(version: Path) -> None:
    ids = ["k1", "k2", "m1", "m2", "g1", "g2", "k1", "é1"]
    _change_items(version, item_id=ids)
    facts = json.loads((version / "manifest.json").read_text())
    (version / "manifest.json").write_text(json.dumps(facts | {"item_count": 10}))
    found = _found(verify(version))
    assert found["count"] == (2, [])
    assert found["ids"] == (1, ["k1"])


def test_embeddings(version: Path) -> None:
    _change_embeddings(version, {0: np.nan, 3: np.full(32, 2.0), 5: np.eye(32)[0]})
    found = _found(verify(version))
    assert found["finite"] == (1, ["k1"])
    assert found["norm"] == (1, ["m2"])
    count, examples = found["vectors"]
    assert count == len(examples)
    assert {"k1", "g2"} <= set(examples) <= {"k1", "m2", "g2"}


def test_items_that_the_graph_does_not_know(version: Path) -> None:
    _change_items(version, item_id=["k1", "k2", "m1", "other", "g1", "g2", "p 1", "é1"])
    found = _found(verify(version, queries=["Red mug"]))
    assert found["lookup"] == (1, ["other"])
    assert found["answers"] == (1, ["m2"])  # the best answer is no longer kept


def test_against_a_catalogue(version: Path, catalog: dict[str, str]) -> None:
    changed = {name: text for name, text in catalog.items() if name not in ("k1", "g1")}
    changed |= {"m2": "Blue mug", "n1": "New mug"}
    found = _found(verify(version, catalog=changed))
    assert found == {
        "orphans": (2, ["k1", "g1"]),
        "missing": (1, ["n1"]),
        "texts": (1, ["m2"]),
    }


def test_low_recall(
    tiny_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An index that only ever looks into one of its leaves.
    monkeypatch.setattr("serving.index.auto._SHARES_OF_LEAVES", (0.0001,))
    monkeypatch.setattr(ScannIndex, "_set_sizes", _one_leaf_of_eight)
    words = ["mug", "rake", "kettle", "hose", "cat", "lid", "coffee", "garden"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words[:2]]
    ids = [str(row) for row in range(len(texts))]
    path = export_retriever(tiny_retriever, ids, texts, tmp_path / "shop", index="scann").path
    result = verify(path)
    assert result.recall < 0.9
    assert "recall" in _found(result)
    assert "recall" not in _found(verify(path, least_recall=0.0))


def _one_leaf_of_eight(index: ScannIndex, count: int) -> None:
    index.leaves, index.hashed, index.leaves_to_search, index.reorder = 8, True, 1, 10


def test_no_version(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        verify(tmp_path)
