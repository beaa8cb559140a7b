"""Following a model's folder: the newest complete version on disk becomes the one that serves."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from serving.server.model_versions import ModelVersions
from serving.server.servable import Servable
from serving.server.status import StatusError
from serving.server.warmup import warm_up
from serving.versions import version_folders

_log = logging.getLogger(__name__)


class ModelWatcher:
    """Loads the newest version of a model that can be loaded, and swaps it in.

    The old version serves until the new one is loaded and warmed up, and is unloaded once its
    requests are answered: never more than two versions are in memory. A version that cannot be
    loaded or warmed up changes nothing, except that its status tells why; it is tried again when
    its files have changed. When the serving version's folder is deleted, the newest one left
    takes over (that is how one rolls back); when all are, the loaded one goes on serving.
    """

    def __init__(self, base_path: Path, versions: ModelVersions, poll_seconds: float) -> None:
        """Makes a watcher.

        Args:
          base_path: The folder with one folder for each version.
          versions: What to keep up to date.
          poll_seconds: How long to wait between two looks at the folder.
        """
        self._base_path = base_path
        self._versions = versions
        self._poll_seconds = poll_seconds
        # The files of each version that failed, as they were.
        self._failed: dict[int, frozenset[tuple[str, int, int]]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watcher", daemon=True)

    def start(self) -> None:
        """Loads what is there now, then goes on in the background."""
        self._poll()
        if self._versions.newest is None:
            _log.warning(
                "model %s: no version to serve under %s yet", self._versions.name, self._base_path
            )
        self._thread.start()

    def stop(self) -> None:
        """Stops looking; a version that is being loaded is loaded to its end first."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                self._poll()
            except Exception:
                # A folder that cannot be read for a moment must not end the watch.
                _log.exception("model %s: could not look for versions", self._versions.name)

    def _poll(self) -> None:
        on_disk = version_folders(self._base_path)
        self._versions.forget_ended(keep=on_disk)
        self._failed = {v: files for v, files in self._failed.items() if v in on_disk}
        serving = self._versions.newest
        for version, path in reversed(on_disk.items()):
            if version == serving:
                return
            if self._load(version, path):
                if serving is not None:
                    self._versions.retire(serving)
                return

    def _load(self, version: int, path: Path) -> bool:
        files = _files(path)
        if self._failed.get(version) == files:
            return False
        name = self._versions.name
        _log.info("model %s: loading version %d", name, version)
        self._versions.start_loading(version)
        try:
            servable = Servable.load(path, version)
            replayed = warm_up(servable, path)
        except Exception as error:
            status = StatusError.wrap(error)
        else:
            self._versions.publish(servable)
            _log.info("model %s: version %d serves (%d warm-up requests)", name, version, replayed)
            return True
        self._failed[version] = files
        self._versions.fail(version, status)
        _log.error("model %s: version %d cannot be served: %s", name, version, status)
        return False


def _files(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Returns name, size and time of change of every file in a version folder."""
    stats = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    return frozenset(
        (str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in stats
    )
