"""TensorProto to NumPy and back, with the same field choices as TF Serving.

Strings are arrays of Python `bytes` (dtype object), as TensorFlow itself hands them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2

from serving.server.status import invalid_argument

# A TensorProto may hold fewer values than its tensor has (`tf.make_tensor_proto(0.0, shape=[8])`).
# Without a bound, a request of a few bytes could ask for any amount of memory: for the tensor, and
# for what the graph makes of every row.
_MAX_REPEATED_BYTES = 1 << 20
_STRING_BYTES = 24  # of a string in a TensorFlow tensor, its characters aside

# dtype -> (the field its values travel in, their dtype inside that field)
_VALUE_FIELDS = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_DOUBLE: ("double_val", np.float64),
    types_pb2.DT_INT8: ("int_val", np.int32),
    types_pb2.DT_INT16: ("int_val", np.int32),
    types_pb2.DT_INT32: ("int_val", np.int32),
    types_pb2.DT_UINT8: ("int_val", np.int32),
    types_pb2.DT_UINT16: ("int_val", np.int32),
    types_pb2.DT_INT64: ("int64_val", np.int64),
    types_pb2.DT_UINT32: ("uint32_val", np.uint32),
    types_pb2.DT_UINT64: ("uint64_val", np.uint64),
    types_pb2.DT_BOOL: ("bool_val", np.bool_),
    types_pb2.DT_HALF: ("half_val", np.int32),
    types_pb2.DT_BFLOAT16: ("half_val", np.int32),
    types_pb2.DT_COMPLEX64: ("scomplex_val", np.float32),
    types_pb2.DT_COMPLEX128: ("dcomplex_val", np.float64),
}
_BITS_IN_HALF_VAL = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
_PAIRS = (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128)


def dtype_name(dtype: int) -> str:
    """Returns a DataType's name as TF Serving prints it: `float`, `int64`, `string`."""
    if dtype not in types_pb2.DataType.values():
        return f"unknown dtype enum ({dtype})"
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def shape_text(shape: Sequence[int | None]) -> str:
    """Returns a shape as TF Serving prints it: `[-1,4]`, with -1 for an unknown dimension."""
    return f"[{','.join(str(-1 if size is None else size) for size in shape)}]"


def array_from_proto(proto: tensor_pb2.TensorProto, name: str) -> np.ndarray:
    """Decodes a tensor as a client sent it, which may be anything.

    As in TensorFlow, the last of too few values in typed fields stands for the rest too, none at
    all for zeros, and what is too many is left out.

    Args:
      proto: The tensor, in typed fields or as `tensor_content`.
      name: The input's name, for the error.

    Raises:
      StatusError: INVALID_ARGUMENT, where dtype, shape and values do not fit together.
    """
    if proto.tensor_shape.unknown_rank or any(dim.size < 0 for dim in proto.tensor_shape.dim):
        raise _parsing_error(name, "its shape is not fully known")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    count = math.prod(shape)
    if proto.dtype == types_pb2.DT_STRING:
        if proto.tensor_content:
            return _strings_from_content(proto, name, shape)
        values: np.ndarray = np.empty(len(proto.string_val), object)
        values[:] = proto.string_val
    elif proto.dtype not in _VALUE_FIELDS:
        raise _parsing_error(name, f"tensors of {dtype_name(proto.dtype)} cannot be sent")
    elif proto.tensor_content:
        dtype = tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype
        if len(proto.tensor_content) != count * np.dtype(dtype).itemsize:
            raise _parsing_error(
                name,
                f"shape {shape_text(shape)} of {dtype_name(proto.dtype)} takes "
                f"{count * np.dtype(dtype).itemsize} bytes of tensor_content, "
                f"but {len(proto.tensor_content)} were sent",
            )
        values = np.frombuffer(proto.tensor_content, dtype)
    else:
        values = _values_from_field(proto)
    values = _filled(values[:count], count, name, shape)
    try:
        return values.reshape(shape)
    except ValueError as error:  # no elements, but sizes beyond NumPy's, or too many dimensions
        raise _parsing_error(name, f"shape of {len(shape)} dimensions: {error}") from error


def proto_from_array(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Encodes an output in typed fields, as TF Serving's `Tensor::AsProtoField` does."""
    dtype = tf.dtypes.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(
        dtype=dtype.as_datatype_enum,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(
            dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
        ),
    )
    values: np.ndarray = array.ravel()
    if dtype == tf.string:
        proto.string_val.extend(values)
        return proto
    if proto.dtype not in _VALUE_FIELDS:
        return tf.make_tensor_proto(array)
    if proto.dtype in _BITS_IN_HALF_VAL:
        values = values.view(np.uint16)
    elif proto.dtype in _PAIRS:
        values = values.view(values.real.dtype)
    field, _ = _VALUE_FIELDS[proto.dtype]
    getattr(proto, field).extend(values.tolist())
    return proto


def _filled(values: np.ndarray, count: int, name: str, shape: list[int]) -> np.ndarray:
    """Repeats the last of too few values; where there is none, it is zero or the empty string."""
    missing = count - len(values)
    if not missing:
        return values
    last: Any = values[-1] if len(values) else b"" if values.dtype == object else 0
    size = _STRING_BYTES + len(last) if values.dtype == object else values.itemsize
    if missing * size > _MAX_REPEATED_BYTES:
        raise _parsing_error(
            name,
            f"filling shape {shape_text(shape)} up from {len(values)} values makes "
            f"{missing * size} bytes, more than the {_MAX_REPEATED_BYTES} allowed; send all values",
        )
    return np.concatenate([values, np.full(missing, last, values.dtype)])


def _values_from_field(proto: tensor_pb2.TensorProto) -> np.ndarray:
    field, field_dtype = _VALUE_FIELDS[proto.dtype]
    values: np.ndarray = np.array(getattr(proto, field), field_dtype)
    dtype = tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype
    if proto.dtype in _BITS_IN_HALF_VAL:
        return values.astype(np.uint16).view(dtype)
    if proto.dtype in _PAIRS:
        return values[: len(values) // 2 * 2].view(dtype)
    return values.astype(dtype, copy=False)


def _strings_from_content(proto: tensor_pb2.TensorProto, name: str, shape: list[int]) -> np.ndarray:
    # C++ clients may send strings as lengths (varints) and bytes in tensor_content; TensorFlow
    # decodes that, and allocates by the shape before it looks at the content.
    if len(proto.tensor_content) < math.prod(shape):
        raise _parsing_error(name, "tensor_content is too short for the shape")
    try:
        strings = tf.io.parse_tensor(proto.SerializeToString(), tf.string)
    except tf.errors.InvalidArgumentError as error:
        raise _parsing_error(name, "tensor_content holds no list of strings") from error
    return np.array(strings.numpy(), object)


def _parsing_error(name: str, detail: str) -> Exception:
    return invalid_argument(f"tensor parsing error: {name}: {detail}")
