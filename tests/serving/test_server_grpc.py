"""The gRPC API, called with tensorflow-serving-api's own stubs."""

from __future__ import annotations

import itertools
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.server.server import ModelServer

TIMEOUT = 20


@pytest.fixture(scope="module")
def channel(shop_server):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{shop_server.grpc_port}", options) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict_request(signature="", model="shop", version=None, output_filter=(), **inputs):
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        proto = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(proto)
    return request


def outputs_of(response):
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def fails(call, request, code, *texts):
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=TIMEOUT)
    assert raised.value.code() == code, raised.value.details()
    for text in texts:
        assert text in raised.value.details()


def is_alive(stub):
    response = stub.Predict(predict_request(query=["still here"]), timeout=TIMEOUT)
    return outputs_of(response)["item_ids"][0, 0] == b"still here-a"


INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def test_predict_answers_with_the_default_signature_in_typed_fields(stub):
    response = stub.Predict(predict_request(query=["mug", "Crème ½ 電"]), timeout=TIMEOUT)
    assert response.model_spec.name == "shop"
    assert response.model_spec.version.value == 3
    assert response.model_spec.signature_name == "serving_default"
    ids, scores = response.outputs["item_ids"], response.outputs["scores"]
    assert [value.decode() for value in ids.string_val] == [
        *("mug-a", "mug-b", ""),
        *("Crème ½ 電-a", "Crème ½ 電-b", ""),
    ]
    assert [dim.size for dim in ids.tensor_shape.dim] == [2, 3]
    assert ids.dtype == types_pb2.DT_STRING
    assert list(scores.float_val) == [3.0] * 6
    assert not scores.tensor_content


def test_a_signature_and_outputs_can_be_chosen(stub):
    request = predict_request("mixed", x=[[1.0, 2.0]], count=np.int64([4]), flag=[True])
    outputs = outputs_of(stub.Predict(request, timeout=TIMEOUT))
    np.testing.assert_array_equal(outputs["x"], [[2.0, 4.0]])
    np.testing.assert_array_equal(outputs["count"], [5])
    np.testing.assert_array_equal(outputs["flag"], [False])
    request.output_filter.append("count")
    assert set(stub.Predict(request, timeout=TIMEOUT).outputs) == {"count"}


def test_scalars_go_in_and_out(stub):
    response = stub.Predict(predict_request("scalar", x=np.float32(3)), timeout=TIMEOUT)
    assert outputs_of(response)["half"] == 1.5
    assert not response.outputs["half"].tensor_shape.dim


def test_an_empty_batch_is_answered(stub):
    empty = tf.make_tensor_proto(np.array([], object), tf.string, [0])
    outputs = outputs_of(stub.Predict(predict_request(query=empty), timeout=TIMEOUT))
    assert outputs["item_ids"].shape == (0, 3)
    assert outputs["scores"].shape == (0, 3)


def test_a_string_of_a_megabyte_and_bytes_that_are_no_text_come_back_whole(stub):
    blobs = [b"x" * (1 << 20), bytes(range(256)), b"", b"\0\0"]
    outputs = outputs_of(stub.Predict(predict_request("blob", image_bytes=blobs), timeout=TIMEOUT))
    assert outputs["copy_bytes"].tolist() == blobs
    assert outputs["size"].tolist() == [len(blob) for blob in blobs]


def test_a_message_above_grpcs_usual_limit_is_taken(stub):
    texts = ["x" * 1000] * 6000
    outputs = outputs_of(stub.Predict(predict_request(query=texts), timeout=60))
    assert outputs["item_ids"].shape == (6000, 3)


