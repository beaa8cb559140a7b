"""The REST API: paths, methods and HTTP status codes, as TF Serving has them."""

from __future__ import annotations

import json
import logging
import re
from urllib.parse import unquote

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from serving.server import rest_examples, rest_json
from serving.server.model_api import SIGNATURE_DEF, ModelApi
from serving.server.servable import DEFAULT_SIGNATURE
from serving.server.status import StatusError, invalid_argument

_MAX_INT64 = 2**63 - 1
_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION_PATH = re.compile(
    rf"/v1/models/(?P<model>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
_MODEL_PATH = re.compile(
    rf"/v1/models(?:/(?P<model>[^/:]+))?{_VERSION}(?:/(?P<metadata>metadata))?",
    re.IGNORECASE | re.ASCII,
)
_HTTP_STATUS = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

_log = logging.getLogger(__name__)


class RestApi:
    """Answers HTTP requests, given as method, path and body."""

    def __init__(self, api: ModelApi) -> None:
        """Makes the REST face of an API."""
        self._api = api

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Answers one request.

        Args:
          method: The HTTP method.
          path: The path as it was sent, still percent-encoded, without the query.
          body: The body, decompressed.

        Returns:
          The HTTP status and a JSON body; failures are `{"error": "..."}`.
        """
        try:
            return 200, self._dispatch(method, path, body)
        except StatusError as error:
            return _HTTP_STATUS.get(error.code, 500), rest_json.write_error(error.message)
        except Exception as error:
            _log.exception("a request failed in the server")
            return 500, rest_json.write_error(StatusError.wrap(error).message)

    def _dispatch(self, method: str, path: str, body: bytes) -> bytes:
        if method == "POST" and (match := _PREDICTION_PATH.fullmatch(path)):
            answer = {
                "predict": self._predict,
                "classify": self._classify,
                "regress": self._regress,
            }[match["method"].lower()]
            return answer(_model_spec(match), body)
        if method == "GET" and (match := _MODEL_PATH.fullmatch(path)):
            if not match["model"]:
                raise invalid_argument("Missing model name in request.")
            if match["metadata"]:
                return self._metadata(_model_spec(match))
            return self._status(_model_spec(match))
        raise invalid_argument(f"Malformed request: {method} {path}")

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        document = rest_json.parse_document(body)
        name = rest_json.signature_name(document) or DEFAULT_SIGNATURE
        with self._api.acquire(spec) as servable:
            if name not in servable.signature_defs:
                raise invalid_argument(
                    f'Serving signature name: "{name}" not found in signature def'
                )
            signature = servable.signature(name)
            if not signature.inputs:
                raise invalid_argument(f"Failed to get input map for signature: {name}")
            if rest_json.is_row_format(document):
                rows = rest_json.read_rows(document, signature.inputs)
                return rest_json.write_rows(signature.run(rows))
            columns = rest_json.read_columns(document, signature.inputs)
            return rest_json.write_columns(signature.run(columns))

    def _classify(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        document = rest_json.parse_document(body)
        spec.signature_name = rest_json.signature_name(document)
        request = classification_pb2.ClassificationRequest(
            model_spec=spec, input=rest_examples.read_examples(document)
        )
        return rest_examples.write_classifications(self._api.classify(request).result)

    def _regress(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        document = rest_json.parse_document(body)
        spec.signature_name = rest_json.signature_name(document)
        request = regression_pb2.RegressionRequest(
            model_spec=spec, input=rest_examples.read_examples(document)
        )
        return rest_examples.write_regressions(self._api.regress(request).result)

    def _status(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        response = self._api.get_model_status(request)
        return json_format.MessageToJson(
            response, always_print_fields_with_no_presence=True
        ).encode()

    def _metadata(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=[SIGNATURE_DEF]
        )
        response = self._api.get_model_metadata(request)
        signature_defs = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[SIGNATURE_DEF].Unpack(signature_defs)
        parts = (
            json_format.MessageToDict(
                message,
                always_print_fields_with_no_presence=True,
                preserving_proto_field_name=True,
            )
            for message in (response.model_spec, signature_defs)
        )
        model_spec, signature_def = parts
        return json.dumps(
            {"model_spec": model_spec, "metadata": {SIGNATURE_DEF: signature_def}}
        ).encode()


def _model_spec(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match["model"]))
    if match["version"]:
        version = int(match["version"])
        if version > _MAX_INT64:
            raise invalid_argument(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = version
    if match["label"]:
        spec.version_label = unquote(match["label"])
    return spec
