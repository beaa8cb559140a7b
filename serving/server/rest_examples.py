"""The JSON of `:classify` and `:regress`: objects to `tf.Example`s, results to lists.

The format, down to the error messages, is TF Serving's (`g3doc/api_rest.md`, `json_tensor.cc`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.server.rest_json import (
    decode_base64,
    encode_document,
    format_error,
    is_base64,
    real,
    shortest_decimal,
    type_name,
    utf8,
)
from serving.server.status import invalid_argument

_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
_INT64 = range(-(2**63), 2**63)


def read_examples(document: Mapping[str, Any]) -> input_pb2.Input:
    """Reads "examples", a list of objects of features, and "context", features they share.

    Raises:
      StatusError: INVALID_ARGUMENT, where there are none, or features are not what examples hold.
    """
    parsed = input_pb2.Input()
    if "context" in document:
        examples = parsed.example_list_with_context.examples
        _fill(parsed.example_list_with_context.context, document["context"])
    else:
        examples = parsed.example_list.examples
    if "examples" not in document:
        raise format_error(
            document, "When method is classify, key 'examples' is expected and was not found"
        )
    values = document["examples"]
    if not isinstance(values, list):
        raise format_error(document, "Expecting 'examples' value to be an list/array")
    if not values:
        raise format_error(document, "'examples' value is an empty array")
    for value in values:
        _fill(examples.add(), value)
    return parsed


def write_classifications(result: classification_pb2.ClassificationResult) -> bytes:
    """Writes a list of [label, score] for each example."""
    return encode_document(
        {
            "results": [
                [[entry.label, shortest_decimal(entry.score)] for entry in row.classes]
                for row in result.classifications
            ]
        }
    )


def write_regressions(result: regression_pb2.RegressionResult) -> bytes:
    """Writes a number for each example."""
    return encode_document({"results": [shortest_decimal(row.value) for row in result.regressions]})


def _fill(example: example_pb2.Example, value: Any) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {type_name(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _append(feature, name, element)


def _append(feature: feature_pb2.Feature, name: str, value: Any) -> None:
    kind, converted = _convert(name, value)
    current = feature.WhichOneof("kind")
    if current not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {_KINDS[current]}"
        )
    getattr(feature, kind).value.append(converted)


def _convert(name: str, value: Any) -> tuple[str, bytes | float | int]:
    """Returns the kind of list that a value belongs to, and the value as it stands there."""
    if isinstance(value, bool):
        return "int64_list", int(value)
    if isinstance(value, str):
        return "bytes_list", utf8(value)
    if isinstance(value, dict) and is_base64(value):
        return "bytes_list", decode_base64(value)
    if isinstance(value, int) and value in _INT64:
        return "int64_list", value
    if isinstance(value, int) and 0 <= value < 2**64:
        raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    if isinstance(value, (int, float)):
        return "float_list", real(value)
    raise invalid_argument(
        f"Feature: {name} has element with unexpected JSON type: {type_name(value)}"
    )