def test_tensors_may_come_as_content_as_one_value_or_as_string_content(stub):
    x = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_FLOAT, tensor_content=np.float32([1, 2]).tobytes()
    )
    x.tensor_shape.dim.add(size=1)
    x.tensor_shape.dim.add(size=2)
    one = tf.make_tensor_proto(np.int64(7), shape=[1])
    request = predict_request("mixed", x=x, count=one, flag=[True])
    np.testing.assert_array_equal(
        outputs_of(stub.Predict(request, timeout=TIMEOUT))["x"], [[2.0, 4.0]]
    )
    repeated = tf.make_tensor_proto(2.0, shape=[5, 2])
    assert len(repeated.float_val) == 1
    request = predict_request("mixed", x=repeated, count=np.int64([1]), flag=[True])
    np.testing.assert_array_equal(
        outputs_of(stub.Predict(request, timeout=TIMEOUT))["x"], np.full((5, 2), 4.0)
    )
    # Strings as content: their lengths as varints, then their bytes (TensorProto, C++ clients).
    packed = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_content=b"\x02\x03abcde")
    packed.tensor_shape.dim.add(size=2)
    request = predict_request("upper", text=packed)
    assert outputs_of(stub.Predict(request, timeout=TIMEOUT))["upper"].tolist() == [b"AB", b"CDE"]


def test_unknown_models_versions_labels_and_signatures(stub):
    query = {"query": ["mug"]}
    fails(
        stub.Predict,
        predict_request(model="nothere", **query),
        NOT_FOUND,
        "Servable not found for request: Latest(nothere)",
    )
    fails(
        stub.Predict,
        predict_request(version=99, **query),
        NOT_FOUND,
        "Servable not found for request: Specific(shop, 99)",
    )
    labelled = predict_request(**query)
    labelled.model_spec.version_label = "stable"
    fails(stub.Predict, labelled, INVALID, "Unrecognized servable version label: stable")
    fails(
        stub.Predict,
        predict_request("nosuch", **query),
        grpc.StatusCode.FAILED_PRECONDITION,
        'Serving signature key "nosuch" not found.',
    )
    fails(stub.Predict, predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec")
    fails(
        stub.Predict, predict_request(model="", **query), INVALID, "ModelSpec has no name specified"
    )
    named = stub.Predict(predict_request(version=3, **query), timeout=TIMEOUT)
    assert named.model_spec.version.value == 3


def test_inputs_that_do_not_fit_the_signature_never_reach_the_graph(stub):
    fails(
        stub.Predict,
        predict_request(),
        INVALID,
        "input size does not match signature: 0!=1 len({}) != len({query}). "
        "Sent extra: {}. Missing but required: {query}.",
    )
    fails(
        stub.Predict,
        predict_request(query=["a"], other=["b"]),
        INVALID,
        "Sent extra: {other}. Missing but required: {}.",
    )
    fails(
        stub.Predict,
        predict_request(text=["a"]),
        INVALID,
        "Signature input alias: query(feed name: serving_default_query:0) not found in request and "
        "no default value provided. Inputs expected to be in the request {text}, or default input "
        "alias set: ",
    )
    fails(
        stub.Predict,
        predict_request(query=[1.0]),
        INVALID,
        "to be string but float is provided",
    )
    # A rank-0 string is what aborts the process in plain TensorFlow.
    fails(stub.Predict, predict_request(query="mug"), INVALID, "has shape []", "[-1] is expected")
    fails(stub.Predict, predict_request(query=[["mug"]]), INVALID, "has shape [1,1]")
    wide = predict_request("mixed", x=[[1.0, 2.0, 3.0]], count=np.int64([1]), flag=[True])
    fails(stub.Predict, wide, INVALID, "has shape [1,3], but [-1,2] is expected")
    fails(
        stub.Predict,
        predict_request(query=["a"], output_filter=["nope"]),
        INVALID,
        "output tensor alias not found in signature: nope Outputs expected to be in the set "
        "{item_ids,scores}.",
    )
    fails(
        stub.Predict,
        predict_request(query=["a"], output_filter=["scores", "scores"]),
        INVALID,
        "duplicate output tensor alias: scores",
    )
    assert is_alive(stub)


def _tensor(dtype, sizes, **values):
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_tensor(types_pb2.DT_STRING, [1 << 17]), id="no string for 131,072"),
        pytest.param(
            _tensor(types_pb2.DT_STRING, [1 << 17], string_val=[b"a", b"b"]), id="2 for 131,072"
        ),
        pytest.param(_tensor(types_pb2.DT_STRING, [-1], string_val=[b"a"]), id="negative size"),
        pytest.param(
            _tensor(types_pb2.DT_STRING, [1 << 40], string_val=[b"a"]), id="a tebi-element"
        ),
        pytest.param(
            _tensor(types_pb2.DT_STRING, [1 << 17], string_val=[b"a"]), id="a string for 131,072"
        ),
        pytest.param(
            _tensor(types_pb2.DT_STRING, [1000], string_val=[b"x" * 2000]), id="long for 1,000"
        ),
        pytest.param(_tensor(types_pb2.DT_STRING, [1 << 62, 0]), id="huge and empty"),
        pytest.param(_tensor(types_pb2.DT_STRING, [1] * 100, string_val=[b"a"]), id="rank 100"),
        pytest.param(
            _tensor(types_pb2.DT_STRING, [1 << 40], tensor_content=b"\x01a"), id="short content"
        ),
        pytest.param(
            _tensor(types_pb2.DT_STRING, [2], tensor_content=b"\x7f\x7fa"), id="broken content"
        ),
        pytest.param(_tensor(types_pb2.DT_FLOAT, [2], tensor_content=b"123"), id="odd bytes"),
        pytest.param(_tensor(types_pb2.DT_INVALID, [1]), id="no dtype"),
        pytest.param(_tensor(types_pb2.DT_RESOURCE, [1]), id="a resource"),
        pytest.param(_tensor(1234, [1]), id="no such dtype"),
        pytest.param(
            tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape={"unknown_rank": True}),
            id="unknown rank",
        ),
    ],
)
def test_tensors_that_contradict_themselves_are_refused(stub, broken):
    fails(stub.Predict, predict_request(query=broken), INVALID, "tensor parsing error: query")
    assert is_alive(stub)


