"""Exports against NumPy, in this process and in a fresh one; warm-up; bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving.export import ExportResult, export_retriever
from serving.index.item_index import FLOOR_SCORE
from serving.loading import load_export, uses_scann
from serving.manifest import SCANN_SERVER, STOCK_SERVER, Manifest
from serving.warmup import MAX_RECORDS, WARMUP_FILE
from towers import InputError, Retriever

_SECRET = "where is the present for my wife Zebulina"


class Exported:
    """An export with the retriever and the items it was made of."""

    def __init__(self, retriever: Retriever, catalog: dict[str, list[str]], **options: Any) -> None:
        self.retriever = retriever
        self.item_ids = catalog["item_id"]
        self.item_texts = retriever.template.render(catalog)
        self.k = options["k"]
        self.stages: list[str] = []
        self.result: ExportResult = export_retriever(
            retriever,
            self.item_ids,
            self.item_texts,
            progress=lambda stage, done, total: self.stages.append(stage),
            **options,
        )
        self.path = self.result.path
        self.loaded = load_export(self.path)

    def call(self, signature: str, **inputs: list[str]) -> dict[str, np.ndarray]:
        tensors = {name: tf.constant(values, tf.string) for name, values in inputs.items()}
        answer = self.loaded.signatures[signature](**tensors)
        return {name: value.numpy() for name, value in answer.items()}

    def oracle(self, queries: np.ndarray, skip: list[str]) -> tuple[list[list[str]], np.ndarray]:
        """Best items of each query embedding, in NumPy; the item in `skip` is left out."""
        items = self.retriever.as_float32().encode_items(self.item_texts)
        ids, scores = [], np.full((len(queries), self.k), FLOOR_SCORE)
        for row, query in enumerate(queries @ items.T):
            order = np.argsort(-query, kind="stable")
            order = [i for i in order if self.item_ids[i] != skip[row]][: self.k]
            scores[row, : len(order)] = query[order]
            ids.append([self.item_ids[i] for i in order] + [""] * (self.k - len(order)))
        return ids, scores


def _text(ids: np.ndarray) -> list[list[str]]:
    return [[item.decode() for item in row] for row in ids]


@pytest.fixture(scope="module", params=["exact", "scann"])
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_tiny_retriever: Callable[..., Retriever],
    tiny_catalog: dict[str, list[str]],
) -> Exported:
    base = tmp_path_factory.mktemp("models") / "shop"
    if request.param == "exact":  # wider than the catalogue; a compiled model
        retriever = make_tiny_retriever()
        retriever.model.compile(optimizer="adam")
        return Exported(retriever, tiny_catalog, output=base, k=10)
    retriever = make_tiny_retriever(seed=3, shared=False, dtype="mixed_bfloat16")
    queries = [_SECRET, "coffee"]
    return Exported(
        retriever,
        tiny_catalog,
        output=base,
        k=3,
        index="scann",
        sample_queries=queries,
        run_id="run 7",
    )


def test_search_equals_numpy(exported: Exported, golden_texts: list[str]) -> None:
    queries = exported.retriever.as_float32().encode_queries(golden_texts)
    ids, scores = exported.oracle(queries, [""] * len(queries))
    for name in ("search", "serving_default"):
        answer = exported.call(name, query=golden_texts)
        assert _text(answer["item_ids"]) == ids
        np.testing.assert_allclose(answer["scores"], scores, atol=1e-4)
        assert answer["scores"].dtype == np.float32


def test_similar_equals_numpy(exported: Exported) -> None:
    asked = [exported.item_ids[3], exported.item_ids[7], exported.item_ids[3]]
    items = exported.retriever.as_float32().encode_items(exported.item_texts)
    ids, scores = exported.oracle(items[[3, 7, 3]], asked)
    answer = exported.call("similar", item_id=[asked[0], "unknown", asked[1], "", asked[2]])
    assert _text(answer["item_ids"][[0, 2, 4]]) == ids
    np.testing.assert_allclose(answer["scores"][[0, 2, 4]], scores, atol=1e-4)
    assert _text(answer["item_ids"][[1, 3]]) == [[""] * exported.k] * 2
    assert np.all(answer["scores"][[1, 3]] == FLOOR_SCORE)


def test_encoders_equal_the_towers(exported: Exported, golden_texts: list[str]) -> None:
    retriever = exported.retriever.as_float32()
    query = exported.call("encode_query", query=golden_texts)["embedding"]
    np.testing.assert_allclose(query, retriever.encode_queries(golden_texts), atol=1e-5)
    item = exported.call("encode_item", text=golden_texts)["embedding"]
    np.testing.assert_allclose(item, retriever.encode_items(golden_texts), atol=1e-5)


def test_signatures(exported: Exported) -> None:
    found = {"item_ids": [None, exported.k], "scores": [None, exported.k]}
    vector = {"embedding": [None, 32]}
    expected = {
        "serving_default": ("query", found),
        "search": ("query", found),
        "encode_query": ("query", vector),
        "encode_item": ("text", vector),
        "similar": ("item_id", found),
    }
    assert set(exported.loaded.signatures) == set(expected)
    for name, (input_name, outputs) in expected.items():
        signature = exported.loaded.signatures[name]
        spec = signature.structured_input_signature[1]
        assert {n: (s.shape.as_list(), s.dtype) for n, s in spec.items()} == {
            input_name: ([None], tf.string)
        }
        shapes = {n: s.shape.as_list() for n, s in signature.structured_outputs.items()}
        assert shapes == outputs

        empty = exported.call(name, **{input_name: []})
        assert {n: list(v.shape) for n, v in empty.items()} == {
            n: [0, width] for n, (_, width) in outputs.items()
        }


def test_a_megabyte_of_text(exported: Exported) -> None:
    text = "red mug " * 131_072
    answer = exported.call("search", query=[text, "mug", "x" * 2**20])
    assert answer["item_ids"].shape == (3, exported.k)
    assert np.all(np.isfinite(answer["scores"]))
    assert np.all(np.isfinite(exported.call("encode_item", text=[text])["embedding"]))


def test_manifest(exported: Exported) -> None:
    manifest = Manifest.read(exported.path)
    assert manifest == exported.result.manifest
    assert exported.path.name == str(exported.result.version) == "1"
    assert manifest.encoder_fingerprint == exported.retriever.as_float32().fingerprint()
    assert manifest.k == exported.k
    assert manifest.item_count == 8
    assert manifest.embedding_dim == 32
    assert manifest.index_recall == 1.0
    assert set(manifest.signatures) == set(exported.loaded.signatures)
    scann = uses_scann(exported.path)
    assert manifest.index_kind == ("scann" if scann else "exact")
    assert manifest.server == (SCANN_SERVER if scann else STOCK_SERVER)
    assert manifest.index_recall_measured == ("2 sample queries" if scann else "nothing")
    assert manifest.run_id == ("run 7" if scann else "")
    assert list(dict.fromkeys(exported.stages)) == ["encode items", "build index", "write version"]


def _ops(path: Path) -> set[str]:
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = model.meta_graphs[0].graph_def
    functions = {function.signature.name for function in graph.library.function}
    nodes = {node.op for node in graph.node}
    nodes |= {node.op for function in graph.library.function for node in function.node_def}
    return nodes - functions


def test_ops_outside_tensorflow(exported: Exported, core_ops: set[str]) -> None:
    """Stock TF Serving links TensorFlow and tensorflow_text, and nothing more."""
    text_ops = {"FastBertNormalize", "FastWordpieceTokenizeWithOffsets", "NormalizeUTF8"}
    others = _ops(exported.path) - core_ops - text_ops
    if uses_scann(exported.path):
        assert others == {"Scann>ScannSearchBatched", "Scann>TensorsToScann"}
    else:
        assert others == set()


def test_no_read_copies_the_items(exported: Exported) -> None:
    # A ResourceGather puts a variable into copy-on-read mode, for good.
    assert "ResourceGather" not in _ops(exported.path)


# A server has none of this project's code: only TensorFlow and the libraries of ops.
_FRESH = """
import json, sys
import tensorflow as tf
import tensorflow_text
if "scann" in sys.argv[2]:
    from scann import scann_ops
search = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
texts = json.load(sys.stdin)
def answer(batch):
    found = search(query=tf.constant(batch))
    ids = [[item.decode() for item in row] for row in found["item_ids"].numpy()]
    return ids, found["scores"].numpy().tolist()
foreign = {"keras_hub", "towers", "serving", "tensorflow_recommenders"} & set(sys.modules)
print(json.dumps({"batch": answer(texts), "single": [answer([t]) for t in texts],
                  "foreign": sorted(foreign)}))
"""


def test_a_fresh_process_answers_the_same(exported: Exported, golden_texts: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _FRESH, str(exported.path), exported.result.manifest.index_kind],
        input=json.dumps(golden_texts),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    answer = json.loads(run.stdout)
    assert answer["foreign"] == []
    queries = exported.retriever.as_float32().encode_queries(golden_texts)
    ids, scores = exported.oracle(queries, [""] * len(queries))
    assert answer["batch"][0] == ids
    np.testing.assert_allclose(answer["batch"][1], scores, atol=1e-4)
    assert [single[0][0] for single in answer["single"]] == ids
    np.testing.assert_allclose([single[1][0] for single in answer["single"]], scores, atol=1e-4)


def test_warmup_requests_run(exported: Exported) -> None:
    sizes: dict[str, set[int]] = {}
    records = list(tf.data.TFRecordDataset(str(exported.path / WARMUP_FILE)))
    assert len(records) <= MAX_RECORDS
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "shop"
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        signature = request.model_spec.signature_name
        answer = exported.loaded.signatures[signature](
            **{name: tf.constant(value) for name, value in inputs.items()}
        )
        (batch,) = {len(value) for value in inputs.values()}
        assert {len(value) for value in answer.values()} == {batch}
        sizes.setdefault(signature, set()).add(batch)
    assert set(sizes) == set(exported.loaded.signatures)
    assert all(1 in batches and len(batches) > 2 for batches in sizes.values())


def test_what_is_not_in_an_export(exported: Exported) -> None:
    variables = tf.train.list_variables(str(exported.path / "variables" / "variables"))
    assert not [name for name, _ in variables if "optimizer" in name]
    for file in exported.path.rglob("*"):
        if file.is_file():
            assert b"Zebulina" not in file.read_bytes()  # a customer's query


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_ids": [], "item_texts": []}, "no items"),
        ({"item_ids": ["a", "a"]}, "'a' appears twice"),
        ({"item_ids": ["a", ""]}, "is empty"),
        ({"item_texts": ["one"]}, "2 item ids need as many texts, not 1"),
        ({"item_embeddings": np.zeros((2, 8), np.float32)}, r"\(2, 32\)"),
        ({"item_embeddings": np.full((2, 32), np.nan, np.float32)}, "not finite"),
        ({"k": 0}, "positive integer"),
        ({"index": "hnsw"}, "auto, exact, scann"),
    ],
)
def test_bad_input_publishes_nothing(
    tiny_retriever: Retriever, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    request = {"item_ids": ["a", "b"], "item_texts": ["one", "two"], "output": tmp_path / "shop"}
    with pytest.raises(InputError, match=message):
        export_retriever(tiny_retriever, **(request | change))
    assert not (tmp_path / "shop").exists()


def test_bad_output_is_found_before_any_work(tiny_retriever: Retriever, tmp_path: Path) -> None:
    for output in (tmp_path / "shop" / "3", tmp_path / "my shop"):
        with pytest.raises(InputError):
            export_retriever(tiny_retriever, ["a"], ["one"], output)
    assert os.listdir(tmp_path) == []
