"""The models of a server: who they are, their labels, and how they change while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import grpc
from tensorflow_serving.apis import model_pb2

from serving.server.model_config import (
    ModelConfig,
    ModelServerConfig,
    check_labels,
    check_model_config,
)
from serving.server.model_versions import ModelVersions, VersionStatus
from serving.server.model_watcher import LoadOptions, ModelWatcher
from serving.server.servable import Servable
from serving.server.signatures import Observer
from serving.server.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)


class Models:
    """The models that a ModelServerConfig lists, each followed by a watcher.

    Safe to use from any thread.
    """

    def __init__(
        self,
        options: LoadOptions,
        observer: Callable[[str], Observer],
        *,
        on_complete: Callable[[], None] | None = None,
        labels_for_unavailable: bool = False,
    ) -> None:
        """Makes an empty set of models.

        Args:
          options: How versions are found and loaded.
          observer: Gives for a model what the runs of its graphs are told to.
          on_complete: Called when every model has a version to serve; again with each new version.
          labels_for_unavailable: Whether a new label may name a version that is not available.
        """
        self._options = options
        self._observer = observer
        self._on_complete = on_complete
        self._labels_for_unavailable = labels_for_unavailable
        self._changing = threading.Lock()
        # Models that were taken out stay here, without versions that serve: their states are told.
        self._models: dict[str, ModelVersions] = {}
        self._watchers: dict[str, ModelWatcher] = {}
        self._labels: dict[str, dict[str, int]] = {}

    @property
    def newest(self) -> dict[str, int | None]:
        """The newest version that each configured model serves; None where there is none."""
        return {name: self._models[name].newest for name in list(self._watchers)}

    def __contains__(self, name: str) -> bool:
        """Whether a model of this name is, or was, configured."""
        return name in self._models

    def export_times(self) -> list[tuple[str, int, float]]:
        """Returns model, version and time of export of each version that serves."""
        return [
            (name, version, exported)
            for name, versions in list(self._models.items())
            for version, exported in versions.export_times()
        ]

    def start(self, config: ModelServerConfig) -> None:
        """Loads the versions of all models, as far as they are there, and begins to watch.

        Raises:
          StatusError: The configuration is not one to serve, or a label names a version that could
            not be loaded.
        """
        models = check_model_config(config)
        with self._changing:
            for name, model in models.items():
                self._add(name, model)
            for watcher in self._watchers.values():
                watcher.start()
            self._labels = {
                name: check_labels(
                    model,
                    self._models[name].live,
                    {},
                    allow_unavailable=self._labels_for_unavailable,
                )
                for name, model in models.items()
            }

    def reload(self, config: ModelServerConfig) -> None:
        """Takes over another configuration; nothing changes where it is refused.

        Models that are new are loaded before this returns, models that are listed no more are
        unloaded when their requests are answered, and the others follow their new folder, policy
        and labels.

        Raises:
          StatusError: INVALID_ARGUMENT, where the configuration is not one to serve;
            FAILED_PRECONDITION, where a label names a version that is not available now; UNKNOWN,
            where a new model did not become available (it is looked for from now on).
        """
        models = check_model_config(config)
        with self._changing:
            labels = {}
            for name, model in models.items():
                known = self._models.get(name)
                labels[name] = check_labels(
                    model,
                    known.live if known else set(),
                    self._labels.get(name, {}),
                    allow_unavailable=self._labels_for_unavailable,
                )
            self._labels = labels
            for name in self._watchers.keys() - models.keys():
                # In the background: a request in flight may take long.
                threading.Thread(target=self._watchers.pop(name).unload, daemon=True).start()
            new = [name for name in models if name not in self._watchers]
            for name, model in models.items():
                if name in new:
                    self._add(name, model)
                else:
                    self._watchers[name].configure(model)
            for name in new:
                self._watchers[name].start()
            missing = [
                _why_missing(self._models[name])
                for name in new
                if self._models[name].newest is None
            ]
        self._tell_if_complete()  # what was missing may be listed no more
        _log.info("models: %s", ", ".join(models) or "none")
        if missing:
            raise StatusError(
                grpc.StatusCode.UNKNOWN,
                f"{len(missing)} model(s) did not become available: {{{', '.join(missing)}}}",
            )

    def stop(self) -> None:
        """Stops watching; what is loaded stays."""
        with self._changing:
            for watcher in self._watchers.values():
                watcher.stop()

    def acquire(self, spec: model_pb2.ModelSpec) -> AbstractContextManager[Servable]:
        """Lends the version that a ModelSpec names, for the length of a request.

        Raises:
          StatusError: INVALID_ARGUMENT for a spec without a name, or with a label that is not
            assigned; NOT_FOUND where the model or the version is not available.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        version = None
        if choice == "version":
            version = spec.version.value
        elif choice == "version_label":
            version = self._labels.get(spec.name, {}).get(spec.version_label)
            if version is None:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        model = self._models.get(spec.name) or ModelVersions(spec.name)
        return model.acquire(version)

    def statuses(self, name: str) -> list[VersionStatus]:
        """Returns the state of each version seen of a model, the newest version first."""
        model = self._models.get(name)
        return model.statuses() if model else []

    def _add(self, name: str, model: ModelConfig) -> None:
        """Adds a model, whose watcher is to be started when all are there."""
        versions = self._models[name] = ModelVersions(name, self._tell_if_complete)
        self._watchers[name] = ModelWatcher(model, versions, self._options, self._observer(name))

    def _tell_if_complete(self) -> None:
        if self._on_complete and None not in self.newest.values():
            self._on_complete()


def _why_missing(versions: ModelVersions) -> str:
    for status in versions.statuses():
        error = StatusError(status.code, status.message)
        return f"{{name: {versions.name} version: {status.version} due to error: {error}}}"
    return f"{{name: {versions.name} due to error: no version was found}}"
