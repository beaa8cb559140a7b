"""Which models are served, from where, in which versions: TF Serving's ModelServerConfig."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import grpc
from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.file_system_storage_path_source_pb2 import (
    FileSystemStoragePathSourceConfig,
)
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from serving.server.status import StatusError, invalid_argument
from serving.server.text_proto import read_text_proto

_PLATFORM = "tensorflow"


def read_model_config(path: str | Path) -> ModelServerConfig:
    """Reads a `--model-config-file`.

    Raises:
      InputError: The file cannot be read as a ModelServerConfig.
    """
    return read_text_proto(path, ModelServerConfig())


def single_model_config(name: str, base_path: str | Path) -> ModelServerConfig:
    """Returns the configuration of one model, of which the newest version is served."""
    config = ModelServerConfig()
    config.model_config_list.config.add(
        name=name, base_path=str(Path(base_path).resolve()), model_platform=_PLATFORM
    )
    return config


def local_path(base_path: str) -> Path:
    """Returns a model's folder, which may stand as file:// URI."""
    return Path(base_path.removeprefix("file://"))


def check_model_config(config: ModelServerConfig) -> dict[str, ModelConfig]:
    """Returns the models of a configuration by name.

    Raises:
      StatusError: INVALID_ARGUMENT in TF Serving's words, where a model is named twice or not at
        all, has a relative path, or is not of the platform "tensorflow".
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    models: dict[str, ModelConfig] = {}
    for model in config.model_config_list.config:
        if not model.name:
            raise invalid_argument("Illegal to list a model without a name in config list")
        if model.name in models:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        if not local_path(model.base_path).is_absolute():
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; "
                f"got base_path()={model.base_path}"
            )
        _check_platform(model)
        models[model.name] = model
    return models


def select_versions(
    policy: FileSystemStoragePathSourceConfig.ServableVersionPolicy, on_disk: Mapping[int, Path]
) -> tuple[list[int], int]:
    """Chooses among the versions on disk.

    Args:
      policy: `latest` (the default, one version), `all` or `specific`.
      on_disk: The folder of each version.

    Returns:
      The versions that may be served, the newest first, and how many of them are to be served.
    """
    versions = sorted(on_disk, reverse=True)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return versions, len(versions)
    if choice == "specific":
        wanted = set(policy.specific.versions)
        versions = [version for version in versions if version in wanted]
        return versions, len(versions)
    return versions, max(policy.latest.num_versions, 1)


def check_labels(
    model: ModelConfig,
    available: Set[int],
    current: Mapping[str, int],
    *,
    allow_unavailable: bool,
) -> dict[str, int]:
    """Returns the version of each label that a model's configuration assigns.

    Args:
      model: The configuration.
      available: The versions that answer requests now.
      current: The labels as they are assigned now.
      allow_unavailable: Whether a label that is new may name a version that is not available.

    Raises:
      StatusError: FAILED_PRECONDITION, where a label names a version that is not available.
    """
    labels = dict(model.version_labels)
    for label, version in labels.items():
        moves = current.get(label, version) != version
        if version not in available and (moves or not allow_unavailable):
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"Request to assign label to version {version} of model {model.name}, "
                "which is not currently available for inference",
            )
    return labels


def _check_platform(model: ModelConfig) -> None:
    platform = model.model_platform
    if model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED:
        if platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )
        if model.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid_argument(
                f"ModelServerConfig::model_type choice {model.model_type} not supported."
            )
    elif not platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    elif platform != _PLATFORM:
        raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")
