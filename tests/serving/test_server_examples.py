"""Classify, Regress and MultiInference on tf.Examples, over gRPC and REST, live and in warm-up."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_service_pb2_grpc,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.server.server import ModelServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


class Prices(tf.Module):
    """Reads `price` and `name` (and `vat`, 0 if absent) from examples."""

    def parse(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = {
            "price": tf.io.FixedLenFeature([], tf.float32),
            "vat": tf.io.FixedLenFeature([], tf.float32, 0.0),
            "name": tf.io.FixedLenFeature([], tf.string, "?"),
        }
        parsed = tf.io.parse_example(inputs, features)
        return parsed["price"] * (1 + parsed["vat"]), parsed["name"]


SPEC = tf.TensorSpec([None], tf.string, "inputs")
OUTPUTS: dict[str, Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]] = {
    "serving_default": lambda price, name: {
        "classes": tf.stack([name, tf.fill(tf.shape(name), "other")], 1),
        "scores": tf.stack([price, -price], 1),
    },
    "labels": lambda price, name: {"classes": name[:, None]},
    "scores": lambda price, name: {"scores": price[:, None]},
    "regress": lambda price, name: {"outputs": price},
    "column": lambda price, name: {"outputs": price[:, None]},
    "flat": lambda price, name: {"scores": price},
    "integers": lambda price, name: {"outputs": tf.cast(price, tf.int32)},
    "wide": lambda price, name: {"outputs": tf.stack([price, price], 1)},
    "short": lambda price, name: {"outputs": price[:1]},
    "uneven": lambda price, name: {"classes": name[:, None], "scores": tf.stack([price, price], 1)},
    "numbers": lambda price, name: {"classes": price[:, None]},
    "other": lambda price, name: {"price": price},
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Prices()

    def signature(outputs: Callable[..., dict[str, tf.Tensor]]) -> Any:
        return tf.function(lambda inputs: outputs(*model.parse(inputs)), input_signature=[SPEC])

    signatures = {name: signature(outputs) for name, outputs in OUTPUTS.items()}
    signatures["query"] = tf.function(
        lambda query: {"classes": query[:, None]},
        input_signature=[tf.TensorSpec([None], tf.string, "query")],
    )
    signatures["pair"] = tf.function(
        lambda inputs, b: {"outputs": inputs + b},
        input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None], name="b")],
    )
    path = tmp_path_factory.mktemp("prices") / "1"
    tf.saved_model.save(model, str(path), signatures=signatures)
    return path


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[ModelServer]:
    with ModelServer(export.parent, model_name="prices") as server:
        yield server


@pytest.fixture(scope="module")
def stub(server: ModelServer) -> Iterator[prediction_service_pb2_grpc.PredictionServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def example(**features: Any) -> tf.train.Example:
    kinds = {
        float: lambda v: tf.train.Feature(float_list=tf.train.FloatList(value=[v])),
        bytes: lambda v: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])),
    }
    feature = {name: kinds[type(value)](value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature))


MUG, POT = example(price=2.0, name=b"mug"), example(price=4.0, name=b"pot")


def fill(request: Any, signature: str, *examples: tf.train.Example, model: str = "prices") -> Any:
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.input.example_list.examples.extend(examples)
    return request


def classification(signature: str, *examples: tf.train.Example, **spec: str) -> Any:
    return fill(classification_pb2.ClassificationRequest(), signature, *examples, **spec)


def regression(signature: str, *examples: tf.train.Example) -> Any:
    return fill(regression_pb2.RegressionRequest(), signature, *examples)


def rows(result: classification_pb2.ClassificationResult) -> list[list[tuple[str, float]]]:
    return [[(c.label, c.score) for c in row.classes] for row in result.classifications]


def refused(call: Callable[..., Any], request: Any, code: grpc.StatusCode, text: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=20)
    assert raised.value.code() == code, raised.value.details()
    assert text in raised.value.details()


def test_classify(stub):
    response = stub.Classify(classification("", MUG, POT), timeout=20)
    assert rows(response.result) == [
        [("mug", 2.0), ("other", -2.0)],
        [("pot", 4.0), ("other", -4.0)],
    ]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("prices", 1, "serving_default")
    only_labels = stub.Classify(classification("labels", MUG), timeout=20)
    assert rows(only_labels.result) == [[("mug", 0.0)]]
    only_scores = stub.Classify(classification("scores", MUG), timeout=20)
    assert rows(only_scores.result) == [[("", 2.0)]]


def test_regress(stub):
    for signature in ("regress", "column"):
        response = stub.Regress(regression(signature, MUG, POT), timeout=20)
        assert [row.value for row in response.result.regressions] == [2.0, 4.0]
    assert response.model_spec.version.value == 1


def test_a_context_is_shared_by_all_examples(stub):
    request = regression("regress")
    with_context = input_pb2.ExampleListWithContext(
        examples=[MUG, POT], context=example(vat=0.25, name=b"shop")
    )
    request.input.example_list_with_context.CopyFrom(with_context)
    response = stub.Regress(request, timeout=20)
    assert [row.value for row in response.result.regressions] == [2.5, 5.0]


def tasks(*named: tuple[str, str], model: str = "prices") -> inference_pb2.MultiInferenceRequest:
    request = inference_pb2.MultiInferenceRequest()
    for signature, method in named:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    request.input.example_list.examples.extend([MUG, POT])
    return request


def test_multi_inference(stub):
    response = stub.MultiInference(
        tasks(("regress", REGRESS), ("", CLASSIFY), ("column", REGRESS)), timeout=20
    )
    regressed, classified, column = response.results
    assert [row.value for row in regressed.regression_result.regressions] == [2.0, 4.0]
    assert rows(classified.classification_result)[1] == [("pot", 4.0), ("other", -4.0)]
    assert column.regression_result == regressed.regression_result
    assert [result.model_spec.signature_name for result in response.results] == [
        *("regress", "serving_default", "column")
    ]


@pytest.mark.parametrize(
    ("method", "signature", "text"),
    [
        ("Classify", "nosuch", "No signature was found with the name: nosuch"),
        ("Classify", "pair", "Expected one input Tensor."),
        ("Classify", "query", "No classification inputs found in SignatureDef: "),
        ("Classify", "other", 'contain at least one of "classes" or "scores". Signature was: '),
        ("Classify", "flat", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("Classify", "numbers", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("Classify", "uneven", "should match in dim_size(1). Got 1 vs. 2"),
        ("Regress", "nosuch", "No signature was found with the name: nosuch"),
        ("Regress", "pair", "Expected one input Tensor."),
        ("Regress", "serving_default", "Expected one output Tensor."),
        ("Regress", "query", "No regression inputs found in SignatureDef: "),
        ("Regress", "other", "No regression outputs found in SignatureDef: "),
        ("Regress", "integers", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
        ("Regress", "wide", "either [batch_size] or [batch_size, 1] but got [2,2]"),
        ("Regress", "short", "Input batch size did not match output batch size: 2 vs. 1"),
    ],
)
def test_signatures_that_do_not_fit_the_call(stub, method, signature, text):
    make = classification if method == "Classify" else regression
    refused(getattr(stub, method), make(signature, MUG, POT), INVALID, text)


def test_requests_that_do_not_fit(stub):
    refused(stub.Classify, classification_pb2.ClassificationRequest(), INVALID, "Missing ModelSpec")
    refused(stub.Regress, regression_pb2.RegressionRequest(), INVALID, "Missing ModelSpec")
    refused(stub.Classify, classification(""), INVALID, "Input is empty.")
    refused(
        stub.Classify,
        classification("", MUG, model="none"),
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(none)",
    )
    without_price = example(name=b"mug")
    refused(stub.Classify, classification("", without_price), INVALID, "price")
    infer = stub.MultiInference
    refused(infer, inference_pb2.MultiInferenceRequest(), INVALID, "ModelSpec has no name")
    twice = tasks(("regress", REGRESS), ("regress", REGRESS))
    refused(infer, twice, INVALID, "Duplicate evaluation of signature: regress")
    two_models = tasks(("regress", REGRESS), ("column", REGRESS))
    two_models.tasks[1].model_spec.name = "b"
    refused(infer, two_models, INVALID, "must access the same model name.")
    two_models.tasks[1].model_spec.name = ""
    refused(infer, two_models, INVALID, "Found ModelSpec with an empty model name.")
    missing = tasks(("nosuch", REGRESS))
    refused(infer, missing, INVALID, "Requested signature not found in model graph: nosuch")
    refused(
        infer,
        tasks(("regress", "tensorflow/serving/predict")),
        grpc.StatusCode.UNIMPLEMENTED,
        "Unsupported signature method_name: tensorflow/serving/predict",
    )


def post(server: ModelServer, call: str, body: object) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/prices{call}"
    answer = requests.post(url, json=body, timeout=30)
    return answer.status_code, answer.json()


def test_rest_classifies_and_regresses(server):
    named = {"price": 2.0, "name": "mug"}
    encoded = {"price": [4.5], "name": {"b64": base64.b64encode(b"pot").decode()}}
    assert post(server, ":classify", {"examples": [named, encoded]}) == (
        200,
        {"results": [[["mug", 2.0], ["other", -2.0]], [["pot", 4.5], ["other", -4.5]]]},
    )
    body = {
        "signature_name": "regress",
        "context": {"vat": 0.25},
        "examples": [{"price": 0.1}, {"price": 4.0}],
    }
    assert post(server, "/versions/1:regress", body) == (200, {"results": [0.125, 5.0]})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "When method is classify, key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{}], "context": []}, "Example must be JSON object but got JSON Array"),
        (
            {"examples": [{"price": None}]},
            "Feature: price has element with unexpected JSON type: Null",
        ),
        (
            {"examples": [{"price": [[1.0]]}]},
            "Feature: price has element with unexpected JSON type: Array",
        ),
        (
            {"examples": [{"price": {"a": 1}}]},
            "Feature: price has element with unexpected JSON type: Object",
        ),
        (
            {"examples": [{"name": ["mug", 1.5]}]},
            "Unexpected element type in feature: name expecting type: bytes",
        ),
        (
            {"examples": [{"n": 1 << 63}]},
            "Feature: n has uint64_t element. Only int64_t is supported.",
        ),
        ({"examples": [{"n": 10**400}]}, "Number too big to be stored in double."),
        ({"examples": [{"name": {"b64": "?"}}]}, "Unable to base64 decode"),
        ({"examples": [{"price": 1}]}, "price"),  # an integer is an int64 feature
        ({"signature_name": "nosuch", "examples": [{}]}, "No signature was found with the name"),
    ],
)
def test_rest_bodies_that_are_refused(server, body, text):
    status, answer = post(server, ":classify", body)
    assert status == 400
    assert text in answer["error"]
    assert post(server, ":regress", body)[0] == 400


def test_a_model_without_such_signatures_says_so(shop_server):
    url = f"http://127.0.0.1:{shop_server.rest_port}/v1/models/shop:classify"
    answer = requests.post(url, json={"examples": [{"a": "b"}]}, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("No classification inputs found in SignatureDef: ")


def warmup_log(signature: str, *examples: tf.train.Example) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    log.classify_log.request.CopyFrom(classification(signature, *examples))
    return log


@pytest.mark.parametrize("signature", ["serving_default", "regress"])
def test_warm_up_classifies_too(export, tmp_path, signature):
    version = tmp_path / "prices" / "1"
    shutil.copytree(export, version)
    (version / "assets.extra").mkdir()
    regress = prediction_log_pb2.PredictionLog()
    regress.regress_log.request.CopyFrom(regression("regress", MUG))
    both = prediction_log_pb2.PredictionLog()
    both.multi_inference_log.request.CopyFrom(tasks(("regress", REGRESS), ("", CLASSIFY)))
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in (regress, both, warmup_log(signature, MUG)):
            writer.write(log.SerializeToString())
    with (
        ModelServer(tmp_path / "prices") as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "prices"
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        (status,) = stub.GetModelStatus(request, timeout=20).model_version_status
    if signature == "serving_default":
        assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    else:
        assert status.state == get_model_status_pb2.ModelVersionStatus.END
        assert "contain at least one of" in status.status.error_message
