"""gRPC's standard services: health, and reflection of the API."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

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


def test_a_server_that_stops_says_so_first(tmp_path, publish):
    publish(tmp_path / "shop", 1)
    server = ModelServer(tmp_path / "shop")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING
        server.drain_seconds = 0.5
        server.stop()
        assert next(watched).status == NOT_SERVING


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
