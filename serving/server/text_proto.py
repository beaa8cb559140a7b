"""Reading the configuration files of TF Serving: protocol buffers in text form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

from towers.errors import InputError

_Message = TypeVar("_Message", bound=Message)
_Field = descriptor_pb2.FieldDescriptorProto

# tensorflow-serving-api leaves out three of the configurations, so their fields are declared here,
# as they stand in `tensorflow_serving/config/{ssl,monitoring}_config.proto` and
# `tensorflow_serving/servables/tensorflow/session_bundle_config.proto`.
_REPEATED = ("allowed_batch_sizes",)
_DECLARED: dict[str, list[tuple[str, int, int | str]]] = {
    "SSLConfig": [
        ("server_key", 1, _Field.TYPE_STRING),
        ("server_cert", 2, _Field.TYPE_STRING),
        ("custom_ca", 3, _Field.TYPE_STRING),
        ("client_verify", 4, _Field.TYPE_BOOL),
    ],
    "PrometheusConfig": [("enable", 1, _Field.TYPE_BOOL), ("path", 2, _Field.TYPE_STRING)],
    "MonitoringConfig": [("prometheus_config", 1, "PrometheusConfig")],
    "Int64Value": [("value", 1, _Field.TYPE_INT64)],
    "StringValue": [("value", 1, _Field.TYPE_STRING)],
    "BatchingParameters": [
        ("max_batch_size", 1, "Int64Value"),
        ("batch_timeout_micros", 2, "Int64Value"),
        ("max_enqueued_batches", 3, "Int64Value"),
        ("num_batch_threads", 4, "Int64Value"),
        ("thread_pool_name", 5, "StringValue"),
        ("allowed_batch_sizes", 6, _Field.TYPE_INT64),
        ("pad_variable_length_inputs", 7, _Field.TYPE_BOOL),
    ],
}
_PACKAGE = "fewshot_towers.server"


def read_text_proto(path: str | Path, message: _Message) -> _Message:
    """Fills a message from a file in text form.

    Args:
      path: The file, UTF-8.
      message: An empty message of the type wanted; it is filled and returned.

    Raises:
      InputError: The file cannot be read, or is not such a message.
    """
    try:
        text_format.Parse(Path(path).read_text("utf-8"), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        name = message.DESCRIPTOR.name
        raise InputError(f"{path}: cannot be read as a {name} in text form: {error}") from error
    return message


def _make_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="fewshot_towers/server.proto", package=_PACKAGE, syntax="proto3"
    )
    for message, fields in _DECLARED.items():
        declared = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = _Field.LABEL_REPEATED if name in _REPEATED else _Field.LABEL_OPTIONAL
            field = declared.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _DECLARED
    }


_classes = _make_classes()
SSLConfig = _classes["SSLConfig"]
MonitoringConfig = _classes["MonitoringConfig"]
BatchingParameters = _classes["BatchingParameters"]
