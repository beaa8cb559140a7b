"""The Python client against a real server, over both transports."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving import client_messages
from serving.client import Hit, RetrievalClient, ServingError, VersionStatus
from towers.errors import InputError


@pytest.fixture(params=["grpc", "rest", "rest with a URL"])
def client(request, shop_server):
    transport = request.param.split()[0]
    port = shop_server.grpc_port if transport == "grpc" else shop_server.rest_port
    address = f"127.0.0.1:{port}"
    if request.param == "rest with a URL":
        address = f"http://{address}/"
    with RetrievalClient(address, model="shop", transport=transport) as client:
        yield client


def test_search_returns_hits_without_the_padding(client, golden_texts):
    hits = client.search(golden_texts)
    assert hits == [[Hit(f"{text}-a", 3.0), Hit(f"{text}-b", 3.0)] for text in golden_texts]


def test_k_cuts_the_hits(client):
    assert client.search(["mug"], k=1) == [[Hit("mug-a", 3.0)]]
    assert len(client.search(["mug"], k=50)[0]) == 2
    with pytest.raises(InputError, match="k is 0"):
        client.search(["mug"], k=0)


def test_similar(client):
    assert client.similar(["p2", "p1", "p9"]) == [[("2", 1.0)], [("1", 1.0)], [("-1", 1.0)]]


def test_a_model_without_columns_is_not_filtered(client):
    with pytest.raises(ServingError, match="exported without columns to filter by"):
        client.search_filtered(["mug"])


def test_a_model_without_histories_recommends_nothing_and_says_why(client):
    with pytest.raises(ServingError, match="exported from a run without histories"):
        client.recommend([["1"]])
    with pytest.raises(ServingError, match="exported from a run without histories"):
        client.score([["1"]], [["2"]])
    with pytest.raises(ServingError, match="does not take reviews"):
        client.recommend([["1"]], reviews=[["lovely"]])
    with pytest.raises(ServingError, match="without --users and --context"):
        client.recommend([["1"]], contexts=[{"level": "gold"}])


def test_embeddings_come_as_an_array(client):
    embeddings = client.encode_queries(["a", "abc"])
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, np.float32([[1, 0.1], [3, 0.3]]))


def test_nothing_asked_is_nothing_found(client):
    assert client.search([]) == []
    embeddings = client.encode_queries([])
    assert len(embeddings) == 0
    assert embeddings.ndim == 2


def test_one_string_is_not_taken_for_a_list_of_letters(client):
    with pytest.raises(TypeError, match=r"pass \['mug'\]"):
        client.search("mug")


def test_what_is_no_string_is_named(client):
    with pytest.raises(TypeError, match="got None at place 1"):
        client.search(["mug", None])


def test_status(client):
    assert client.status() == [VersionStatus(3, "AVAILABLE", "")]


def test_threads_may_share_a_client(client):
    with ThreadPoolExecutor(8) as pool:
        texts = [str(number) for number in range(100)]
        answers = list(pool.map(lambda text: client.search([text], k=1)[0][0].item_id, texts))
    assert answers == [f"{text}-a" for text in texts]


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_an_unknown_model_is_not_found(shop_server, transport):
    port = shop_server.grpc_port if transport == "grpc" else shop_server.rest_port
    with (
        RetrievalClient(f"127.0.0.1:{port}", model="a b/c", transport=transport) as client,
        pytest.raises(ServingError, match="Servable not found") as raised,
    ):
        client.search(["mug"])
    assert raised.value.code == "NOT_FOUND"
    assert raised.value.message == "Servable not found for request: Latest(a b/c)"


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_no_server_is_unavailable(transport):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            RetrievalClient(address, model="shop", transport=transport) as client,
            pytest.raises(ServingError) as raised,
        ):
            client.search(["mug"])
    assert raised.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_server_that_never_answers_is_a_deadline(transport):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            RetrievalClient(address, model="s", transport=transport, timeout=0.3) as client,
            pytest.raises(ServingError) as raised,
        ):
            client.status()
    assert raised.value.code == "DEADLINE_EXCEEDED"


NO_ADDRESSES = [
    *("", "localhost", "localhost:", ":8500", "8500", "localhost:abc", "localhost:8500 ", " a:1"),
    *("localhost:0", "localhost:-1", "localhost:65536", "localhost:99999", "localhost:8500/x"),
    *("my host:8500", "user@localhost:8500", "::1:8500", "[::1]", "[::1:8500", "localhost:٨"),
    *("localhost:8500\n", "ftp://localhost:8500", "http://", "http://:8501", "http://localhost:x"),
    *(
        "http://localhost:99999",
        "http://localhost:0",
        "http://[::1:1",
        "http://a b:1",
        "http://a?b",
    ),
]


@pytest.mark.parametrize("transport", ["grpc", "rest"])
@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_is_told_what_one_is(address, transport):
    with pytest.raises(InputError) as raised:
        RetrievalClient(address, model="shop", transport=transport)
    assert str(raised.value).startswith(f"{address!r} is not the address of a ")
    assert "expected HOST:PORT" in str(raised.value)


@pytest.mark.parametrize(
    "address", ["localhost:8500", "127.0.0.1:1", "[::1]:65535", "my_host.lan:80"]
)
@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_addresses(address, transport):
    RetrievalClient(address, model="shop", transport=transport).close()


@pytest.mark.parametrize("address", ["http://localhost:8501", "https://shop.example/search/"])
def test_urls_are_for_rest(address):
    RetrievalClient(address, model="shop", transport="rest").close()
    with pytest.raises(InputError, match="a URL is for REST: transport='rest', --rest"):
        RetrievalClient(address, model="shop")


@pytest.mark.parametrize("transport", ["grpc", "rest"])
@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_timeouts_no_clock_can_hold_are_refused(timeout, transport):
    with pytest.raises(InputError, match=r"above 0 and at most 86,400 s"):
        RetrievalClient("localhost:1", model="shop", transport=transport, timeout=timeout)


def test_transports_are_checked():
    with pytest.raises(InputError, match="'grpc' or 'rest'"):
        RetrievalClient(model="shop", transport="soap")


def test_the_client_needs_no_tensorflow():
    code = "import sys, serving.client; print({'tensorflow', 'keras'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (client_messages.PredictRequest, predict_pb2.PredictRequest),
        (client_messages.PredictResponse, predict_pb2.PredictResponse),
        (client_messages.TensorProto, tensor_pb2.TensorProto),
        (client_messages.GetModelStatusRequest, get_model_status_pb2.GetModelStatusRequest),
        (client_messages.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
    ],
)
def test_the_declared_messages_are_those_of_tensorflow_serving(ours, theirs):
    def check(own, reference):
        for field in own.fields:
            other = reference.fields_by_name[field.name]
            assert field.number == other.number, field.full_name
            assert field.is_repeated == other.is_repeated, field.full_name
            if field.message_type:
                check(field.message_type, other.message_type)
            elif not other.enum_type:  # which is an int32 on the wire
                assert field.type == other.type, field.full_name

    check(ours.DESCRIPTOR, theirs.DESCRIPTOR)
