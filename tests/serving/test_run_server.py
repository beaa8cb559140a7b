"""The server as a process: what it prints, the ports it takes, and how it ends."""

from __future__ import annotations

import signal
import socket
import threading

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client import RetrievalClient, ServingError
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer
from towers.errors import InputError


def test_a_process_serves_until_sigterm_and_answers_what_it_was_asked(
    tmp_path, publish, start_server
):
    publish(tmp_path / "shop", 1)
    server = start_server(tmp_path / "shop")
    assert "Model shop: version 1 is served\n" in server.printed
    for transport, address in (("grpc", server.grpc), ("rest", server.rest)):
        with RetrievalClient(address, model="shop", transport=transport) as client:
            assert client.search(["mug"], k=1) == [[("mug-a", 1.0)]]

    slow = predict_pb2.PredictRequest()
    slow.model_spec.name = "shop"
    slow.model_spec.signature_name = "spin"
    slow.inputs["turns"].CopyFrom(tf.make_tensor_proto(300_000))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        asked = stub.Predict.future(slow, timeout=60)
        with RetrievalClient(server.rest, model="shop", transport="rest") as client:
            client.search(["mug"])  # by now the slow request has begun
        server.process.send_signal(signal.SIGTERM)
        assert asked.result().outputs["turns"].int_val[0] == 300_000
    assert server.process.wait(timeout=30) == 0
    assert "Stopping" in server.process.stdout.read()
    with RetrievalClient(server.grpc, model="shop") as client, pytest.raises(ServingError):
        client.status()


def test_a_process_may_start_without_a_version(tmp_path, start_server):
    (tmp_path / "shop").mkdir()
    server = start_server(tmp_path / "shop")
    assert "no version to serve" in server.printed
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0


def test_rest_requests_in_flight_are_answered_when_the_server_stops(tmp_path, publish):
    publish(tmp_path / "shop", 1)
    answers = []
    server = ModelServer(tmp_path / "shop")
    server.start()
    begun = threading.Event()

    def ask() -> None:
        body = b'{"signature_name": "spin", "inputs": 300000}'
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as raw:
            raw.sendall(
                b"POST /v1/models/shop:predict HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            begun.set()
            answers.append(b"".join(iter(lambda: raw.recv(65536), b"")))

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait()
    with RetrievalClient(f"127.0.0.1:{server.rest_port}", model="shop", transport="rest") as client:
        client.search(["mug"])  # by now the slow request has begun
    server.stop()
    thread.join()
    assert answers[0].startswith(b"HTTP/1.1 200 OK")
    assert b'"turns": 300000' in answers[0]


def test_a_busy_port_is_an_input_error(tmp_path, publish):
    publish(tmp_path / "shop", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port} for gRPC"):
            ModelServer(tmp_path / "shop", port=port)
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port} for REST"):
            ModelServer(tmp_path / "shop", rest_port=port)


@pytest.mark.parametrize("ports", [{"port": 65536}, {"rest_port": 99999}, {"port": -1}])
def test_what_is_no_port_is_an_input_error(tmp_path, ports):
    with pytest.raises(InputError, match="is not a port"):
        ModelServer(tmp_path, **ports)


def test_a_wrong_folder_is_an_input_error(tmp_path, publish):
    version = publish(tmp_path / "shop", 1)
    with pytest.raises(InputError, match="there is no folder"):
        ModelServer(tmp_path / "shpo")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="not an export; `towers export --model"):
        ModelServer(run)
    with pytest.raises(InputError, match="is a version, not a model; name the folder above"):
        ModelServer(version)
    with pytest.raises(InputError, match="poll interval"):
        LoadOptions(poll_seconds=-1)
    with pytest.raises(InputError, match="expected the folder of a model"):
        ModelServer()


def test_the_name_of_a_model_can_be_set(tmp_path, publish):
    publish(tmp_path / "shop", 1)
    with (
        ModelServer(tmp_path / "shop", model_name="toys") as server,
        RetrievalClient(f"127.0.0.1:{server.grpc_port}", model="toys") as client,
    ):
        assert client.search(["mug"], k=1) == [[("mug-a", 1.0)]]
