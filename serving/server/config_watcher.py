"""Following a `--model-config-file`: a change of the file is a change of the models."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import grpc

from serving.server.model_config import ModelServerConfig, read_model_config
from serving.server.models import Models
from serving.server.status import StatusError
from towers.errors import InputError

_log = logging.getLogger(__name__)


class ConfigWatcher:
    """Reads the file every few seconds, and hands on what has changed.

    A file that cannot be read, or is refused, changes nothing; the log says why. It is tried again
    as it is, for what it was refused for may change: a label's version may become available.
    """

    def __init__(self, path: Path, models: Models, poll_seconds: float) -> None:
        """Makes a watcher of the file that `models` were started with."""
        self._path = path
        self._models = models
        self._poll_seconds = poll_seconds
        self._taken: ModelServerConfig = read_model_config(path)
        self._told = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="config-watcher", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stops watching; a reload under way is finished first."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                self._follow()
            except InputError as error:
                if str(error) != self._told:  # once, not every few seconds
                    _log.error("%s", error)
                self._told = str(error)
            else:
                self._told = ""

    def _follow(self) -> None:
        config = read_model_config(self._path)
        if config == self._taken:
            return
        try:
            self._models.reload(config)
        except StatusError as error:
            if error.code != grpc.StatusCode.UNKNOWN:  # a model is still missing: it is looked for
                raise InputError(f"{self._path}: {error}") from error
            _log.error("%s: %s", self._path, error)
        self._taken = config
