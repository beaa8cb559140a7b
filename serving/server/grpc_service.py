"""PredictionService and ModelService over gRPC; the methods' names are the protocol's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.server.calls import Caller, Calls, WorkLimit
from serving.server.model_api import ModelApi
from serving.server.status import StatusError

# Details travel in HTTP/2 trailers, for which clients accept 8 KiB, percent-encoded.
_MAX_DETAILS = 2000

_NAMES: dict[type[Any], str] = {
    predict_pb2.PredictRequest: "Predict",
    classification_pb2.ClassificationRequest: "Classify",
    regression_pb2.RegressionRequest: "Regress",
    inference_pb2.MultiInferenceRequest: "MultiInference",
    get_model_metadata_pb2.GetModelMetadataRequest: "GetModelMetadata",
    get_model_status_pb2.GetModelStatusRequest: "GetModelStatus",
    model_management_pb2.ReloadConfigRequest: "HandleReloadConfigRequest",
}

_log = logging.getLogger(__name__)
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, api: ModelApi, calls: Calls, limit: WorkLimit) -> None:
        """Makes the service."""
        self._api = api
        self._calls = calls
        self._limit = limit

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Answers a PredictRequest."""
        return _answer(self._calls, self._limit, self._api.predict, request, context)

    def GetModelMetadata(
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Answers with the SignatureDefs."""
        return _answer(self._calls, self._limit, self._api.get_model_metadata, request, context)

    def Classify(
        self,
        request: classification_pb2.ClassificationRequest,
        context: grpc.ServicerContext,
    ) -> classification_pb2.ClassificationResponse:
        """Answers a ClassificationRequest."""
        return _answer(self._calls, self._limit, self._api.classify, request, context)

    def Regress(
        self, request: regression_pb2.RegressionRequest, context: grpc.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        """Answers a RegressionRequest."""
        return _answer(self._calls, self._limit, self._api.regress, request, context)

    def MultiInference(
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        """Answers a MultiInferenceRequest."""
        return _answer(self._calls, self._limit, self._api.multi_inference, request, context)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, api: ModelApi, calls: Calls, limit: WorkLimit) -> None:
        """Makes the service."""
        self._api = api
        self._calls = calls
        self._limit = limit

    def GetModelStatus(
        self,
        request: get_model_status_pb2.GetModelStatusRequest,
        context: grpc.ServicerContext,
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Answers with the states of the model's versions."""
        return _answer(self._calls, self._limit, self._api.get_model_status, request, context)

    def HandleReloadConfigRequest(
        self,
        request: model_management_pb2.ReloadConfigRequest,
        context: grpc.ServicerContext,
    ) -> model_management_pb2.ReloadConfigResponse:
        """Serves the models of another ModelServerConfig from now on."""
        return _answer(self._calls, self._limit, self._api.reload_config, request, context)


def _answer(
    calls: Calls,
    limit: WorkLimit,
    call: Callable[[_Request], _Response],
    request: _Request,
    context: grpc.ServicerContext,
) -> _Response:
    caller = Caller(_address(context.peer()), _authorization(context), "GRPC")
    try:
        around = calls.around(
            caller, _model_name(request), _NAMES[type(request)], lambda: str(request)
        )
        with around, limit.turn():
            if not context.is_active():  # it was cancelled, or its deadline passed
                raise StatusError(
                    grpc.StatusCode.CANCELLED, "Cancelled before the request was begun"
                )
            return call(request)
    except StatusError as error:
        status = error
    except Exception as error:
        _log.exception("a request failed in the server")
        status = StatusError.wrap(error)
    return context.abort(status.code, status.message[:_MAX_DETAILS])  # raises


def _model_name(request: Any) -> str:
    if isinstance(request, inference_pb2.MultiInferenceRequest):
        return request.tasks[0].model_spec.name if request.tasks else ""
    if isinstance(request, model_management_pb2.ReloadConfigRequest):
        return ""
    return request.model_spec.name


def _authorization(context: grpc.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata():
        if key == "authorization":
            return value if isinstance(value, str) else value.decode("latin-1")
    return None


def _address(peer: str) -> str:
    """Returns `127.0.0.1` for `ipv4:127.0.0.1:50000`, and `::1` for `ipv6:%5B::1%5D:50000`."""
    return unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]") or peer
