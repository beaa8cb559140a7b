"""SavedModels that this package did not export: of TensorFlow 1, of Keras, of odd shapes and types.

TensorFlow itself, calling the restored signature, is the oracle for what a signature computes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import keras
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.server.server import ModelServer
from serving.server.status import StatusError

INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Session:
    """A server of one SavedModel, asked over gRPC and REST."""

    def __init__(self, server: ModelServer, channel: grpc.Channel) -> None:
        self.name = next(iter(server.serving_versions))
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.url = f"http://127.0.0.1:{server.rest_port}/v1/models/{self.name}"

    def predict(self, signature: str = "", **inputs: Any) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.name
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        outputs = self.stub.Predict(request, timeout=30).outputs
        return {name: tf.make_ndarray(proto) for name, proto in outputs.items()}

    def refused(self, text: str, signature: str = "", **inputs: Any) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            self.predict(signature, **inputs)
        assert raised.value.code() == INVALID, raised.value.details()
        assert text in raised.value.details()

    def post(self, body: object) -> tuple[int, Any]:
        answer = requests.post(f"{self.url}:predict", json=body, timeout=30)
        return answer.status_code, answer.json()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Serves what a function writes into a version folder."""
    opened: list[Any] = []

    def serve(write: Callable[[str], Any]) -> Session:
        write(str(tmp_path / "model" / "1"))
        server = ModelServer(tmp_path / "model")
        server.start()
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        opened.extend([channel.close, server.stop])
        return Session(server, channel)

    yield serve
    for close in opened:
        close()


def save(**functions: Any) -> Callable[[str], None]:
    module = tf.Module()
    for name, function in functions.items():
        setattr(module, name, function)
    return lambda path: tf.saved_model.save(module, path, signatures=functions)


def signature(*specs: tf.TensorSpec) -> Callable[[Callable[..., Any]], Any]:
    return lambda function: tf.function(function, input_signature=specs)


def test_a_model_of_tensorflow_1(served):
    def write(path: str) -> None:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
            kernel = tf.compat.v1.get_variable("kernel", initializer=tf.constant([1.0, 2.0, 3.0]))
            table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), ["no", "yes"]),
                "?",
            )
            y = tf.linalg.matvec(x, kernel, name="y")
            word = table.lookup(tf.cast(y > 0, tf.int64))
            session.run(tf.compat.v1.global_variables_initializer())
            builder = tf.compat.v1.saved_model.Builder(path)
            build = tf.compat.v1.saved_model.build_signature_def
            info = tf.compat.v1.saved_model.build_tensor_info
            builder.add_meta_graph_and_variables(
                session,
                ["serve"],
                {
                    "serving_default": build(
                        {"features": info(x)},
                        {"total": info(y), "word": info(word)},
                        "tensorflow/serving/predict",
                    )
                },
                main_op=tf.compat.v1.tables_initializer(),
            )
            builder.save()

    session = served(write)
    outputs = session.predict(features=np.float32([[1, 1, 1], [0, 0, -1]]))
    assert outputs["total"].tolist() == [6, -3]
    assert outputs["word"].tolist() == [b"yes", b"no"]
    assert session.post({"instances": [[1, 2, 3]]}) == (
        200,
        {"predictions": [{"total": 14.0, "word": "yes"}]},
    )
    session.refused("has shape [1,2], but [-1,3] is expected", features=np.float32([[1, 1]]))


def test_an_error_in_a_graph_of_tensorflow_1_tells_nothing_of_the_server(served):
    def write(path: str) -> None:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x = tf.compat.v1.placeholder(tf.string, [None], "x")
            features = {"value": tf.io.FixedLenFeature([1], tf.float32)}
            tf.compat.v1.saved_model.simple_save(
                session, path, {"x": x}, {"y": tf.io.parse_example(x, features)["value"]}
            )

    session = served(write)
    for value in ("one", "one" * 400):
        status, answer = session.post({"instances": [value]})
        assert status == 400
        # The node is named after the op, with a number from pruning the graph.
        assert re.fullmatch(
            rf"Could not parse example input, value: '{value}'\n"
            r"\t \[\[\{\{node ParseExample/ParseExampleV2\w*\}\}\]\]",
            answer["error"],
        ), answer["error"]


