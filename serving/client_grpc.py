"""The client's calls over gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from serving.client_address import grpc_address
from serving.client_error import ServingError
from serving.client_messages import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    PredictRequest,
    PredictResponse,
    SignatureDefMap,
    TensorProto,
)

# tensorflow.DataType and ModelVersionStatus.State
_DT_FLOAT = 1
_DT_INT32 = 3
_DT_STRING = 7
_DTYPES = {_DT_FLOAT: "DT_FLOAT", _DT_INT32: "DT_INT32", _DT_STRING: "DT_STRING"}
_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_SIGNATURE_DEF = "signature_def"
_UNLIMITED = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

Input = Sequence[str] | Sequence[Sequence[str]] | np.ndarray
"""What an input of a signature may be given as."""


class GrpcTransport:
    """Calls PredictionService and ModelService of one model."""

    def __init__(
        self,
        address: str,
        model: str,
        timeout: float,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Makes a transport; the connection is opened by the first call."""
        self._model = model
        self._timeout = timeout
        # Not as call credentials, which gRPC sends over TLS only.
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        target = grpc_address(address)
        self._channel = (
            grpc.secure_channel(target, credentials, options=_UNLIMITED)
            if credentials
            else grpc.insecure_channel(target, options=_UNLIMITED)
        )
        self._predict = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=PredictRequest.SerializeToString,
            response_deserializer=PredictResponse.FromString,
        )
        self._get_model_status = self._channel.unary_unary(
            "/tensorflow.serving.ModelService/GetModelStatus",
            request_serializer=GetModelStatusRequest.SerializeToString,
            response_deserializer=GetModelStatusResponse.FromString,
        )
        self._get_model_metadata = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/GetModelMetadata",
            request_serializer=GetModelMetadataRequest.SerializeToString,
            response_deserializer=GetModelMetadataResponse.FromString,
        )

    def predict(
        self,
        signature: str,
        inputs: Mapping[str, Input],
        *,
        timeout: float | None = None,
        version: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
          signature: Its name.
          inputs: Strings, rows of strings of one width, or numbers as float32.
          timeout: Seconds; as the transport was made with when None.
          version: The version to run; the newest when None.
        """
        request = PredictRequest()
        self._name(request, version)
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            named = request.inputs.add(key=name)
            if isinstance(values, np.ndarray):
                named.value.dtype = _DT_FLOAT
                for size in values.shape:
                    named.value.tensor_shape.dim.add(size=size)
                named.value.float_val.extend(values.ravel().tolist())
                continue
            named.value.dtype = _DT_STRING
            named.value.tensor_shape.dim.add(size=len(values))
            if values and not isinstance(values[0], str):
                named.value.tensor_shape.dim.add(size=len(values[0]))
                values = [string for row in values for string in row]
            named.value.string_val.extend(str(string).encode() for string in values)
        response = self._call(self._predict, request, timeout)
        return {output.key: _array(output.value) for output in response.outputs}

    def status(self, *, timeout: float | None = None) -> list[tuple[int, str, str]]:
        """Returns version, state and error of each version the server has seen."""
        request = GetModelStatusRequest()
        self._name(request)
        response = self._call(self._get_model_status, request, timeout)
        return [
            (entry.version, _STATES.get(entry.state, "UNKNOWN"), entry.status.error_message)
            for entry in response.model_version_status
        ]

    def signatures(
        self, *, timeout: float | None = None, version: int | None = None
    ) -> dict[str, dict[str, str]]:
        """Returns, of each signature, the name and the DataType of each input."""
        request = GetModelMetadataRequest(metadata_field=[_SIGNATURE_DEF])
        self._name(request, version)
        response = self._call(self._get_model_metadata, request, timeout)
        signatures = SignatureDefMap()
        for entry in response.metadata:
            if entry.key == _SIGNATURE_DEF:
                signatures.ParseFromString(entry.value.value)
        return {
            signature.key: {
                item.key: _DTYPES.get(item.value.dtype, str(item.value.dtype))
                for item in signature.value.inputs
            }
            for signature in signatures.signature_def
        }

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _name(self, request: Any, version: int | None = None) -> None:
        request.model_spec.name = self._model
        if version is not None:
            request.model_spec.version.value = version

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable, request: Any, timeout: float | None
    ) -> Any:
        seconds = self._timeout if timeout is None else timeout
        try:
            return method(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise ServingError(error.code().name, error.details() or "") from error


def _array(tensor: TensorProto) -> np.ndarray:
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype == _DT_STRING:
        strings = np.array([value.decode() for value in tensor.string_val], object)
        return strings.reshape(shape)
    if tensor.dtype not in (_DT_FLOAT, _DT_INT32):
        raise ServingError("UNIMPLEMENTED", f"an output has DataType {tensor.dtype}")
    dtype = np.float32 if tensor.dtype == _DT_FLOAT else np.int32
    if tensor.tensor_content:  # a TF Serving may be set to send tensors this way
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = tensor.float_val if tensor.dtype == _DT_FLOAT else tensor.int_val
    return np.array(values, dtype).reshape(shape)
