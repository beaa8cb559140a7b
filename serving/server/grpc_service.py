"""PredictionService and ModelService over gRPC; the methods' names are the protocol's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

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

from serving.server.model_api import ModelApi
from serving.server.status import StatusError

# Details travel in HTTP/2 trailers, for which clients accept 8 KiB, percent-encoded.
_MAX_DETAILS = 2000

_log = logging.getLogger(__name__)
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, api: ModelApi) -> None:
        """Makes the service."""
        self._api = api

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Answers a PredictRequest."""
        return _answer(self._api.predict, request, context)

    def GetModelMetadata(
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Answers with the SignatureDefs."""
        return _answer(self._api.get_model_metadata, request, context)

    def Classify(
        self,
        request: classification_pb2.ClassificationRequest,
        context: grpc.ServicerContext,
    ) -> classification_pb2.ClassificationResponse:
        """Answers a ClassificationRequest."""
        return _answer(self._api.classify, request, context)

    def Regress(
        self, request: regression_pb2.RegressionRequest, context: grpc.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        """Answers a RegressionRequest."""
        return _answer(self._api.regress, request, context)

    def MultiInference(
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        """Answers a MultiInferenceRequest."""
        return _answer(self._api.multi_inference, request, context)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, api: ModelApi) -> None:
        """Makes the service."""
        self._api = api

    def GetModelStatus(
        self,
        request: get_model_status_pb2.GetModelStatusRequest,
        context: grpc.ServicerContext,
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Answers with the states of the model's versions."""
        return _answer(self._api.get_model_status, request, context)

    def HandleReloadConfigRequest(
        self,
        request: model_management_pb2.ReloadConfigRequest,
        context: grpc.ServicerContext,
    ) -> model_management_pb2.ReloadConfigResponse:
        """Serves the models of another ModelServerConfig from now on."""
        return _answer(self._api.reload_config, request, context)


def _answer(
    call: Callable[[_Request], _Response], request: _Request, context: grpc.ServicerContext
) -> _Response:
    try:
        return call(request)
    except StatusError as error:
        status = error
    except Exception as error:
        _log.exception("a request failed in the server")
        status = StatusError.wrap(error)
    return context.abort(status.code, status.message[:_MAX_DETAILS])  # raises
