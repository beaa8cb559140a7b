"""`search_filtered` against NumPy: filters, exclusions, columns in answers, on every index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.export import ExportResult, export_retriever
from serving.index.item_index import FLOOR_SCORE
from serving.item_columns import ItemColumns
from serving.lexical import LexicalIndex, normalised
from serving.loading import load_export
from serving.warmup import WARMUP_FILE
from towers import InputError, Retriever

K = 5
WEIGHT = 0.4
COLUMNS: dict[str, list[Any]] = {
    "category": ["Kitchen", "Kitchen", "Kitchen", "Kitchen", "Garden", "Garden", None, "Kitchen"],
    "in_stock": ["yes", "no", "yes", "yes", "no", "yes", "yes", ""],
    "price": [40.0, 50.0, None, 8.0, 20.0, 25.0, 30.0, 35.0],
}
QUERIES = ["coffee mug", "garden", "", "漢字"]


class Shop:
    """An export with columns, and the oracle's scores."""

    def __init__(self, retriever: Retriever, catalog: dict[str, list[str]], base: Path, index: str):
        texts = retriever.template.render(catalog)
        hybrid = {"lexical_weight": WEIGHT, "lexical_fields": {"title": catalog["title"]}}
        self.ids = catalog["item_id"]
        self.result: ExportResult = export_retriever(
            retriever,
            self.ids,
            texts,
            base,
            k=K,
            columns=COLUMNS,
            **(hybrid if index == "hybrid" else {"index": index}),
        )
        self.signatures = load_export(self.result.path).signatures
        self.scores = retriever.encode_queries(QUERIES) @ retriever.encode_items(texts).T
        if index == "hybrid":
            words = LexicalIndex.build({"title": catalog["title"]}).scores(tf.constant(QUERIES))
            self.scores = (1 - WEIGHT) * self.scores + WEIGHT * normalised(words).numpy()

    def ask(
        self,
        exclude: list[list[str]] | None = None,
        category: list[list[str]] | None = None,
        in_stock: list[list[str]] | None = None,
        price: list[list[float]] | None = None,
    ) -> dict[str, np.ndarray]:
        nothing: list[list[str]] = [[] for _ in QUERIES]
        texts = {"exclude": exclude, "category": category, "in_stock": in_stock}
        answer = self.signatures["search_filtered"](
            query=tf.constant(QUERIES),
            price=tf.constant(price or nothing, tf.float32),
            **{name: tf.constant(given or nothing, tf.string) for name, given in texts.items()},
        )
        return {name: value.numpy() for name, value in answer.items()}

    def assert_answer(self, answer: dict[str, np.ndarray], allowed: list[list[int]]) -> None:
        """Compares an answer with the best of the allowed rows, in NumPy."""
        for query, rows in enumerate(allowed):
            best = sorted(rows, key=lambda row: -self.scores[query, row])[:K]
            ids = [item.decode() for item in answer["item_ids"][query]]
            assert ids == [self.ids[row] for row in best] + [""] * (K - len(best))
            expected = np.full(K, FLOOR_SCORE)
            expected[: len(best)] = self.scores[query, best]
            np.testing.assert_allclose(answer["scores"][query], expected, atol=1e-4)
            for name, none in (("category", ""), ("in_stock", ""), ("price", 0.0)):
                told = [COLUMNS[name][row] or none for row in best] + [none] * (K - len(best))
                got = answer[name][query].tolist()
                assert [x.decode() if isinstance(x, bytes) else x for x in got] == told