def test_one_value_for_a_tensor_is_taken_up_to_a_mebibyte(stub):
    request = predict_request(query=_tensor(types_pb2.DT_STRING, [1000], string_val=[b"mug"]))
    outputs = outputs_of(stub.Predict(request, timeout=TIMEOUT))
    assert outputs["item_ids"].tolist() == [[b"mug-a", b"mug-b", b""]] * 1000
    fails(
        stub.Predict,
        predict_request(query=_tensor(types_pb2.DT_FLOAT, [(1 << 18) + 2], float_val=[0.0])),
        INVALID,
        "filling shape [262146] up from 1 values makes 1048580 bytes, more than the 1048576 "
        "allowed",
    )


def test_a_message_above_the_limit_is_refused_however_small_it_was_packed(tmp_path, publish):
    publish(tmp_path / "shop", 3)
    with (
        ModelServer(tmp_path / "shop", max_request_bytes=100_000) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        large = predict_request(query=["x" * 200_000])
        for packing in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with pytest.raises(grpc.RpcError, match="message larger than max") as raised:
                stub.Predict(large, timeout=TIMEOUT, compression=packing)
            assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert is_alive(stub)


def test_an_error_in_the_graph_keeps_its_code(stub):
    fails(
        stub.Predict,
        predict_request("parse", text=["1.5", "one"]),
        INVALID,
        "StringToNumberOp could not correctly convert string: one",
    )
    with pytest.raises(grpc.RpcError) as raised:
        stub.Predict(predict_request("parse", text=["one"]), timeout=TIMEOUT)
    assert raised.value.details() == (
        "StringToNumberOp could not correctly convert string: one\n\t [[{{node StringToNumber}}]]"
    )
    assert is_alive(stub)


def test_long_error_messages_still_reach_the_client(stub):
    fails(
        stub.Predict,
        predict_request("x" * 100_000, query=["a"]),
        grpc.StatusCode.FAILED_PRECONDITION,
        "Serving signature key",
    )


def test_metadata_gives_the_signature_defs(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "shop"
    response = stub.GetModelMetadata(request, timeout=TIMEOUT)
    assert response.model_spec.name == "shop"
    assert response.model_spec.version.value == 3
    assert list(response.metadata) == ["signature_def"]
    definitions = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(definitions)
    search = definitions.signature_def["serving_default"]
    assert search.method_name == "tensorflow/serving/predict"
    assert search.inputs["query"].dtype == types_pb2.DT_STRING
    assert [dim.size for dim in search.outputs["scores"].tensor_shape.dim] == [-1, 3]


def test_metadata_refuses_what_it_does_not_have(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    fails(stub.GetModelMetadata, request, INVALID, "Missing ModelSpec")
    request.model_spec.name = "shop"
    fails(stub.GetModelMetadata, request, INVALID, "at least one metadata_field")
    request.metadata_field.append("colour")
    fails(stub.GetModelMetadata, request, INVALID, "Metadata field colour is not supported")
    request.metadata_field[:] = ["signature_def"]
    request.model_spec.name = "nothere"
    fails(stub.GetModelMetadata, request, NOT_FOUND, "Servable not found")


def test_status(channel):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    fails(stub.GetModelStatus, request, INVALID, "Missing ModelSpec")
    request.model_spec.name = "shop"
    (status,) = stub.GetModelStatus(request, timeout=TIMEOUT).model_version_status
    assert status.version == 3
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert status.status.error_code == 0
    assert status.status.error_message == ""
    request.model_spec.version.value = 4
    fails(stub.GetModelStatus, request, NOT_FOUND, "Could not find version 4 of model shop")
    request.model_spec.Clear()
    request.model_spec.name = "nothere"
    fails(stub.GetModelStatus, request, NOT_FOUND, "Could not find any versions of model nothere")


class EveryType(tf.Module):
    """Gives each input back."""

    dtypes = (
        *(tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128),
        *(tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64),
        *(tf.bool, tf.string),
    )

    def function(self):
        specs = {d.name: tf.TensorSpec(None, d, d.name) for d in self.dtypes}
        identity = tf.function(lambda **inputs: {k: tf.identity(v) for k, v in inputs.items()})
        return identity.get_concrete_function(**specs)


def test_every_dtype_of_any_rank_goes_through_unchanged(tmp_path: Path):
    module = EveryType()
    tf.saved_model.save(module, str(tmp_path / "types" / "1"), module.function())
    values = {
        dtype.name: tf.constant([[b"a", b"\xff"]], dtype)
        if dtype == tf.string
        else tf.cast([[0, 1]], dtype)
        for dtype in EveryType.dtypes
    }
    # 0.1 has a different nearest value in each float type, and -1 sets every bit.
    values |= {d.name: tf.cast([0.1, -1.5, 3e4], d) for d in EveryType.dtypes if d.is_floating}
    values |= {
        d.name: tf.constant([d.min, d.max], d)
        for d in EveryType.dtypes
        if d.is_integer and d != tf.uint64
    }
    values |= {d.name: tf.constant([1 - 2j], d) for d in (tf.complex64, tf.complex128)}
    fields = {
        **dict.fromkeys((tf.float16, tf.bfloat16), "half_val"),
        **dict.fromkeys((tf.int8, tf.int16, tf.int32, tf.uint8, tf.uint16), "int_val"),
        **{tf.float32: "float_val", tf.float64: "double_val", tf.int64: "int64_val"},
        **{tf.uint32: "uint32_val", tf.uint64: "uint64_val", tf.bool: "bool_val"},
        **{tf.complex64: "scomplex_val", tf.complex128: "dcomplex_val", tf.string: "string_val"},
    }
    with (
        ModelServer(tmp_path / "types") as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "types"
        for name, value in values.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(request, timeout=TIMEOUT)
        # Fewer values than elements, or more: TensorFlow's own reading of them is the oracle.
        for sent, shape in itertools.product(range(6), ([], [0], [1], [4], [2, 2])):
            for dtype in EveryType.dtypes:
                element = str.encode if dtype == tf.string else int
                proto = _tensor(
                    dtype.as_datatype_enum,
                    shape,
                    **{fields[dtype]: [element(str(n % 2 or n)) for n in range(1, sent + 1)]},
                )
                request.inputs[dtype.name].CopyFrom(proto)
            partly = stub.Predict(request, timeout=TIMEOUT).outputs
            for dtype in EveryType.dtypes:
                wanted, got = (
                    tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
                    for proto in (request.inputs[dtype.name], partly[dtype.name])
                )
                np.testing.assert_array_equal(got, wanted, err_msg=f"{dtype} {sent} {shape}")
    for name, value in values.items():
        proto = response.outputs[name]
        assert not proto.tensor_content, name
        returned = tf.io.parse_tensor(proto.SerializeToString(), value.dtype)
        np.testing.assert_array_equal(returned.numpy(), value.numpy(), err_msg=name)
