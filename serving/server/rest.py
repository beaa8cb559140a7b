"""The REST API: paths, methods and HTTP status codes, as TF Serving has them."""

from __future__ import annotations

import json
import re
from typing import NamedTuple
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
from serving.server.metrics import CONTENT_TYPE, Metrics
from serving.server.model_api import SIGNATURE_DEF, ModelApi
from serving.server.servable import DEFAULT_SIGNATURE
from serving.server.status import StatusError, invalid_argument, not_found

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


class Answer(NamedTuple):
    """An HTTP response.

    Attributes:
      status: The HTTP status.
      body: The body.
      content_type: What the body is.
    """

    status: int
    body: bytes
    content_type: str = "application/json"


class Call(NamedTuple):
    """What a method and a path ask for.

    Attributes:
      model: The model named; empty where none is.
      api: The call's name, such as Predict; empty where it is none.
    """

    model: str
    api: str


class RestApi:
    """Answers HTTP requests, given as method, path and body."""

    def __init__(self, api: ModelApi, metrics: Metrics, metrics_path: str | None) -> None:
        """Makes the REST face of an API.

        Args:
          api: The calls themselves.
          metrics: What is shown under `metrics_path`.
          metrics_path: The path of the metrics; None where they are not shown.
        """
        self._api = api
        self._metrics = metrics
        self._metrics_path = metrics_path

    def call(self, method: str, path: str) -> Call:
        """Says what a request is for, whether it can be answered or not.

        Args:
          method: The HTTP method.
          path: The path as it was sent, still percent-encoded, without the query.
        """
        if path == self._metrics_path:
            return Call("", "Metrics")
        if method == "POST" and (match := _PREDICTION_PATH.fullmatch(path)):
            return Call(unquote(match["model"]), match["method"].capitalize())
        if method == "GET" and (match := _MODEL_PATH.fullmatch(path)):
            api = "GetModelMetadata" if match["metadata"] else "GetModelStatus"
            return Call(unquote(match["model"] or ""), api)
        return Call("", "")

    def handle(self, method: str, path: str, body: bytes) -> Answer:
        """Answers one request.

        Args:
          method: The HTTP method.
          path: The path as it was sent, still percent-encoded, without the query.
          body: The body, decompressed.

        Raises:
          Exception: Whatever went wrong; `failure` makes an answer of it.
        """
        if method == "OPTIONS":
            return Answer(200, b"")
        if method in ("GET", "POST") and path == self._metrics_path:
            return Answer(200, self._metrics.page(), CONTENT_TYPE)
        if method == "POST" and (match := _PREDICTION_PATH.fullmatch(path)):
            answer = {
                "predict": self._predict,
                "classify": self._classify,
                "regress": self._regress,
            }[match["method"].lower()]
            return Answer(200, answer(_model_spec(match), body))
        if method == "GET" and (match := _MODEL_PATH.fullmatch(path)):
            if not match["model"]:
                raise invalid_argument("Missing model name in request.")
            spec = _model_spec(match)
            return Answer(200, self._metadata(spec) if match["metadata"] else self._status(spec))
        if not path.lower().startswith("/v1/"):
            raise not_found(f"There is nothing at {path}")
        raise invalid_argument(f"Malformed request: {method} {path}")

    @staticmethod
    def failure(error: Exception) -> Answer:
        """Returns the answer `{"error": "..."}` for what went wrong."""
        status = StatusError.wrap(error)
        http_status = status.http_status or _HTTP_STATUS.get(status.code, 500)
        return Answer(http_status, rest_json.write_error(status.message))

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
