"""Answering one PredictRequest with one loaded version."""

from __future__ import annotations

from tensorflow_serving.apis import predict_pb2

from serving.server.servable import DEFAULT_SIGNATURE, Servable
from serving.server.tensors import array_from_proto, proto_from_array


def run_predict(
    servable: Servable, request: predict_pb2.PredictRequest
) -> predict_pb2.PredictResponse:
    """Runs the signature that the request names on the tensors it carries.

    Raises:
      StatusError: The request does not fit the signature, or the graph failed.
    """
    spec = request.model_spec
    signature = servable.signature(spec.signature_name)
    inputs = {name: array_from_proto(proto, name) for name, proto in request.inputs.items()}
    outputs = signature.run(inputs, request.output_filter)
    response = predict_pb2.PredictResponse()
    response.model_spec.name = spec.name
    response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
    response.model_spec.version.value = servable.version
    for name, array in outputs.items():
        response.outputs[name].CopyFrom(proto_from_array(array))
    return response
