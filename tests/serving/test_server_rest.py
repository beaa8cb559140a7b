"""The REST API over plain HTTP; expected shapes and texts are those of TF Serving's api_rest.md."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
import zlib

import pytest

from serving.server.server import ModelServer


@pytest.fixture(scope="module")
def call(shop_server):
    """Returns a function that sends one request and returns status and parsed body."""

    def send(path, body=None, method=None, headers=None, port=shop_server.rest_port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, raw, headers or {})
        response = connection.getresponse()
        assert response.headers.get_content_type() == "application/json"
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer

    return send


@pytest.fixture(scope="module")
def predict(call):
    """Returns a function that posts a body to `shop`'s predict."""
    return lambda body: call("/v1/models/shop:predict", body)


def error(answer, status, *texts):
    assert answer[0] == status, answer
    assert list(answer[1]) == ["error"]
    for text in texts:
        assert text in answer[1]["error"], answer[1]["error"]


def test_rows_of_a_single_input_give_objects_of_several_outputs(predict):
    assert predict({"instances": ["mug", "Crème ½ 電 👩‍👩‍👧"]}) == (
        200,
        {
            "predictions": [
                {"item_ids": ["mug-a", "mug-b", ""], "scores": [3.0, 3.0, 3.0]},
                {
                    "item_ids": ["Crème ½ 電 👩‍👩‍👧-a", "Crème ½ 電 👩‍👩‍👧-b", ""],
                    "scores": [3.0, 3.0, 3.0],
                },
            ]
        },
    )


def test_columns_give_columns(predict):
    expected = {"outputs": {"item_ids": [["mug-a", "mug-b", ""]], "scores": [[3.0, 3.0, 3.0]]}}
    assert predict({"inputs": ["mug"]}) == (200, expected)
    assert predict({"inputs": {"query": ["mug"]}}) == (200, expected)
    named = {"signature_name": "search", "inputs": {"query": ["mug"]}}
    assert predict(named) == (200, expected)
    # Unlike rows, columns may have names that are no inputs.
    assert predict({"inputs": {"query": ["mug"], "zz": [1]}}) == (200, expected)


def test_the_name_of_a_single_output_is_left_out(predict):
    rows = {"signature_name": "upper", "instances": [{"text": "é"}, {"text": "b"}]}
    assert predict(rows) == (200, {"predictions": ["É", "B"]})
    columns = {"signature_name": "upper", "inputs": ["é", "b"]}
    assert predict(columns) == (200, {"outputs": ["É", "B"]})


def test_several_inputs_of_different_types(predict):
    row = {"x": [1, 2.5], "count": 41, "flag": True}
    assert predict({"signature_name": "mixed", "instances": [row]}) == (
        200,
        {"predictions": [{"x": [2.0, 5.0], "count": 42, "flag": False}]},
    )
    columns = {"x": [[1, 2.5]], "count": [41], "flag": [True]}
    assert predict({"signature_name": "mixed", "inputs": columns}) == (
        200,
        {"outputs": {"x": [[2.0, 5.0]], "count": [42], "flag": [False]}},
    )


def test_numbers_are_written_with_the_fewest_digits_that_keep_them(predict, call, shop_server):
    row = {"x": [0.05, 1e20], "count": 2**53, "flag": False}
    body = json.dumps({"signature_name": "mixed", "instances": [row]})
    connection = http.client.HTTPConnection("127.0.0.1", shop_server.rest_port)
    connection.request("POST", "/v1/models/shop:predict", body)
    text = connection.getresponse().read().decode()
    connection.close()
    assert "[0.1, 2e+20]" in text  # as float32 and float64 alike, not 0.10000000149011612
    assert "9007199254740993" in text
    columns = b'{"x": [[NaN, -Infinity]], "count": [0], "flag": [true]}'
    special = b'{"signature_name": "mixed", "inputs": ' + columns + b"}"
    connection.request("POST", "/v1/models/shop:predict", special)
    assert "[NaN, -Infinity]" in connection.getresponse().read().decode()
    connection.close()


