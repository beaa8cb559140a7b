"""The API, called with ovmsclient: a client of TensorFlow Serving's API that others wrote.

It always names a version; 0, its default, is not one of TensorFlow Serving's.
"""

from __future__ import annotations

import numpy as np
import pytest

ovmsclient = pytest.importorskip("ovmsclient")


@pytest.fixture(scope="module", params=["grpc", "http"])
def client(request, shop_server):
    if request.param == "grpc":
        return ovmsclient.make_grpc_client(f"127.0.0.1:{shop_server.grpc_port}")
    return ovmsclient.make_http_client(f"127.0.0.1:{shop_server.rest_port}")


def test_status(client):
    available = {"state": "AVAILABLE", "error_code": 0, "error_message": ""}
    assert client.get_model_status("shop", 3) == {3: available}
    with pytest.raises(ovmsclient.ModelNotFoundError, match="Could not find version 4"):
        client.get_model_status("shop", 4)
    with pytest.raises(ovmsclient.ModelNotFoundError, match="of model nothere"):
        client.get_model_status("nothere", 3)


def test_metadata(client):
    inputs = {"query": {"shape": [-1], "dtype": "DT_STRING"}}
    outputs = {
        "item_ids": {"shape": [-1, 3], "dtype": "DT_STRING"},
        "scores": {"shape": [-1, 3], "dtype": "DT_FLOAT"},
    }
    metadata = client.get_model_metadata("shop", 3)
    if "model_spec" not in metadata:  # over HTTP the client gives the whole answer
        assert metadata == {"model_version": 3, "inputs": inputs, "outputs": outputs}
    else:
        assert metadata["model_spec"]["version"] == "3"
        signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert set(signature["inputs"]) == set(inputs)
        assert {name: info["dtype"] for name, info in signature["outputs"].items()} == {
            name: info["dtype"] for name, info in outputs.items()
        }
    with pytest.raises(ovmsclient.ModelNotFoundError, match=r"Specific\(shop, 4\)"):
        client.get_model_metadata("shop", 4)


def test_predict(client):
    answer = client.predict({"query": ["mug", "rake"]}, "shop", 3)
    ids = answer["item_ids"].astype(str)  # bytes over gRPC
    assert ids.tolist() == [["mug-a", "mug-b", ""], ["rake-a", "rake-b", ""]]
    np.testing.assert_array_equal(answer["scores"], np.full((2, 3), 3.0))


def test_what_is_refused(client):
    for inputs in ({"query": [1.5]}, {"other": ["mug"]}, {"query": [["mug"]]}):
        with pytest.raises(ovmsclient.InvalidInputError):
            client.predict(inputs, "shop", 3)
    for model, version in (("shop", 0), ("nothere", 3)):
        with pytest.raises(ovmsclient.ModelNotFoundError, match="Servable not found"):
            client.predict({"query": ["mug"]}, model, version)
