"""The client's calls over gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from serving.client_address import grpc_address
from serving.client_error import ServingError
from serving.client_messages import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    PredictRequest,
    PredictResponse,
    TensorProto,
)

# tensorflow.DataType and ModelVersionStatus.State
_DT_FLOAT = 1
_DT_INT32 = 3
_DT_STRING = 7
_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_UNLIMITED = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


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

    def predict(
        self,
        signature: str,
        inputs: Mapping[str, Sequence[str] | Sequence[Sequence[str]] | np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Runs a signature on inputs of strings, vectors or rows of one width, or of floats."""
        request = PredictRequest()
        request.model_spec.name = self._model
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
        response = self._call(self._predict, request)
        return {output.key: _array(output.value) for output in response.outputs}

    def status(self) -> list[tuple[int, str, str]]:
        """Returns version, state and error of each version the server has seen."""
        request = GetModelStatusRequest()
        request.model_spec.name = self._model
        response = self._call(self._get_model_status, request)
        return [
            (entry.version, _STATES.get(entry.state, "UNKNOWN"), entry.status.error_message)
            for entry in response.model_version_status
        ]

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout, metadata=self._metadata)
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
