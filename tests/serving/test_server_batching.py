"""Dynamic batching: who shares a run of the graph, and that nobody is harmed by it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.manifest import MANIFEST_FILE
from serving.server.batching import (
    Batcher,
    BatchingOptions,
    batching_options,
    read_batching_parameters,
)
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer
from serving.server.status import StatusError
from towers.errors import InputError

LONG = 60_000_000  # microseconds: a batch runs because it is full, or not in this test
SLOWLY = f" batch_timeout_micros {{ value: {LONG} }}"


class Rows(tf.Module):
    """Signatures that tell how many rows the graph was run on."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def echo(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"echo": text, "rows": tf.fill(tf.shape(text), tf.size(text))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def parse(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "number": tf.strings.to_number(text),
            "rows": tf.fill(tf.shape(text), tf.size(text)),
        }

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x")])
    def total(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": tf.reduce_sum(x, 1), "rows": tf.fill(tf.shape(x)[:1], tf.shape(x)[0])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def count(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"count": tf.size(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def distinct(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"distinct": tf.unique(text).y}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "turns")])
    def spin(self, turns: tf.Tensor) -> dict[str, tf.Tensor]:
        most = tf.reduce_max(turns)
        (done,) = tf.while_loop(lambda i: i < most, lambda i: (i + 1,), [0])
        return {"turns": tf.minimum(turns, done)}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("models") / "rows"
    module = Rows()
    names = ("echo", "parse", "total", "count", "distinct", "spin")
    tf.saved_model.save(
        module, str(base / "1"), signatures={name: getattr(module, name) for name in names}
    )
    return base


class Client:
    """Asks over gRPC, and over REST."""

    def __init__(self, server: ModelServer) -> None:
        self.url = f"http://127.0.0.1:{server.rest_port}/v1/models/rows:predict"
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def begin(self, signature: str, **inputs: Any) -> grpc.Future:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "rows"
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        return self.stub.Predict.future(request, timeout=30)

    def post(self, signature: str, inputs: Any) -> requests.Response:
        body = {"signature_name": signature, "inputs": inputs}
        return requests.post(self.url, json=body, timeout=30)


@pytest.fixture
def serve(export: Path) -> Iterator[Callable[..., Client]]:
    servers: list[ModelServer] = []

    def start(**options: Any) -> Client:
        batching = BatchingOptions(**{"every_model": True, **options})
        server = ModelServer(export, loading=LoadOptions(batching=batching))
        server.start()
        servers.append(server)
        return Client(server)

    yield start
    for server in servers:
        server.stop()


def outputs(call: grpc.Future) -> dict[str, list[Any]]:
    return {name: tf.make_ndarray(p).tolist() for name, p in call.result().outputs.items()}


def test_requests_of_both_ports_share_a_run_and_each_gets_its_own_rows(serve):
    client = serve(max_batch_size=6, batch_timeout_micros=LONG)
    with ThreadPoolExecutor(1) as pool:
        over_rest = pool.submit(client.post, "echo", ["a", "b"])
        calls = [client.begin("echo", text=["c"]), client.begin("echo", text=["d", "e", "f"])]
        assert over_rest.result().json()["outputs"] == {"echo": ["a", "b"], "rows": [6, 6]}
    assert outputs(calls[0]) == {"echo": [b"c"], "rows": [6]}
    assert outputs(calls[1]) == {"echo": [b"d", b"e", b"f"], "rows": [6, 6, 6]}


def test_a_lone_request_waits_no_longer_than_the_timeout(serve):
    client = serve(max_batch_size=8, batch_timeout_micros=20_000)
    assert outputs(client.begin("echo", text=["a"])) == {"echo": [b"a"], "rows": [1]}


def test_more_rows_than_a_batch_and_none_are_run_alone(serve):
    client = serve(max_batch_size=2, batch_timeout_micros=LONG)
    assert outputs(client.begin("echo", text=["a"] * 5))["rows"] == [5] * 5
    assert client.post("echo", []).json()["outputs"] == {"echo": [], "rows": []}


def test_what_is_wrong_with_one_request_is_that_ones_alone(serve):
    client = serve(max_batch_size=4, batch_timeout_micros=LONG)
    # Wrong type and rank are seen before there is a batch to wait for.
    for wrong in (b"no list", [["too deep"]], [1.0]):
        assert client.begin("parse", text=wrong).exception().code().name == "INVALID_ARGUMENT"
    calls = [client.begin("parse", text=[text]) for text in ("1", "2", "three", "4")]
    assert [outputs(calls[n])["number"] for n in (0, 1, 3)] == [[1.0], [2.0], [4.0]]
    assert calls[2].exception().code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "three" in calls[2].exception().details()


def test_who_leaves_does_no_harm(serve):
    client = serve(max_batch_size=3, batch_timeout_micros=LONG)
    late = client.begin("echo", text=["late"])
    client.post("count", ["x"])  # by now the first one waits for its batch
    late.cancel()
    calls = [client.begin("echo", text=[text]) for text in ("a", "b")]
    assert [outputs(call)["echo"] for call in calls] == [[b"a"], [b"b"]]


def test_signatures_without_a_row_for_each_row_are_not_batched(serve):
    client = serve(max_batch_size=2, batch_timeout_micros=LONG)
    assert outputs(client.begin("count", text=["a"])) == {"count": 1}
    # This one's shapes promise a row for each row, and its graph does not keep it.
    calls = [client.begin("distinct", text=["a"]) for _ in range(2)]
    assert [outputs(call) for call in calls] == [{"distinct": [b"a"]}] * 2
    assert outputs(client.begin("distinct", text=["a"])) == {"distinct": [b"a"]}


def test_only_equal_shapes_share_a_run_unless_they_are_padded(serve):
    rows = [[[1.0, 2.0]], [[3.0]], [[4.0]], [[5.0, 6.0]]]
    client = serve(max_batch_size=2, batch_timeout_micros=LONG)
    calls = [client.begin("total", x=np.float32(x)) for x in rows]
    assert [outputs(call)["total"] for call in calls] == [[3.0], [3.0], [4.0], [11.0]]
    client = serve(max_batch_size=4, batch_timeout_micros=LONG, pad_variable_length_inputs=True)
    calls = [client.begin("total", x=np.float32(x)) for x in rows]
    # Filled up with their first element, as TF Serving does.
    assert [outputs(call)["total"] for call in calls] == [[3.0], [6.0], [8.0], [11.0]]
    assert outputs(calls[0])["rows"] == [4]


def test_a_batch_is_filled_up_to_an_allowed_size(serve):
    client = serve(max_batch_size=8, allowed_batch_sizes=(3, 8))
    assert outputs(client.begin("echo", text=["a", "b"]))["echo"] == [b"a", b"b"]
    sizes: list[int] = []

    def double(inputs):
        sizes.append(len(inputs["x"]))
        return {"y": inputs["x"] * 2}

    options = BatchingOptions(
        max_batch_size=8, allowed_batch_sizes=(3, 5, 8), batch_timeout_micros=LONG
    )
    answers = together(Batcher(double, options), [[1.0, 2.0], [3.0] * 6])
    assert answers == [[2.0, 4.0], [6.0] * 6]
    short = BatchingOptions(
        max_batch_size=8, allowed_batch_sizes=(3, 5, 8), batch_timeout_micros=300_000
    )
    assert together(Batcher(double, short), [[1.0, 2.0], [3.0, 4.0]]) == [[2.0, 4.0], [6.0, 8.0]]
    assert sizes == [8, 5]


def together(batcher: Batcher, arrays: list[list[float]]) -> list[list[float]]:
    """Runs each array in a thread of its own."""
    with ThreadPoolExecutor(len(arrays)) as pool:
        answers = pool.map(lambda x: batcher.run({"x": np.array(x)})["y"].tolist(), arrays)
        return list(answers)


def test_overload_is_refused_in_tensorflow_servings_words(serve):
    client = serve(max_batch_size=1, max_enqueued_batches=2, num_batch_threads=1)
    slow = client.begin("spin", turns=[1_500_000])
    client.post("count", ["x"])  # by now the slow one runs
    calls = [client.begin("spin", turns=[n]) for n in range(1, 7)]
    while sum(call.done() for call in calls) < 4:  # two wait: the others cannot
        assert not slow.done()
        time.sleep(0.01)
    refused = client.post("spin", [3])
    assert not slow.done()
    assert refused.status_code == 429
    assert refused.json()["error"] == (
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches "
        "enqueued and max_enqueued_batches is 2"
    )
    errors = [call.exception() for call in calls if call.done()]
    assert [error.code() for error in errors] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
    waiting = [n for n, call in enumerate(calls, 1) if not call.done()]
    assert [outputs(calls[n - 1])["turns"] for n in waiting] == [[n] for n in waiting]
    assert len(waiting) == 2
    assert outputs(slow)["turns"] == [1_500_000]


def test_who_waits_for_a_batch_is_answered_before_the_server_ends(export):
    batching = BatchingOptions(batch_timeout_micros=500_000, every_model=True)
    with ModelServer(export, loading=LoadOptions(batching=batching)) as server:
        client = Client(server)
        calls = [client.begin("echo", text=[text]) for text in "abc"]
        client.post("count", ["x"])
    assert [outputs(call)["echo"] for call in calls] == [[b"a"], [b"b"], [b"c"]]


def test_many_callers_at_once_all_get_their_own(serve):
    client = serve(max_batch_size=16, num_batch_threads=2)
    draw = np.random.default_rng(0)
    batches = [draw.normal(size=(draw.integers(1, 20), 3)).astype("f") for _ in range(300)]
    calls = [client.begin("total", x=x) for x in batches]
    for x, call in zip(batches, calls, strict=True):
        np.testing.assert_allclose(outputs(call)["total"], x.sum(axis=1), rtol=1e-5, atol=1e-6)


def test_a_function_that_fails_and_one_that_is_slow_leave_no_caller_behind():
    entered, go_on = threading.Event(), threading.Event()

    def double(inputs):
        entered.set()
        assert go_on.wait(30)
        if (inputs["x"] < 0).any():
            raise StatusError(grpc.StatusCode.INTERNAL, "negative")
        return {"y": inputs["x"] * 2}

    batcher = Batcher(double, BatchingOptions(num_batch_threads=1))
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(batcher.run, {"x": np.array([1.0])})]
        entered.wait(30)
        calls += [pool.submit(batcher.run, {"x": np.array([x])}) for x in (2.0, -1.0, 3.0, -2.0)]
        go_on.set()
        errors = [call.exception() for call in calls]
        assert [str(error) for error in errors if error] == ["INTERNAL: negative"] * 2
    found = [call.result()["y"].item() for call in calls if not call.exception()]
    assert found == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(("is_ours", "rows"), [(True, 2), (False, 1)])