def test_scalars(predict):
    assert predict({"signature_name": "scalar", "inputs": 3}) == (200, {"outputs": 1.5})
    error(predict({"signature_name": "scalar", "instances": [3]}), 400, "shape [1], but []")


def test_bytes_travel_as_base64(predict):
    blob = bytes(range(256))
    encoded = {"b64": base64.b64encode(blob).decode()}
    expected = {"copy_bytes": encoded, "size": 256}
    for instance in (encoded, {"image_bytes": encoded}):
        body = {"signature_name": "blob", "instances": [instance]}
        assert predict(body) == (200, {"predictions": [expected]})
    body = {"signature_name": "blob", "inputs": [encoded]}
    assert predict(body) == (200, {"outputs": {"copy_bytes": [encoded], "size": [256]}})
    # Without padding, and broken into lines, it is still base64.
    loose = {"b64": "aGVs\nbG8"}
    answer = predict({"signature_name": "upper", "instances": [loose]})
    assert answer == (200, {"predictions": ["HELLO"]})
    error(
        predict({"signature_name": "upper", "instances": [{"b64": "?"}]}),
        400,
        "Unable to base64 decode",
    )


def test_a_string_of_a_megabyte(predict):
    text = "x" * (1 << 20)
    answer = predict({"signature_name": "upper", "instances": [text]})
    assert answer == (200, {"predictions": [text.upper()]})


