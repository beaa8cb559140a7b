"""Exports whose search adds a lexical score to the towers' cosine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.export import ExportResult, export_retriever
from serving.index.item_index import EMPTY_ID, FLOOR_SCORE
from serving.lexical import LexicalIndex
from serving.loading import load_export
from towers import InputError, Retriever

WEIGHT = 0.4
QUERIES = ["electric kettle", "gardn rake", "Crème brûlée", "zzz", "", "漢字"]


@pytest.fixture(scope="module")
def texts(tiny_retriever: Retriever, tiny_catalog: dict[str, list[str]]) -> list[str]:
    return tiny_retriever.template.render(tiny_catalog)


@pytest.fixture(scope="module")
def exported(
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    texts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportResult:
    return export_retriever(
        tiny_retriever,
        tiny_catalog["item_id"],
        texts,
        tmp_path_factory.mktemp("hybrid") / "shop",
        k=10,
        lexical_weight=WEIGHT,
        lexical_fields={name: tiny_catalog[name] for name in ("title", "description")},
    )


def test_search_is_the_weighted_sum_of_both_scores(
    exported: ExportResult,
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    texts: list[str],
) -> None:
    cosines = tiny_retriever.encode_queries(QUERIES) @ tiny_retriever.encode_items(texts).T
    fields = {name: tiny_catalog[name] for name in ("title", "description")}
    words = LexicalIndex.build(fields).scores(tf.constant(QUERIES)).numpy()
    best = words.max(axis=1, keepdims=True)
    words = np.divide(words, best, out=np.zeros_like(words), where=best > 0)
    expected = (1 - WEIGHT) * cosines + WEIGHT * words  # [6, 8]
    assert (best[:3] > 0).all()
    assert (best[3:] == 0).all()

    answer = load_export(exported.path).signatures["search"](query=tf.constant(QUERIES))
    scores, item_ids = answer["scores"].numpy(), answer["item_ids"].numpy()
    np.testing.assert_allclose(scores[:, :8], -np.sort(-expected, axis=1), atol=1e-5)
    rows = np.argsort(-expected, axis=1, kind="stable")
    ids = np.array([item.encode() for item in tiny_catalog["item_id"]], dtype=object)
    np.testing.assert_array_equal(item_ids[:, :8], ids[rows])
    # Ten places, eight items.
    assert (item_ids[:, 8:] == EMPTY_ID.encode()).all()
    assert (scores[:, 8:] == FLOOR_SCORE).all()


def test_empty_batches_and_similar_items_work_as_without_it(exported: ExportResult) -> None:
    signatures = load_export(exported.path).signatures
    empty = signatures["search"](query=tf.constant([], tf.string))
    assert empty["item_ids"].shape == (0, 10)
    similar = signatures["similar"](item_id=tf.constant(["k1"]))
    assert b"k1" not in similar["item_ids"].numpy()


def test_the_manifest_tells_weight_and_fields(exported: ExportResult) -> None:
    assert exported.manifest.lexical_weight == WEIGHT
    assert set(exported.manifest.lexical_parameters["field_weights"]) == {"title", "description"}
    assert exported.manifest.index_kind == "exact"


@pytest.mark.parametrize(
    ("weight", "index", "message"),
    [
        (1.5, "auto", "from 0 to 1"),
        (float("nan"), "auto", "from 0 to 1"),
        (0.5, "scann", "ScaNN"),
        (0.5, "partitioned", "a partitioned index cannot"),
    ],
)
def test_what_cannot_be_is_refused(
    weight: float,
    index: str,
    message: str,
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    texts: list[str],
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=message):
        export_retriever(
            tiny_retriever,
            tiny_catalog["item_id"],
            texts,
            tmp_path / "shop",
            index=index,
            lexical_weight=weight,
        )
    assert not (tmp_path / "shop").exists()