def test_by_default_exports_of_this_package_are_batched_and_others_not(
    export, tmp_path, is_ours, rows
):
    (tmp_path / "rows").mkdir()
    version = tmp_path / "rows" / "1"
    shutil.copytree(export / "1", version)
    if is_ours:
        (version / MANIFEST_FILE).write_text("{}")
    batching = batching_options(None, parameters(tmp_path, "max_batch_size { value: 2 }" + SLOWLY))
    with ModelServer(tmp_path / "rows", loading=LoadOptions(batching=batching)) as server:
        client = Client(server)
        calls = [client.begin("echo", text=[text]) for text in "ab"]
        assert [outputs(call)["rows"] for call in calls] == [[rows]] * 2


def parameters(folder: Path, text: str) -> Path:
    file = folder / "batching.config"
    file.write_text(text)
    return file


def test_the_parameters_file_is_tensorflow_servings(tmp_path):
    text = """
        max_batch_size { value: 64 }
        batch_timeout_micros { value: 1500 }
        max_enqueued_batches { value: 7 }
        num_batch_threads { value: 3 }
        thread_pool_name { value: "shared" }
        allowed_batch_sizes: 8
        allowed_batch_sizes: 64
        pad_variable_length_inputs: true
    """
    options = BatchingOptions(64, 1500, 7, 3, (8, 64), True)
    assert read_batching_parameters(parameters(tmp_path, text)) == options
    assert read_batching_parameters(parameters(tmp_path, "")) == BatchingOptions()
    assert batching_options(True, None) == BatchingOptions(every_model=True)
    assert batching_options(None, None) == BatchingOptions(every_model=False)
    assert batching_options(False, None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 3", "cannot be read as a BatchingParameters"),
        ("max_batch_size { value: 0 }", "max_batch_size is 0; it has to be 1 or more"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros is -1"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches is 0"),
        ("num_batch_threads { value: 0 }", "num_batch_threads is 0"),
        ("allowed_batch_sizes: [0, 32]", "monotonically increasing"),
        ("allowed_batch_sizes: [16, 8, 32]", "monotonically increasing"),
        ("allowed_batch_sizes: [8, 16]", "final entry .* must equal max_batch_size, .* 32, not 16"),
    ],
)
def test_parameters_that_are_refused(tmp_path, text, message):
    file = parameters(tmp_path, text)
    with pytest.raises(InputError, match=message) as raised:
        read_batching_parameters(file)
    assert str(file) in str(raised.value)
    with pytest.raises(InputError, match="--enable-batching is false"):
        batching_options(False, file)