def test_where_a_graph_was_made_is_not_told():
    # As TensorFlow has it where it knows the lines of Python that made the node.
    message = (
        "Graph execution error:\n\n"
        "Detected at node 'a' defined at (most recent call last):\n"
        '    File "/srv/towers", line 8, in <module>\n      run()\n'
        "Node: 'a'\n"
        "Detected at node b defined at (most recent call last):\n<stack traces unavailable>\n"
        "bad value\nof two lines\n\t [[{{node a}}]] [Op:__inference_f_1]"
    )
    error = StatusError.wrap(tf.errors.InvalidArgumentError(None, None, message))
    assert error.code == INVALID
    assert error.message == "bad value\nof two lines\n\t [[{{node a}}]]"


def test_a_model_of_keras(served):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2, "relu")])
    session = served(lambda path: model.export(path, verbose=False))
    x = np.float32([[1, 2, 3, 4], [-1, 0, 0.5, 2]])
    metadata = requests.get(f"{session.url}/metadata", timeout=30).json()
    definition = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    (name,), (output,) = definition["inputs"], definition["outputs"]
    found = session.predict(**{name: x})[output]
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-6)
    status, answer = session.post({"instances": x.tolist()})
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], found, rtol=1e-6)


def test_outputs_of_every_shape_and_type(served):
    @signature(tf.TensorSpec([], tf.float32, "x"))
    def outputs(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "half": tf.cast(x, tf.float16)[None],
            "brain": tf.cast(x, tf.bfloat16)[None],
            "flag": x > 1,
            "text": tf.constant([["a", "b\x00"], ["", "ü"]]),
            "empty": tf.zeros([0, 3], tf.int64),
            "deep": tf.reshape(tf.range(8), [2, 2, 2]),
            "scalar": tf.constant("one"),
            "big": tf.constant([2**64 - 1], tf.uint64),
        }

    session = served(save(serving_default=outputs))
    found = session.predict(x=np.float32(1.5))
    assert found["half"].dtype == np.float16
    assert found["half"].tolist() == found["brain"].tolist() == [1.5]
    assert found["flag"].shape == ()
    assert found["flag"]
    assert found["text"].tolist() == [[b"a", b"b\0"], [b"", "ü".encode()]]
    assert found["empty"].shape == (0, 3)
    assert found["deep"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert found["scalar"].item() == b"one"
    assert found["big"].tolist() == [2**64 - 1]
    assert session.post({"inputs": 1.5}) == (
        400,
        {"error": "Failed to write JSON value for tensor type: bfloat16"},
    )


def test_what_json_can_hold(served):
    @signature(tf.TensorSpec([None], tf.string, "x"), tf.TensorSpec([2], tf.bool, "pair"))
    def outputs(x: tf.Tensor, pair: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "flags": pair,
            "empty": tf.zeros([0, 3], tf.int64),
            "scalar": tf.constant(True),
            "deep": tf.reshape(tf.range(8), [2, 2, 2]),
            "small": tf.constant([255], tf.uint8),
            "big": tf.constant([2**64 - 1], tf.uint64),
            "double": tf.constant(0.1, tf.float64),
            "x": x,
        }

    session = served(save(serving_default=outputs))
    assert session.post({"inputs": {"x": ["ü"], "pair": [True, False]}}) == (
        200,
        {
            "outputs": {
                "flags": [True, False],
                "empty": [],
                "scalar": True,
                "deep": [[[0, 1], [2, 3]], [[4, 5], [6, 7]]],
                "small": [255],
                "big": [2**64 - 1],
                "double": 0.1,
                "x": ["ü"],
            }
        },
    )
    status, answer = session.post({"instances": [{"x": "a", "pair": True}] * 2})
    assert (status, answer["error"][:11]) == (400, "Tensor name")


def test_strings_of_another_rank_do_not_end_the_process(served):
    @signature(tf.TensorSpec([None], tf.string, "x"))
    def lengths(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"length": tf.strings.length(tf.strings.split(x).to_tensor(""))}

    @signature(tf.TensorSpec([], tf.string, "x"))
    def scalar(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"upper": tf.strings.upper(x)}

    @signature(tf.TensorSpec(None, tf.string, "x"))
    def anything(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"rank": tf.rank(x)}

    session = served(save(serving_default=lengths, scalar=scalar, anything=anything))
    for wrong in ("a b", [["a b"]], np.zeros([0, 0], "S1").astype(object)):
        session.refused("but [-1] is expected", x=tf.constant(wrong, tf.string))
    session.refused("has shape [1], but [] is expected", "scalar", x=["a"])
    assert session.predict("scalar", x="é")["upper"].item() == "é".encode()
    assert session.post({"signature_name": "scalar", "inputs": "a"}) == (200, {"outputs": "A"})
    for rank in range(5):
        value = np.full([1] * rank, b"a", object)
        assert session.predict("anything", x=value)["rank"] == rank
    assert session.predict(x=["a bc"])["length"].tolist() == [[1, 2]]


def test_partly_known_shapes_and_half_inputs(served):
    @signature(tf.TensorSpec([None, 2, None], tf.float16, "x"))
    def total(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": tf.reduce_sum(tf.cast(x, tf.float32), [1, 2])}

    session = served(save(serving_default=total))
    assert session.predict(x=np.ones([3, 2, 5], np.float16))["total"].tolist() == [10] * 3
    session.refused("has shape [3,1,5], but [-1,2,-1] is expected", x=np.ones([3, 1, 5], "f2"))
    session.refused("to be half but float is provided", x=np.ones([3, 2, 5], "f4"))
    status, answer = session.post({"instances": [[[1], [2]]]})
    assert status == 400
    assert "Error: UNIMPLEMENTED: Conversion of JSON Value: 1 to type: half" in answer["error"]
    status, answer = session.post({"inputs": [[[1], [2]]]})
    assert status == 501
    assert "to type: half" in answer["error"]


def test_a_graph_that_fails_tells_its_own_code(served):
    @signature(tf.TensorSpec([None], tf.int32, "i"))
    def gather(i: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(i, 10, "too large an index")]):
            return {"x": tf.gather(tf.constant([1.0, 2.0]), i)}

    session = served(save(serving_default=gather))
    session.refused("too large an index", i=np.int32([11]))
    session.refused("indices[0] = 5", i=np.int32([5]))
    assert session.predict(i=np.int32([1]))["x"].tolist() == [2]


def test_a_model_without_signatures_is_loaded_and_has_none(served):
    module = tf.Module()
    module.v = tf.Variable(1.0)
    session = served(lambda path: tf.saved_model.save(module, path))
    with pytest.raises(grpc.RpcError, match='signature key "serving_default" not found'):
        session.predict(x=[1.0])
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = session.name
    assert session.stub.GetModelMetadata(request, timeout=30).model_spec.version.value == 1


def test_a_model_for_training_alone_is_not_served(served):
    def write(path: str) -> None:
        save(serving_default=signature(tf.TensorSpec([], tf.float32, "x"))(lambda x: {"y": x}))(
            path
        )
        file = Path(path) / "saved_model.pb"
        # The tag `serve` as the first of one byte length 5, inside the MetaInfoDef.
        file.write_bytes(file.read_bytes().replace(b"\x22\x05serve", b"\x22\x05train"))
        shutil.rmtree(Path(path) / "assets", ignore_errors=True)

    session = served(write)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = session.name
    (status,) = session.models.GetModelStatus(request, timeout=30).model_version_status
    assert status.state == get_model_status_pb2.ModelVersionStatus.END
    assert "serve" in status.status.error_message
