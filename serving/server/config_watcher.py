"""Following a `--model-config-file`: a change of the file is a change of the models."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from serving.server.model_config import ModelServerConfig, read_model_config
from serving.server.models import Models
from serving.server.status import StatusError
from towers.errors import InputError

_log = logging.getLogger(__name__)


class ConfigWatcher:
    """Reads the file every few seconds, and hands on what has changed.

    A file that cannot be read, or is refused, changes nothing; the log says why.
    """

    def __init__(self, path: Path, models: Models, poll_seconds: float) -> None:
        """Makes a watcher of the file that `models` were started with."""
        self._path = path
        self._models = models
        self._poll_seconds = poll_seconds
        self._seen: ModelServerConfig | str = read_model_config(path)
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
                config = read_model_config(self._path)
            except InputError as error:
                if self._seen != str(error):  # once, not every few seconds
                    _log.error("%s", error)
                self._seen = str(error)
                continue
            if config == self._seen:
                continue
            self._seen = config
            try:
                self._models.reload(config)
            except StatusError as error:
                _log.error("%s: %s", self._path, error)