def test_empty_columns_are_an_empty_batch(predict):
    assert predict({"inputs": []}) == (200, {"outputs": {"item_ids": [], "scores": []}})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"  \n", "JSON Parse error: The document is empty"),
        (b'{"instances": [', "JSON Parse error: "),
        (b'{"instances": ["\xff"]}', "JSON Parse error: Invalid encoding in string. at offset: 16"),
        (b'{"instances": ["\\ud800"]}', "The surrogate pair in string is invalid"),
        (b"[" * 200_000, "JSON Parse error: "),
        (b'{"instances": [' + b"9" * 10_000 + b"]}", "JSON Parse error: "),
        (b"[1]", "JSON Value: [1] Is not object"),
        (b'"text"', "Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": ["a"], "inputs": ["a"]}, "expecting only one of 'inputs' or 'instances'"),
        ({"instances": "a"}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"signature_name": 7, "instances": ["a"]}, "'signature_name' key must be a string value."),
        (
            {"signature_name": "nosuch", "instances": ["a"]},
            'Serving signature name: "nosuch" not found in signature def',
        ),
        (
            {"instances": [1]},
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON Value: 1 Type: Number is not of expected type: string",
        ),
        ({"instances": ["a", None]}, "Failed to process element: 1 of 'instances' list."),
        ({"instances": ["a", {"query": "b"}]}, "Expecting value/list but got object at item 1"),
        ({"instances": [{"query": "a"}, "b"]}, "Expecting object but got list at item 1"),
        ({"instances": [{"text": "a"}]}, "does not have named input: text"),
        ({"instances": [{"query": {"b64": 1}}]}, "not formatted correctly for base64 data"),
        ({"instances": ["a", ["b"]]}, "Expecting shape [] but got: [1]"),
        (
            {"instances": [["a"], ["b", "c"]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 1 but got: 2",
        ),
        ({"instances": [["a", "b"], [["c"], ["d"]]]}, "Expecting shape [2] but got: [2,1]"),
        (
            {"instances": ["a", [["b"], "c"]]},
            'Error: INVALID_ARGUMENT: JSON Value: "c" found at incorrect level: 2',
        ),
        ({"instances": [["a"], ["b"]]}, "has shape [2,1], but [-1] is expected"),
        ({"inputs": "a"}, "has shape [], but [-1] is expected"),
        ({"inputs": {"text": ["a"]}}, "Missing named input: query in 'inputs' object."),
        (
            {"inputs": [["a", "b"], ["c"]]},
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        ({"inputs": [["a"], "b"]}, "found at incorrect level: 2 in the JSON DOM"),
        ({"inputs": ["a", ["b"]]}, "Encountered list at unexpected level: 1 expected < 1"),
        (
            {"signature_name": "mixed", "instances": [1]},
            "instances is a plain list, but expecting list of objects",
        ),
        (
            {"signature_name": "mixed", "instances": [{"b64": "aa=="}]},
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            {"signature_name": "mixed", "inputs": [1]},
            "inputs is a plain value/list, but expecting an object",
        ),
        (
            {"signature_name": "mixed", "instances": [{"x": [1, 2], "count": 1}]},
            "keys must be equal to: count,flag,x",
        ),
        (
            {"signature_name": "mixed", "inputs": {"x": [[1, 2]], "count": [1.0], "flag": [True]}},
            "JSON Value: 1.0 Type: Number is not of expected type: int64",
        ),
        (
            {
                "signature_name": "mixed",
                "inputs": {"x": [[1, 2]], "count": [1 << 63], "flag": [True]},
            },
            "is not of expected type: int64",
        ),
        (
            {"signature_name": "mixed", "inputs": {"x": [[1, True]], "count": [1], "flag": [True]}},
            "JSON Value: true Type: True is not of expected type: float",
        ),
        (
            {"signature_name": "mixed", "inputs": {"x": [[1]], "count": [1], "flag": [True]}},
            "has shape [1,1], but [-1,2] is expected",
        ),
        ({"signature_name": "parse", "instances": ["one"]}, "could not correctly convert string"),
    ],
)
def test_a_bad_body_is_a_400_that_says_why(predict, body, text):
    error(predict(body), 400, text)
    assert predict({"signature_name": "upper", "instances": ["ok"]})[0] == 200


def test_what_follows_the_document_is_ignored_and_a_byte_order_mark_too(predict):
    document = b'\xef\xbb\xbf {"signature_name": "upper", "instances": ["a"]} and more'
    assert predict(document) == (200, {"predictions": ["A"]})


def test_status(call):
    available = {
        "model_version_status": [
            {
                "version": "3",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    assert call("/v1/models/shop") == (200, available)
    assert call("/v1/models/shop/versions/3") == (200, available)
    error(call("/v1/models/shop/versions/4"), 404, "Could not find version 4 of model shop")
    error(call("/v1/models/nothere"), 404, "Could not find any versions of model nothere")
    error(call("/v1/models"), 400, "Missing model name in request.")


def test_metadata(call):
    status, metadata = call("/v1/models/shop/metadata")
    assert status == 200
    assert metadata["model_spec"] == {"name": "shop", "signature_name": "", "version": "3"}
    upper = metadata["metadata"]["signature_def"]["signature_def"]["upper"]
    assert upper["method_name"] == "tensorflow/serving/predict"
    assert upper["inputs"]["text"]["dtype"] == "DT_STRING"
    assert upper["inputs"]["text"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}],
        "unknown_rank": False,
    }
    assert call("/v1/models/shop/versions/3/metadata") == (200, metadata)
    error(call("/v1/models/shop/versions/4/metadata"), 404, "Specific(shop, 4)")


def test_models_and_versions_in_the_path(call):
    body = {"signature_name": "upper", "instances": ["a"]}
    assert call("/v1/models/shop/versions/3:predict", body)[0] == 200
    assert call("/v1/models/sh%6Fp:predict", body)[0] == 200
    assert call("/V1/Models/shop:Predict", body)[0] == 200
    error(
        call("/v1/models/shop/versions/4:predict", body),
        404,
        "Servable not found for request: Specific(shop, 4)",
    )
    error(
        call("/v1/models/half:predict", body), 404, "Servable not found for request: Latest(half)"
    )
    error(
        call("/v1/models/shop/labels/stable:predict", body),
        400,
        "Unrecognized servable version label: stable",
    )
    error(call(f"/v1/models/shop/versions/{1 << 63}:predict", body), 400, "to numeric.")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/shop:predict"),
        ("POST", "/v1/models/shop"),
        ("DELETE", "/v1/models/shop"),
        ("POST", "/v1/models/shop:explain"),
        ("GET", "/v1/models/shop/versions/three"),
    ],
)
def test_other_paths_and_methods_are_malformed(call, method, path):
    error(call(path, b"{}", method=method), 400, f"Malformed request: {method} {path}")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_paths_outside_the_api_are_not_found(call, method):
    for path in ("/", "/v1", "/v2/models/shop", "/favicon.ico", "/a%0Ab"):
        error(call(path, b"{}", method=method), 404)


