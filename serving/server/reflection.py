"""gRPC server reflection: clients such as grpcurl can ask which calls there are."""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import Message
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

_PACKAGE = "tensorflow.serving"
_FOLDER = "tensorflow_serving/apis"

# The modules of tensorflow-serving-api 2.20 that describe the services cannot be imported with
# today's protobuf (they set `DESCRIPTOR.has_options`), so the services are described here, from
# `prediction_service.proto` and `model_service.proto`.
_SERVICES: dict[str, tuple[str, dict[str, tuple[type[Message], type[Message]]]]] = {
    "PredictionService": (
        "prediction_service",
        {
            "Classify": (
                classification_pb2.ClassificationRequest,
                classification_pb2.ClassificationResponse,
            ),
            "Regress": (regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
            "Predict": (predict_pb2.PredictRequest, predict_pb2.PredictResponse),
            "MultiInference": (
                inference_pb2.MultiInferenceRequest,
                inference_pb2.MultiInferenceResponse,
            ),
            "GetModelMetadata": (
                get_model_metadata_pb2.GetModelMetadataRequest,
                get_model_metadata_pb2.GetModelMetadataResponse,
            ),
        },
    ),
    "ModelService": (
        "model_service",
        {
            "GetModelStatus": (
                get_model_status_pb2.GetModelStatusRequest,
                get_model_status_pb2.GetModelStatusResponse,
            ),
            "HandleReloadConfigRequest": (
                model_management_pb2.ReloadConfigRequest,
                model_management_pb2.ReloadConfigResponse,
            ),
        },
    ),
}

SERVICE_NAMES = tuple(f"{_PACKAGE}.{service}" for service in _SERVICES)


def add_reflection(server: grpc.Server) -> None:
    """Adds the reflection service to a server of the API."""
    pool = descriptor_pool.Default()
    for service, (file_name, methods) in _SERVICES.items():
        try:
            pool.FindServiceByName(f"{_PACKAGE}.{service}")
        except KeyError:
            pool.AddSerializedFile(_describe(service, file_name, methods).SerializeToString())
    names = (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=pool)


def _describe(
    service: str, file_name: str, methods: dict[str, tuple[type[Message], type[Message]]]
) -> descriptor_pb2.FileDescriptorProto:
    messages = [message.DESCRIPTOR for pair in methods.values() for message in pair]
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_FOLDER}/{file_name}.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=sorted({message.file.name for message in messages}),
    )
    described = file.service.add(name=service)
    for name, (request, response) in methods.items():
        described.method.add(
            name=name,
            input_type=f".{request.DESCRIPTOR.full_name}",
            output_type=f".{response.DESCRIPTOR.full_name}",
        )
    return file
