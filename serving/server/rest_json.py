"""The JSON of the REST API: request bodies to arrays, arrays to response bodies.

The format, down to the error messages, is TF Serving's (`g3doc/api_rest.md`, `json_tensor.cc`):
rows under "instances" give "predictions", columns under "inputs" give "outputs"; a tensor is a
nested list; where a signature has one input or output, its name may be left out or is left out;
bytes are `{"b64": "..."}`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from serving.server.signatures import InputSpec
from serving.server.status import StatusError, invalid_argument
from serving.server.tensors import dtype_name, shape_text

_MAX_DEBUG_CHARACTERS = 256
_MAX_RANK = 64  # NumPy's own limit
_FLOATS = (tf.float32, tf.float64)
_INTEGERS = (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32, tf.uint64)
_WRITABLE = (*_FLOATS, *_INTEGERS, tf.bool, tf.string)


def parse_document(body: bytes) -> dict[str, Any]:
    """Parses a request body.

    NaN, Infinity and -Infinity are numbers here. What follows the document is ignored.

    Raises:
      StatusError: INVALID_ARGUMENT, where it is not one JSON object in UTF-8.
    """
    try:
        text = body.decode("utf-8-sig").lstrip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise invalid_argument(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from error
    if not text:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        document, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except (RecursionError, ValueError) as error:
        # Lists too deep, or an integer of thousands of digits.
        raise invalid_argument(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise format_error(document, "Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """Returns the signature that a request names, or the empty string.

    Raises:
      StatusError: INVALID_ARGUMENT, where it is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise format_error(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def is_row_format(document: Mapping[str, Any]) -> bool:
    """Tells row format ("instances") from column format ("inputs").

    Raises:
      StatusError: INVALID_ARGUMENT, where the request has neither or both.
    """
    if "instances" in document and "inputs" in document:
        raise format_error(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        )
    if "instances" not in document and "inputs" not in document:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    return "instances" in document


def read_rows(document: Mapping[str, Any], specs: Mapping[str, InputSpec]) -> dict[str, np.ndarray]:
    """Reads inputs in row format: a list with one value, or one object of values, for each row.

    Raises:
      StatusError: INVALID_ARGUMENT, where rows are missing, ragged, or of the wrong type.
    """
    instances = document["instances"]
    if not isinstance(instances, list):
        raise format_error(document, "Expecting 'instances' to be an list/array")
    if not instances:
        raise format_error(document, "No values in 'instances' array")
    if not _is_named(instances[0]) and len(specs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not _is_named(instances[0]):
        (name,) = specs
        for number, row in enumerate(instances):
            if _is_named(row):
                raise invalid_argument(
                    f"Expecting value/list but got object at item {number} of input list"
                )
        return {name: _stack(instances, specs[name].dtype, "")}
    for number, row in enumerate(instances):
        if not _is_named(row):
            raise invalid_argument(f"Expecting object but got list at item {number} of input list")
        for name in row.keys() - specs.keys():
            raise invalid_argument(
                f"Failed to process element: {number} key: {name} of 'instances' list. Error: "
                f"INVALID_ARGUMENT: JSON object: does not have named input: {name}"
            )
        if row.keys() != specs.keys():
            raise invalid_argument(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{_debug_text(row)} keys must be equal to: {','.join(specs)}"
            )
    return {
        name: _stack([row[name] for row in instances], spec.dtype, f" key: {name}")
        for name, spec in specs.items()
    }


def read_columns(
    document: Mapping[str, Any], specs: Mapping[str, InputSpec]
) -> dict[str, np.ndarray]:
    """Reads inputs in column format: one whole tensor, or an object of whole tensors.

    Names that are no inputs are passed over, as in TF Serving, which does not do so in row format.

    Raises:
      StatusError: INVALID_ARGUMENT, where an input is missing, ragged, or of the wrong type.
    """
    inputs = document["inputs"]
    if _is_named(inputs):
        for name in specs:
            if name not in inputs:
                raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        return {name: _tensor(inputs[name], spec.dtype) for name, spec in specs.items()}
    if len(specs) > 1:
        raise invalid_argument(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((name, spec),) = specs.items()
    return {name: _tensor(inputs, spec.dtype)}


def write_rows(outputs: Mapping[str, np.ndarray]) -> bytes:
    """Writes outputs in row format.

    Raises:
      StatusError: INVALID_ARGUMENT, where outputs have no common batch dimension, or a type that
        JSON cannot hold.
    """
    rows = -1
    for name, array in outputs.items():
        if not array.ndim:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if rows not in (-1, len(array)):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}"
            )
        rows = len(array)
    columns = {name: _json_value(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        (predictions,) = columns.values()
    else:
        predictions = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    return encode_document({"predictions": predictions})


def write_columns(outputs: Mapping[str, np.ndarray]) -> bytes:
    """Writes outputs in column format.

    Raises:
      StatusError: INVALID_ARGUMENT, where an output has a type that JSON cannot hold.
    """
    columns = {name: _json_value(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        return encode_document({"outputs": next(iter(columns.values()))})
    return encode_document({"outputs": columns})


def write_error(message: str) -> bytes:
    """Writes the body of an error response."""
    return encode_document({"error": message})


def shortest_decimal(value: float) -> float:
    """Returns the number with the fewest decimals that is `value` as float32."""
    return float(str(np.float32(value)))


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Mapping[str, Any]) -> bool:
    """Whether an object stands for bytes."""
    return value.keys() == {"b64"} and isinstance(value["b64"], str)


def _stack(rows: list[Any], dtype: tf.DType, key: str) -> np.ndarray:
    """Makes one tensor of the rows of one input, which must agree in shape."""
    elements: list[Any] = []
    shape = _shape(rows[0])
    size = 0
    for number, row in enumerate(rows):
        start = len(elements)
        try:
            found = _shape(row)
            _collect(row, 0, found, dtype, elements)
            got = len(elements) - start
            size = size if number else got
            if got != size:
                raise invalid_argument(f"Expecting tensor size: {size} but got: {got}")
            if found != shape:
                raise invalid_argument(
                    f"Expecting shape {shape_text(shape)} but got: {shape_text(found)}"
                )
        except StatusError as error:
            raise invalid_argument(
                f"Failed to process element: {number}{key} of 'instances' list. Error: {error}"
            ) from error
    return _to_array(elements, [len(rows), *shape], dtype)


def _tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    elements: list[Any] = []
    shape = _shape(value)
    _collect(value, 0, shape, dtype, elements)
    return _to_array(elements, shape, dtype)


def _shape(value: Any) -> list[int]:
    """The shape a nested list has if it is dense: what its first elements say."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > _MAX_RANK:
            raise invalid_argument(f"Lists are nested deeper than {_MAX_RANK} levels")
        if not value:
            break
        value = value[0]
    return shape


def _collect(
    value: Any, level: int, shape: list[int], dtype: tf.DType, elements: list[Any]
) -> None:
    """Appends the elements of a nested list in order, checking that it has the shape."""
    if not isinstance(value, list):
        if level != len(shape):
            raise format_error(
                value,
                f"found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}",
            )
        elements.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid_argument(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for inner in value:
        _collect(inner, level + 1, shape, dtype, elements)


def _element(value: Any, dtype: tf.DType) -> Any:
    if dtype == tf.string:
        if isinstance(value, str):
            return utf8(value)
        if isinstance(value, dict):
            return decode_base64(value)
    elif dtype == tf.bool:
        if isinstance(value, bool):
            return value
    elif dtype in _FLOATS:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return real(value)
    elif dtype in _INTEGERS:
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and dtype.min <= value <= dtype.max
        ):
            return value
    else:
        raise StatusError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {_debug_text(value)} to type: "
            f"{dtype_name(dtype.as_datatype_enum)}",
        )
    raise format_error(
        value,
        f"Type: {type_name(value)} is not of expected type: {dtype_name(dtype.as_datatype_enum)}",
    )


def utf8(value: str) -> bytes:
    """Returns a string as UTF-8.

    Raises:
      StatusError: INVALID_ARGUMENT, where half of a surrogate pair is in it.
    """
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise invalid_argument(
            "JSON Parse error: The surrogate pair in string is invalid."
        ) from error


def real(value: float) -> float:
    """Returns a number as a float.

    Raises:
      StatusError: INVALID_ARGUMENT, where it is an integer beyond all floats.
    """
    try:
        return float(value)
    except OverflowError:
        raise invalid_argument("JSON Parse error: Number too big to be stored in double.") from None


def decode_base64(value: dict[str, Any]) -> bytes:
    """Returns the bytes that an object stands for.

    Raises:
      StatusError: INVALID_ARGUMENT, where it is not base64.
    """
    if not is_base64(value):
        raise format_error(value, "not formatted correctly for base64 data")
    text = "".join(value["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


def _to_array(elements: list[Any], shape: list[int], dtype: tf.DType) -> np.ndarray:
    array = np.empty(math.prod(shape), dtype.as_numpy_dtype)
    with np.errstate(over="ignore"):  # 1e300 as float32 is infinity, as in C++
        array[:] = elements
    return array.reshape(shape)


def _json_value(name: str, array: np.ndarray) -> Any:
    dtype = tf.dtypes.as_dtype(array.dtype)
    if dtype not in _WRITABLE:
        raise invalid_argument(
            f"Failed to write JSON value for tensor type: {dtype_name(dtype.as_datatype_enum)}"
        )
    if dtype == tf.string:
        return _map_strings(array.tolist(), as_bytes=name.endswith("_bytes"))
    if dtype == tf.float32:
        # The shortest decimals that give back the same float32: 0.2, not 0.20000000298023224.
        return array.astype(str).astype(np.float64).tolist()
    return array.tolist()


def _map_strings(value: Any, *, as_bytes: bool) -> Any:
    if isinstance(value, list):
        return [_map_strings(inner, as_bytes=as_bytes) for inner in value]
    if as_bytes:
        return {"b64": base64.b64encode(value).decode("ascii")}
    return value.decode("utf-8", "surrogateescape")


def encode_document(document: dict[str, Any]) -> bytes:
    """Writes a response body."""
    # Like TF Serving, bytes of an output that are no UTF-8 are passed on as they are.
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")


def format_error(value: Any, problem: str) -> StatusError:
    """The client's JSON is not of the form wanted."""
    return invalid_argument(f"JSON Value: {_debug_text(value)} {problem}")


def _debug_text(value: Any) -> str:
    return json.dumps(value)[:_MAX_DEBUG_CHARACTERS]


def type_name(value: Any) -> str:
    """Returns the name that a JSON type has in error messages."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        return "Object"
    if isinstance(value, list):
        return "Array"
    return "String" if isinstance(value, str) else "Number"
