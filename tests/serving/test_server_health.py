"""gRPC's standard services: health, and reflection of the API."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from serving.client import RetrievalClient
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    "service",
    [
        "",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "PredictionService",  # TF Serving's own health service has these
        "ModelService",
    ],
)
def test_health(shop_server, service):
    with grpc.insecure_channel(f"127.0.0.1:{shop_server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == SERVING
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="nosuch"), timeout=10)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_server_is_healthy_once_each_model_has_a_version(tmp_path, publish):
    publish(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "models.config").write_text(
        "model_config_list {"
        + "".join(
            f'config {{ name: "{n}" base_path: "{tmp_path / n}" model_platform: "tensorflow" }}'
            for n in "ab"
        )
        + "}"
    )
    with (
        ModelServer(
            model_config_file=tmp_path / "models.config", loading=LoadOptions(poll_seconds=0.05)
        ) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tensorflow.serving.PredictionService", "ModelService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=10).status == NOT_SERVING
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watched).status == NOT_SERVING
        publish(tmp_path / "b", 1)
        assert next(watched).status == SERVING
        for service in ("", "tensorflow.serving.PredictionService", "ModelService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=10).status == SERVING


def test_a_server_that_stops_says_so_first(tmp_path, publish):
    publish(tmp_path / "shop", 1)
    server = ModelServer(tmp_path / "shop")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING
        method = "/tensorflow.serving.PredictionService/Predict"
        silent = channel.stream_unary(method).future(iter(threading.Event().wait, True))
        time.sleep(0.2)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 10, "neither was to be waited for"
        assert silent.code() == grpc.StatusCode.CANCELLED
        assert next(watched).status == NOT_SERVING
        assert isinstance(watched.exception(), grpc.RpcError)


def test_a_lame_duck_says_so_and_still_answers(tmp_path, publish):
    publish(tmp_path / "shop", 1)
    server = ModelServer(tmp_path / "shop", lame_duck_seconds=2)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        time.sleep(0.2)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
        with RetrievalClient(f"127.0.0.1:{server.grpc_port}", model="shop") as client:
            assert client.search(["mug"], k=1) == [[("mug-a", 1.0)]]
        stopping.join()
        with pytest.raises(grpc.RpcError):
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)


def test_reflection_describes_the_api(shop_server):
    with grpc.insecure_channel(f"127.0.0.1:{shop_server.grpc_port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "tensorflow.serving.PredictionService",
            "tensorflow.serving.ModelService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        service = DescriptorPool(database).FindServiceByName("tensorflow.serving.PredictionService")
        assert {"Predict", "Classify", "Regress", "MultiInference"} <= set(service.methods_by_name)
