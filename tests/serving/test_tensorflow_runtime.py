"""How `towers serve` sets TensorFlow up: quicker where weights stay, right where they do not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow as tf

from serving.export import export_retriever
from serving.manifest import MANIFEST_FILE
from serving.server.tensorflow_runtime import set_up_tensorflow
from towers.retriever import Retriever

FROZEN = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"
OURS, FOREIGN = True, False


@pytest.mark.parametrize(
    ("versions", "before", "after"),
    [
        ([OURS], None, "1"),
        ([OURS, OURS], None, "1"),
        ([OURS, FOREIGN], None, None),
        ([FOREIGN], None, None),
        ([], None, None),  # whose versions will come is not known
        ([OURS], "0", "0"),
        ([FOREIGN], "1", "1"),
    ],
)
def test_weights_are_frozen_where_all_versions_are_exports_of_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    versions: list[bool],
    before: str | None,
    after: str | None,
) -> None:
    monkeypatch.setenv(FROZEN, "")  # so that it is put back after the test
    monkeypatch.delenv(FROZEN)
    if before is not None:
        monkeypatch.setenv(FROZEN, before)
    for number, ours in enumerate(versions, 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "saved_model.pb").write_bytes(b"")
        if ours:
            (tmp_path / str(number) / MANIFEST_FILE).write_text("{}")
    set_up_tensorflow(tmp_path)
    assert os.environ.get(FROZEN) == after


def predict(rest: str, signature: str, inputs: object) -> np.ndarray:
    name = rest.rpartition("/")[2]
    body = {"signature_name": signature, "inputs": inputs}
    answer = requests.post(f"{rest}:predict", json=body, timeout=60)
    assert answer.status_code == 200, (name, answer.text)
    return np.array(answer.json()["outputs"], np.float32)


def test_a_new_version_brings_its_own_weights(
    tmp_path: Path,
    make_tiny_retriever: Callable[..., Retriever],
    tiny_catalog: dict[str, list[str]],
    golden_texts: list[str],
    start_server: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(FROZEN, raising=False)
    base, items = tmp_path / "shop", (tiny_catalog["item_id"], tiny_catalog["title"])
    texts = [text for text in golden_texts if "\0" not in text]
    retrievers = [make_tiny_retriever(seed) for seed in (0, 1)]
    expected = [retriever.encode_queries(texts) for retriever in retrievers]
    assert not np.allclose(*expected, atol=0.1)
    export_retriever(retrievers[0], *items, base)
    server = start_server(base, "--poll-seconds", 0.1)
    rest = f"{server.rest}/v1/models/shop"
    np.testing.assert_allclose(predict(rest, "encode_query", texts), expected[0], atol=1e-5)
    # Batches of other sizes ask for other layouts of the weights.
    for count in (1, 2, 3, 8):
        found = predict(rest, "encode_query", texts[:count])
        np.testing.assert_allclose(found, expected[0][:count], atol=1e-5)

    export_retriever(retrievers[1], *items, base)
    deadline = time.monotonic() + 30
    while requests.get(rest, timeout=30).json()["model_version_status"][0]["version"] != "2":
        assert time.monotonic() < deadline, "version 2 never came"
        time.sleep(0.1)
    while requests.get(rest, timeout=30).json()["model_version_status"][0]["state"] != "AVAILABLE":
        assert time.monotonic() < deadline, "version 2 never served"
        time.sleep(0.1)
    np.testing.assert_allclose(predict(rest, "encode_query", texts), expected[1], atol=1e-5)


class Counter(tf.Module):
    """A dense layer whose kernel grows by one whenever it is told to: not an export of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = tf.Variable(tf.ones([64, 64])), tf.Variable(tf.zeros([64]))

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, "x")])
    def dense(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.bias_add(tf.matmul(x, self.kernel), self.bias)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "by")])
    def grow(self, by: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"kernel": self.kernel.assign_add(tf.fill([64, 64], by))[0, 0]}


def test_a_foreign_graph_may_change_its_weights(
    tmp_path: Path, start_server: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FROZEN, raising=False)
    counter = Counter()
    signatures = {"serving_default": counter.dense, "grow": counter.grow}
    tf.saved_model.save(counter, str(tmp_path / "counter" / "1"), signatures=signatures)
    server = start_server(tmp_path / "counter")
    rest = f"{server.rest}/v1/models/counter"
    ones = [[1.0] * 64] * 3
    assert predict(rest, "serving_default", ones).tolist() == [[64.0] * 64] * 3
    assert predict(rest, "grow", 1.0) == 2
    assert predict(rest, "serving_default", ones).tolist() == [[128.0] * 64] * 3
