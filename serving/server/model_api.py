"""The calls of the API on the models of this server, whichever transport they came in by."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    status_pb2,
)

from serving.server.inference import run_classify, run_multi_inference, run_regress
from serving.server.models import Models
from serving.server.predict import run_predict
from serving.server.servable import Servable
from serving.server.status import invalid_argument, not_found

SIGNATURE_DEF = "signature_def"


class ModelApi:
    """Finds the model and version a request names, and answers it.

    Codes and messages are TF Serving's.
    """

    def __init__(self, models: Models) -> None:
        """Makes the API over the models of a server."""
        self._models = models

    def acquire(self, spec: model_pb2.ModelSpec) -> AbstractContextManager[Servable]:
        """Lends the version that a ModelSpec names; see `Models.acquire`."""
        return self._models.acquire(spec)

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Answers PredictionService.Predict.

        Raises:
          StatusError: The model or version is missing, the request does not fit the signature, or
            the graph failed.
        """
        _require_model_spec(request)
        with self.acquire(request.model_spec) as servable:
            return run_predict(servable, request)

    def classify(
        self, request: classification_pb2.ClassificationRequest
    ) -> classification_pb2.ClassificationResponse:
        """Answers PredictionService.Classify.

        Raises:
          StatusError: The model or version is missing, the signature is not one to classify with,
            or the graph failed.
        """
        _require_model_spec(request)
        with self.acquire(request.model_spec) as servable:
            return run_classify(servable, request)

    def regress(
        self, request: regression_pb2.RegressionRequest
    ) -> regression_pb2.RegressionResponse:
        """Answers PredictionService.Regress.

        Raises:
          StatusError: The model or version is missing, the signature is not one to regress with, or
            the graph failed.
        """
        _require_model_spec(request)
        with self.acquire(request.model_spec) as servable:
            return run_regress(servable, request)

    def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest
    ) -> inference_pb2.MultiInferenceResponse:
        """Answers PredictionService.MultiInference, with the version that its first task names.

        Raises:
          StatusError: The model or version is missing, a signature is not one for its task, or the
            graph failed.
        """
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self.acquire(spec) as servable:
            return run_multi_inference(servable, request)

    def get_model_metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Answers PredictionService.GetModelMetadata with the SignatureDefs.

        Raises:
          StatusError: The model or version is missing, or another field was asked for.
        """
        _require_model_spec(request)
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self.acquire(request.model_spec) as servable:
            signature_defs = get_model_metadata_pb2.SignatureDefMap(
                signature_def=servable.signature_defs
            )
            response.model_spec.version.value = servable.version
        response.model_spec.name = request.model_spec.name
        response.metadata[SIGNATURE_DEF].Pack(signature_defs)
        return response

    def get_model_status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Answers ModelService.GetModelStatus, for one version or for all that were seen.

        Raises:
          StatusError: NOT_FOUND, where no such version was ever seen.
        """
        _require_model_spec(request)
        spec = request.model_spec
        statuses = self._models.statuses(spec.name)
        if spec.HasField("version"):
            wanted = spec.version.value
            statuses = [status for status in statuses if status.version == wanted]
            if not statuses:
                raise not_found(f"Could not find version {wanted} of model {spec.name}")
        if not statuses:
            raise not_found(f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in statuses:
            entry = response.model_version_status.add(version=status.version, state=status.state)
            entry.status.error_code = status.code.value[0]
            entry.status.error_message = status.message
        return response

    def reload_config(
        self, request: model_management_pb2.ReloadConfigRequest
    ) -> model_management_pb2.ReloadConfigResponse:
        """Answers ModelService.HandleReloadConfigRequest; see `Models.reload`.

        Raises:
          StatusError: The configuration is refused, or a new model did not become available.
        """
        self._models.reload(request.config)
        return model_management_pb2.ReloadConfigResponse(
            status=status_pb2.StatusProto(error_code=0)
        )


def _require_model_spec(
    request: predict_pb2.PredictRequest
    | classification_pb2.ClassificationRequest
    | regression_pb2.RegressionRequest
    | get_model_metadata_pb2.GetModelMetadataRequest
    | get_model_status_pb2.GetModelStatusRequest,
) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