@pytest.fixture(scope="module", params=["exact", "hybrid", "scann", "partitioned"])
def shop(
    request: pytest.FixtureRequest,
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Shop:
    base = tmp_path_factory.mktemp("filtered") / "shop"
    return Shop(tiny_retriever, tiny_catalog, base, request.param)


ALL = list(range(8))


def test_nothing_asked_for_is_plain_search(shop: Shop) -> None:
    answer = shop.ask()
    shop.assert_answer(answer, [ALL] * 4)
    plain = shop.signatures["search"](query=tf.constant(QUERIES))
    np.testing.assert_array_equal(answer["item_ids"], plain["item_ids"].numpy())


def test_each_query_has_its_own_values(shop: Shop) -> None:
    # Rows of one batch name different numbers of values; what no item has allows none.
    answer = shop.ask(category=[["Garden", ""], ["Kitchen", "Garden"], ["", ""], ["Toys", ""]])
    shop.assert_answer(answer, [[4, 5], [0, 1, 2, 3, 4, 5, 7], ALL, []])


def test_prices(shop: Shop) -> None:
    price = [[20.0, 35.0], [8.0, 8.0], [100.0, 1e30], [50.0, 0.0]]
    shop.assert_answer(shop.ask(price=price), [[4, 5, 6, 7], [3], [], []])
    shop.assert_answer(
        shop.ask(price=[[36.0], [0.0], [-1.0], [51.0]]),
        [[0, 1], [0, 1, 3, 4, 5, 6, 7], [0, 1, 3, 4, 5, 6, 7], []],
    )


def test_exclusions(shop: Shop) -> None:
    exclude = [["k1", "", "zz"], ["g1", "g2", "g1"], ["", "", ""], ["é1", "p 1", "k2"]]
    answer = shop.ask(exclude=exclude)
    shop.assert_answer(
        answer, [ALL[1:], [0, 1, 2, 3, 6, 7], ALL, [row for row in ALL if row not in (1, 6, 7)]]
    )


def test_all_together(shop: Shop) -> None:
    answer = shop.ask(
        exclude=[["m2"]] * 4,
        category=[["Kitchen"]] * 4,
        in_stock=[["yes"], ["no"], ["yes"], [""]],
        price=[[1.0, 45.0]] * 4,
    )
    shop.assert_answer(answer, [[0], [], [0], [0, 7]])


def test_signature_manifest_and_warmup(shop: Shop) -> None:
    spec = shop.signatures["search_filtered"].structured_input_signature[1]
    assert {name: (one.shape.as_list(), one.dtype) for name, one in spec.items()} == {
        "query": ([None], tf.string),
        "exclude": ([None, None], tf.string),
        "category": ([None, None], tf.string),
        "in_stock": ([None, None], tf.string),
        "price": ([None, None], tf.float32),
    }
    outputs = shop.signatures["search_filtered"].structured_outputs
    assert {name: one.shape.as_list() for name, one in outputs.items()} == {
        name: [None, K] for name in ("item_ids", "scores", *COLUMNS)
    }
    assert set(shop.signatures["search"].structured_outputs) == {"item_ids", "scores"}
    manifest = shop.result.manifest
    assert manifest.columns == {"category": "text", "in_stock": "text", "price": "number"}
    assert "search_filtered" in manifest.signatures

    sizes = []
    for record in tf.data.TFRecordDataset(str(shop.result.path / WARMUP_FILE)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        if request.model_spec.signature_name == "search_filtered":
            inputs = {name: tf.constant(tf.make_ndarray(x)) for name, x in request.inputs.items()}
            inputs = {n: tf.cast(x, tf.string) if n != "price" else x for n, x in inputs.items()}
            sizes.append(len(shop.signatures["search_filtered"](**inputs)["item_ids"]))
    assert sizes == [1, 2, 8, 32]


def test_an_empty_batch(shop: Shop) -> None:
    answer = shop.signatures["search_filtered"](
        query=tf.zeros([0], tf.string),
        exclude=tf.zeros([0, 0], tf.string),
        category=tf.zeros([0, 0], tf.string),
        in_stock=tf.zeros([0, 3], tf.string),
        price=tf.zeros([0, 2]),
    )
    assert {name: value.shape for name, value in answer.items()} == dict.fromkeys(
        ("item_ids", "scores", "category", "in_stock", "price"), (0, K)
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"scores": ["a"]}, "'scores' cannot be the name"),
        ({"in stock": ["a"]}, "'in stock' cannot be the name"),
        ({"price": [1.0, 2.0]}, "column 'price' has 2 values for 1 items"),
    ],
)
def test_bad_columns(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ItemColumns(columns, 1)


def test_texts_and_numbers_in_one_column() -> None:
    with pytest.raises(InputError, match=r"column 'size': .* both"):
        ItemColumns({"size": ["a", 3.0]}, 2)


def test_a_column_without_any_value() -> None:
    columns = ItemColumns({"colour": [None, ""]}, 2)
    assert columns.kinds == {"colour": "text"}
    allowed = columns.allowed({"colour": tf.constant([["red"], [""]])})
    np.testing.assert_array_equal(allowed, [[False, False], [True, True]])
