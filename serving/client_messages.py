"""The protobuf messages that the client exchanges with a server, without TensorFlow.

tensorflow-serving-api's own message classes import TensorFlow, which takes seconds and a third of
a gigabyte: too much for asking one question. So the fields in use are declared here, with their
numbers and types from `tensorflow_serving/apis/*.proto` and `tensorflow/core/framework/*.proto`;
on the wire there is no difference. They live in a descriptor pool of their own, and do not meet
TensorFlow's in a process that has both.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "fewshot_towers.client"

# message -> (field, number, type, repeated); a type that is a name is another message. A map is
# a repeated entry of key and value, and an enum a number, as they are on the wire.
_MESSAGES: dict[str, list[tuple[str, int, int | str, bool]]] = {
    "Int64Value": [("value", 1, _Field.TYPE_INT64, False)],
    "ModelSpec": [
        ("name", 1, _Field.TYPE_STRING, False),
        ("version", 2, "Int64Value", False),
        ("signature_name", 3, _Field.TYPE_STRING, False),
    ],
    "Dim": [("size", 1, _Field.TYPE_INT64, False)],
    "TensorShapeProto": [("dim", 2, "Dim", True)],
    "TensorProto": [
        ("dtype", 1, _Field.TYPE_INT32, False),
        ("tensor_shape", 2, "TensorShapeProto", False),
        ("tensor_content", 4, _Field.TYPE_BYTES, False),
        ("float_val", 5, _Field.TYPE_FLOAT, True),
        ("int_val", 7, _Field.TYPE_INT32, True),
        ("string_val", 8, _Field.TYPE_BYTES, True),
    ],
    "NamedTensor": [
        ("key", 1, _Field.TYPE_STRING, False),
        ("value", 2, "TensorProto", False),
    ],
    "PredictRequest": [
        ("model_spec", 1, "ModelSpec", False),
        ("inputs", 2, "NamedTensor", True),
    ],
    "PredictResponse": [
        ("outputs", 1, "NamedTensor", True),
        ("model_spec", 2, "ModelSpec", False),
    ],
    "StatusProto": [
        ("error_code", 1, _Field.TYPE_INT32, False),
        ("error_message", 2, _Field.TYPE_STRING, False),
    ],
    "ModelVersionStatus": [
        ("version", 1, _Field.TYPE_INT64, False),
        ("state", 2, _Field.TYPE_INT32, False),
        ("status", 3, "StatusProto", False),
    ],
    "GetModelStatusRequest": [("model_spec", 1, "ModelSpec", False)],
    "GetModelStatusResponse": [("model_version_status", 1, "ModelVersionStatus", True)],
    "GetModelMetadataRequest": [
        ("model_spec", 1, "ModelSpec", False),
        ("metadata_field", 2, _Field.TYPE_STRING, True),
    ],
    "Any": [
        ("type_url", 1, _Field.TYPE_STRING, False),
        ("value", 2, _Field.TYPE_BYTES, False),
    ],
    "NamedAny": [("key", 1, _Field.TYPE_STRING, False), ("value", 2, "Any", False)],
    "GetModelMetadataResponse": [
        ("model_spec", 1, "ModelSpec", False),
        ("metadata", 2, "NamedAny", True),
    ],
    "TensorInfo": [("dtype", 2, _Field.TYPE_INT32, False)],
    "NamedTensorInfo": [
        ("key", 1, _Field.TYPE_STRING, False),
        ("value", 2, "TensorInfo", False),
    ],
    "SignatureDef": [("inputs", 1, "NamedTensorInfo", True)],
    "NamedSignatureDef": [
        ("key", 1, _Field.TYPE_STRING, False),
        ("value", 2, "SignatureDef", False),
    ],
    "SignatureDefMap": [("signature_def", 1, "NamedSignatureDef", True)],
}


def _make_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="fewshot_towers/client.proto", package=_PACKAGE, syntax="proto3"
    )
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            field = declared.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type = _Field.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = _Field.Type.ValueType(kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{message}")
        )
        for message in _MESSAGES
    }


_classes = _make_classes()
PredictRequest = _classes["PredictRequest"]
PredictResponse = _classes["PredictResponse"]
GetModelStatusRequest = _classes["GetModelStatusRequest"]
GetModelStatusResponse = _classes["GetModelStatusResponse"]
GetModelMetadataRequest = _classes["GetModelMetadataRequest"]
GetModelMetadataResponse = _classes["GetModelMetadataResponse"]
SignatureDefMap = _classes["SignatureDefMap"]
TensorProto = _classes["TensorProto"]
