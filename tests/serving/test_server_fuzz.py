"""Requests of any kind: none ends the server, hangs it, or is called the server's fault."""

from __future__ import annotations

import base64
import json
import math
from http.client import HTTPConnection

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.export import export_retriever
from serving.server.server import ModelServer

CLIENTS_FAULT = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
STATUSES = {200, 400, 404, 501}
INPUTS = ("query", "item_id", "text", "x", "count", "flag", "image_bytes", "exclude")
# Without `spin`, which takes as long as one asks it to.
SIGNATURES = ("", "serving_default", "search", "similar", "encode_query", "encode_item")
SIGNATURES += ("upper", "mixed", "scalar", "blob", "parse")
_quick = settings(
    max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
_long = settings(_quick, max_examples=25_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory, shop_export, tiny_retriever, tiny_catalog):
    """Serves a model of many signatures, and an export: its tokenizer sees any bytes, too."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "shop").mkdir()
    (folder / "shop" / "3").symlink_to(shop_export(3))
    texts = tiny_retriever.template.render(tiny_catalog)
    export_retriever(tiny_retriever, tiny_catalog["item_id"], texts, folder / "towers")
    entries = "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}'
        for name in ("shop", "towers")
    )
    (folder / "models.config").write_text(f"model_config_list {{ {entries} }}")
    with ModelServer(model_config_file=folder / "models.config") as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def connection(server):
    connection = HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    yield connection
    connection.close()


# What a client may send

names = st.sampled_from(("shop", "towers")) | st.text(max_size=5)
strings = st.binary(max_size=12) | st.text(max_size=12).map(str.encode)
sizes = st.sampled_from((0, 1, 2, 3)) | st.integers(-(2**63), 2**63 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
VALUES = {
    "float_val": st.floats(width=32),
    "double_val": st.floats(),
    "int_val": int32,
    "string_val": strings,
    "scomplex_val": st.floats(width=32),
    "int64_val": int64,
    "bool_val": st.booleans(),
    "half_val": int32,
    "uint32_val": st.integers(0, 2**32 - 1),
    "uint64_val": st.integers(0, 2**64 - 1),
}
MATCHING = (
    (types_pb2.DT_STRING, "string_val"),
    (types_pb2.DT_FLOAT, "float_val"),
    (types_pb2.DT_INT64, "int64_val"),
    (types_pb2.DT_BOOL, "bool_val"),
)


@st.composite
def tensors(draw):
    """Tensors that fit together, or nearly, or not at all."""
    dtype, field = draw(st.sampled_from(MATCHING))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape)
    values = draw(st.lists(VALUES[field], min_size=count, max_size=count))
    if draw(st.booleans()):
        return _tensor(dtype, shape, **{field: values})
    broken = draw(st.sampled_from(("shape", "dtype", "field", "content", "fewer")))
    if broken == "shape":
        shape = draw(st.lists(sizes, max_size=4))
    elif broken == "dtype":
        dtype = draw(st.sampled_from(types_pb2.DataType.values()) | st.integers(0, 1000))
    elif broken == "field":
        field = draw(st.sampled_from(sorted(VALUES)))
        values = draw(st.lists(VALUES[field], max_size=8))
    elif broken == "fewer":
        values = values[: draw(st.integers(0, count))]
    content = draw(st.binary(max_size=40)) if broken == "content" else b""
    return _tensor(dtype, shape, tensor_content=content, **{field: values})


def _tensor(dtype, shape, **fields):
    proto = tensor_pb2.TensorProto(dtype=dtype, **fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@st.composite
def specs(draw):
    spec = model_pb2.ModelSpec(
        name=draw(names), signature_name=draw(st.sampled_from(SIGNATURES) | st.text(max_size=5))
    )
    choice = draw(st.sampled_from(("", "", "", "version", "label")))
    if choice == "version":
        spec.version.value = draw(st.sampled_from((1, 3)) | int64)
    if choice == "label":
        spec.version_label = draw(st.text(max_size=5))
    return spec


@st.composite
def predict_requests(draw):
    request = predict_pb2.PredictRequest(
        output_filter=draw(st.lists(st.text(max_size=5), max_size=2))
    )
    request.model_spec.CopyFrom(draw(specs()))
    inputs = st.dictionaries(st.sampled_from(INPUTS) | st.text(max_size=5), tensors(), max_size=3)
    for name, proto in draw(inputs).items():
        request.inputs[name].CopyFrom(proto)
    return request


examples = st.lists(
    st.binary(max_size=8).map(
        lambda value: example_pb2.Example.FromString(
            b"\x0a\x0d\x0a\x0b\x0a\x01a\x12\x06\x0a\x04\x0a\x02ab" if value else b""
        )
    ),
    max_size=3,
)
example_inputs = examples.map(
    lambda found: input_pb2.Input(example_list=input_pb2.ExampleList(examples=found))
)
REQUESTS = {
    "PredictionService/Predict": predict_requests(),
    "PredictionService/Classify": st.builds(
        classification_pb2.ClassificationRequest, model_spec=specs(), input=example_inputs
    ),
    "PredictionService/Regress": st.builds(
        regression_pb2.RegressionRequest, model_spec=specs(), input=example_inputs
    ),
    "PredictionService/MultiInference": st.builds(
        inference_pb2.MultiInferenceRequest,
        tasks=st.lists(
            st.builds(
                inference_pb2.InferenceTask,
                model_spec=specs(),
                method_name=st.sampled_from(
                    ("tensorflow/serving/classify", "tensorflow/serving/regress", "other")
                ),
            ),
            max_size=2,
        ),
        input=example_inputs,
    ),
    "PredictionService/GetModelMetadata": st.builds(
        get_model_metadata_pb2.GetModelMetadataRequest,
        model_spec=specs(),
        metadata_field=st.lists(st.just("signature_def") | st.text(max_size=5), max_size=2),
    ),
    "ModelService/GetModelStatus": st.builds(
        get_model_status_pb2.GetModelStatusRequest, model_spec=specs()
    ),
}
calls = st.sampled_from(sorted(REQUESTS)).flatmap(
    lambda method: st.tuples(st.just(method), REQUESTS[method])
) | st.tuples(st.just("PredictionService/Predict"), predict_requests())

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | strings.map(lambda value: {"b64": base64.b64encode(value).decode()})
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from((*INPUTS, "b64")) | st.text(max_size=4), inner, max_size=3
        )
    ),
    max_leaves=8,
)
bodies = st.dictionaries(
    st.sampled_from(("instances", "inputs", "signature_name", "examples", "context")),
    documents | st.sampled_from(SIGNATURES) | st.lists(st.text(max_size=8), min_size=1, max_size=3),
    max_size=3,
).map(lambda body: json.dumps(body).encode())
paths = st.sampled_from(
    [
        f"/v1/models/{model}{version}:{method}"
        for model in ("shop", "towers", "other", "%F0")
        for version in ("", "/versions/3", "/versions/9", "/labels/x")
        for method in ("predict", "classify", "regress", "other")
    ]
)


def answer_to_grpc(channel: grpc.Channel, method: str, request: bytes) -> str:
    call = channel.unary_unary(f"/tensorflow.serving.{method}")
    try:
        call(request, timeout=30)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def check_grpc(channel, call):
    method, request = call
    status = answer_to_grpc(channel, method, request.SerializeToString())
    assert status == "OK" or status in CLIENTS_FAULT, status


def check_rest(connection, method, path, body):
    connection.request(method, path, body)
    response = connection.getresponse()
    answer = response.read()
    assert response.status in STATUSES, (response.status, answer)
    if response.status != 200:
        assert json.loads(answer)["error"]


@_quick
@given(call=calls)
def test_any_message_over_grpc(channel, call):
    check_grpc(channel, call)


@_quick
@given(request=st.binary(max_size=60), place=st.integers(0, 200), byte=st.integers(0, 255))
def test_bytes_that_are_no_message_leave_the_server_alive(channel, request, place, byte):
    valid = predict_pb2.PredictRequest()
    valid.model_spec.name = "shop"
    valid.inputs["query"].CopyFrom(_tensor(types_pb2.DT_STRING, [2], string_val=[b"mug", b"a"]))
    spoilt = bytearray(valid.SerializeToString())
    assert answer_to_grpc(channel, "PredictionService/Predict", bytes(spoilt)) == "OK"
    spoilt[place % len(spoilt)] = byte
    for sent in (bytes(spoilt), request):
        # gRPC itself says INTERNAL where a message cannot be read, in every language.
        status = answer_to_grpc(channel, "PredictionService/Predict", sent)
        assert status in {"OK", "INTERNAL", *CLIENTS_FAULT}
    assert answer_to_grpc(channel, "PredictionService/Predict", valid.SerializeToString()) == "OK"


@_quick
@given(path=paths, body=bodies | st.binary(max_size=60))
def test_any_body_over_rest(connection, path, body):
    check_rest(connection, "POST", path, body)


@pytest.mark.slow
@_long
@given(call=calls)
def test_many_messages_over_grpc(channel, call):
    check_grpc(channel, call)


@pytest.mark.slow
@_long
@given(call=st.tuples(st.just("PredictionService/Predict"), predict_requests()))
def test_many_predictions_over_grpc(channel, call):
    check_grpc(channel, call)


@pytest.mark.slow
@settings(_long, max_examples=50_000)
@given(path=paths, body=bodies | st.binary(max_size=60))
def test_many_bodies_over_rest(connection, path, body):
    check_rest(connection, "POST", path, body)