def test_options_are_answered(shop_server):
    connection = http.client.HTTPConnection("127.0.0.1", shop_server.rest_port, timeout=30)
    connection.request("OPTIONS", "/v1/models/shop:predict")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    connection.close()


def test_the_metrics_may_be_posted_for(shop_server):
    connection = http.client.HTTPConnection("127.0.0.1", shop_server.rest_port, timeout=30)
    connection.request("POST", "/monitoring/prometheus/metrics", b"")
    response = connection.getresponse()
    assert response.status == 200
    assert b":tensorflow:serving:request_count" in response.read()
    connection.close()


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        *(("gzip", gzip.compress), ("GZIP", gzip.compress), ("identity", bytes)),
        *(("deflate", zlib.compress), ("deflate", raw_deflate)),
    ],
)
def test_a_compressed_body_is_read(call, encoding, pack):
    body = pack(b'{"signature_name": "upper", "instances": ["a"]}')
    answer = call("/v1/models/shop:predict", body, headers={"Content-Encoding": encoding})
    assert answer == (200, {"predictions": ["A"]})


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x"])
@pytest.mark.parametrize(
    "body",
    [b"{}", gzip.compress(b'{"instances": ["a"]}', mtime=0)[:-9]],
    ids=["no archive", "cut off"],
)
def test_a_body_that_is_not_packed_as_it_says_is_a_400(call, caplog, encoding, body):
    headers = {"Content-Encoding": encoding, "Content-Length": str(len(body))}
    error(call("/v1/models/shop:predict", body, "POST", headers), 400, encoding)
    error(call("/v1/models/shop:predict", b"", "POST", headers | {"Content-Length": "0"}), 400)
    assert call("/v1/models/shop", headers={"Content-Encoding": encoding})[0] == 200
    assert not caplog.records


def test_what_the_http_server_refuses_by_itself_is_json_too(call):
    error(call("/v1/models/shop:predict", b"{}", headers={"Expect": "a-cake"}), 417)


def test_a_body_above_the_limit_is_refused(tmp_path, publish, call):
    publish(tmp_path / "shop", 3)
    with ModelServer(tmp_path / "shop", max_request_bytes=1000) as server:
        body = {"signature_name": "upper", "instances": ["x" * 2000]}
        path = "/v1/models/shop:predict"
        error(call(path, body, port=server.rest_port), 413, "longer than 1000 bytes")
        bomb = gzip.compress(json.dumps(body).encode())
        gzipped = {"Content-Encoding": "gzip"}
        error(call(path, bomb, headers=gzipped, port=server.rest_port), 413)
        body["instances"] = ["x"]
        assert call(path, body, port=server.rest_port)[0] == 200


def test_a_connection_serves_many_requests_and_survives_bad_ones(shop_server):
    connection = http.client.HTTPConnection("127.0.0.1", shop_server.rest_port, timeout=30)
    for body, status in ((b"{", 400), (b'{"instances": ["a"]}', 200)) * 3:
        connection.request("POST", "/v1/models/shop:predict", body)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


def test_what_is_not_http_does_no_harm(shop_server, predict):
    with socket.create_connection(("127.0.0.1", shop_server.rest_port), timeout=10) as raw:
        raw.sendall(b"\x00\x01 not http\r\n\r\n")
        raw.recv(1000)
    with socket.create_connection(("127.0.0.1", shop_server.rest_port), timeout=10) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100\r\n\r\n{")
    assert predict({"instances": ["a"]})[0] == 200
