"""Classify, Regress and MultiInference: signatures that take serialised `tf.Example`s.

A signature can be classified with if it has one input, `inputs`, and an output `classes` or
`scores` or both, and regressed with if it has one input, `inputs`, and one output, `outputs`.
Codes and messages are TF Serving's (`classifier.cc`, `regressor.cc`, `multi_inference.cc`).
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from serving.server.servable import DEFAULT_SIGNATURE, Servable
from serving.server.status import StatusError, invalid_argument
from serving.server.tensors import shape_text

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
_INPUTS, _CLASSES, _SCORES, _OUTPUTS = "inputs", "classes", "scores", "outputs"

_Outputs = dict[str, np.ndarray]
_Check = Callable[[meta_graph_pb2.SignatureDef], None]


def run_classify(
    servable: Servable, request: classification_pb2.ClassificationRequest
) -> classification_pb2.ClassificationResponse:
    """Answers PredictionService.Classify.

    Raises:
      StatusError: There is no such signature, it is not one to classify with, the input is empty,
        or the graph failed or gave outputs of another shape or type.
    """
    outputs, examples = _run_examples(servable, request, _check_classification, "Classify")
    return classification_pb2.ClassificationResponse(
        model_spec=_answered_spec(request.model_spec, servable),
        result=_classification_result(outputs, examples),
    )


def run_regress(
    servable: Servable, request: regression_pb2.RegressionRequest
) -> regression_pb2.RegressionResponse:
    """Answers PredictionService.Regress.

    Raises:
      StatusError: As `run_classify`.
    """
    outputs, examples = _run_examples(servable, request, _check_regression, "Regress")
    return regression_pb2.RegressionResponse(
        model_spec=_answered_spec(request.model_spec, servable),
        result=_regression_result(outputs, examples),
    )


def run_multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest
) -> inference_pb2.MultiInferenceResponse:
    """Answers PredictionService.MultiInference: several signatures on the same examples.

    Raises:
      StatusError: As `run_classify`; or tasks name several models, or one signature twice.
    """
    checks: dict[str, _Check] = {
        CLASSIFY_METHOD: _check_classification,
        REGRESS_METHOD: _check_regression,
    }
    seen: set[str] = set()
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in seen:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        definition = _definition(servable, name, "Requested signature not found in model graph: ")
        if task.method_name not in checks:
            raise StatusError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
        checks[task.method_name](definition)
    examples = _serialized_examples(request.input)
    response = inference_pb2.MultiInferenceResponse()
    for task in request.tasks:
        outputs = servable.signature(task.model_spec.signature_name).run(
            {_INPUTS: examples}, api="MultiInference"
        )
        result = response.results.add(model_spec=_answered_spec(task.model_spec, servable))
        if task.method_name == CLASSIFY_METHOD:
            result.classification_result.CopyFrom(_classification_result(outputs, len(examples)))
        else:
            result.regression_result.CopyFrom(_regression_result(outputs, len(examples)))
    return response


def _run_examples(
    servable: Servable,
    request: classification_pb2.ClassificationRequest | regression_pb2.RegressionRequest,
    check: _Check,
    api: str,
) -> tuple[_Outputs, int]:
    """Returns the outputs of the signature that a request names, and the number of examples."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    check(_definition(servable, name, "No signature was found with the name: "))
    examples = _serialized_examples(request.input)
    return servable.signature(name).run({_INPUTS: examples}, api=api), len(examples)


def _definition(servable: Servable, name: str, missing: str) -> meta_graph_pb2.SignatureDef:
    try:
        return servable.signature_defs[name]
    except KeyError:
        raise invalid_argument(f"{missing}{name}") from None


def _check_classification(definition: meta_graph_pb2.SignatureDef) -> None:
    if len(definition.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(definition.outputs) not in (1, 2):
        raise invalid_argument(
            f"Expected one or two output Tensors, found {len(definition.outputs)}"
        )
    if _INPUTS not in definition.inputs:
        raise invalid_argument(f"No classification inputs found in SignatureDef: {definition}")
    if _CLASSES not in definition.outputs and _SCORES not in definition.outputs:
        raise invalid_argument(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}". Signature was: {definition}'
        )


def _check_regression(definition: meta_graph_pb2.SignatureDef) -> None:
    if len(definition.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(definition.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if _INPUTS not in definition.inputs:
        raise invalid_argument(f"No regression inputs found in SignatureDef: {definition}")
    if _OUTPUTS not in definition.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {definition}")


def _serialized_examples(request_input: input_pb2.Input) -> np.ndarray:
    """Returns the examples as strings, object `[examples]`."""
    context = b""
    examples = request_input.example_list.examples
    if request_input.WhichOneof("kind") == "example_list_with_context":
        # Two serialised messages, one after the other, are the serialised merger of the two.
        context = request_input.example_list_with_context.context.SerializeToString()
        examples = request_input.example_list_with_context.examples
    if not examples:
        raise invalid_argument("Input is empty.")
    serialized = np.empty(len(examples), object)
    serialized[:] = [context + example.SerializeToString() for example in examples]
    return serialized


def _classification_result(
    outputs: _Outputs, examples: int
) -> classification_pb2.ClassificationResult:
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    for name, array, dtype in ((_CLASSES, classes, tf.string), (_SCORES, scores, tf.float32)):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(
                f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(array.shape)}"
            )
        _check_dtype(array, dtype, f"Expected {name} Tensor of {{}}. Got: ")
        if len(array) != examples:
            raise invalid_argument(
                f"Expected {name} output batch size of {examples}. Got: {len(array)}"
            )
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). "
            f"Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    for row in range(examples):
        found = result.classifications.add().classes
        # [classes]
        labels = None if classes is None else classes[row].tolist()
        values = None if scores is None else scores[row].tolist()
        for column in range(len(labels if labels is not None else values or ())):
            entry = found.add()
            if labels is not None:
                # Labels are text in the message, where TF Serving sends whatever bytes there are.
                entry.label = labels[column].decode("utf-8", "replace")
            if values is not None:
                entry.score = values[column]
    return result


def _regression_result(outputs: _Outputs, examples: int) -> regression_pb2.RegressionResult:
    array = outputs[_OUTPUTS]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{shape_text(array.shape)}"
        )
    if len(array) != examples:
        raise invalid_argument(
            f"Input batch size did not match output batch size: {examples} vs. {len(array)}"
        )
    _check_dtype(array, tf.float32, "Expected output Tensor of {}.  Got: ")
    result = regression_pb2.RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _check_dtype(array: np.ndarray, dtype: tf.DType, text: str) -> None:
    got = tf.dtypes.as_dtype(array.dtype)
    if got != dtype:
        wanted, found = (types_pb2.DataType.Name(d.as_datatype_enum) for d in (dtype, got))
        raise invalid_argument(text.format(wanted) + found)


def _answered_spec(spec: model_pb2.ModelSpec, servable: Servable) -> model_pb2.ModelSpec:
    answered = model_pb2.ModelSpec(
        name=spec.name, signature_name=spec.signature_name or DEFAULT_SIGNATURE
    )
    answered.version.value = servable.version
    return answered
