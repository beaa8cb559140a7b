"""Following a model's folder: the versions that its policy asks for become the ones that serve."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from serving.server.batching import BatchingOptions
from serving.server.model_config import ModelConfig, local_path, select_versions
from serving.server.model_versions import ModelVersions
from serving.server.servable import Servable
from serving.server.signatures import Observer
from serving.server.status import StatusError
from serving.server.warmup import warm_up
from serving.versions import version_folders
from towers.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadOptions:
    """How versions are found and loaded.

    Attributes:
      poll_seconds: How often a model's folder is looked at; 0 for once.
      max_retries: How often a version that could not be loaded is tried again, unless its files
        change, which begins the count anew.
      retry_seconds: How long to wait before each of these.
      warm_up: Whether the warm-up requests of a version are replayed before it serves.
      batching: How requests for one signature of a version are batched; not at all when None.
    """

    poll_seconds: float = 1.0
    max_retries: int = 5
    retry_seconds: float = 60.0
    warm_up: bool = True
    batching: BatchingOptions | None = field(default_factory=BatchingOptions)

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          InputError: One is negative.
        """
        if self.poll_seconds < 0:
            raise InputError(
                f"the poll interval is {self.poll_seconds} s; it has to be above 0, or 0 to look "
                "once."
            )
        if self.max_retries < 0:
            raise InputError(f"the number of load retries is {self.max_retries}; it has to be 0+.")


@dataclass
class _Failure:
    """A version that could not be loaded: its files as they were, and when to try again."""

    files: frozenset[tuple[str, int, int]]
    attempts: int
    next_attempt: float


class ModelWatcher:
    """Keeps the versions that serve to what a model's version policy asks for.

    New versions are loaded and warmed up first; then those that are not asked for any more take no
    new requests, and are unloaded once their own are answered. So with the usual policy, the newest
    version alone, never more than two are in memory. A version that cannot be loaded or warmed up
    changes nothing, except that its status tells why; it is tried again a few times, and when its
    files have changed. Meanwhile the policy `latest` makes do with the version before it. Where
    nothing that is asked for can be served (all folders deleted, for one), what is loaded goes on
    serving. When a serving version's folder is deleted, the newest one left takes over: that is how
    one rolls back.
    """

    def __init__(
        self,
        config: ModelConfig,
        versions: ModelVersions,
        options: LoadOptions,
        observer: Observer | None = None,
    ) -> None:
        """Makes a watcher.

        Args:
          config: The model's folder and version policy.
          versions: What to keep up to date.
          options: How to look, and how to load.
          observer: What the runs of a loaded version are told to.
        """
        self._observer = observer
        self._config = config
        self._versions = versions
        self._options = options
        self._failures: dict[int, _Failure] = {}
        self._on_disk: dict[int, Path] = {}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{config.name}", daemon=True)

    def start(self) -> None:
        """Loads what is there now, then goes on in the background."""
        self._look()
        if self._versions.newest is None:
            _log.warning(
                "model %s: no version to serve under %s yet",
                self._versions.name,
                self._config.base_path,
            )
        self._thread.start()

    def configure(self, config: ModelConfig) -> None:
        """Follows another folder or policy from now on."""
        self._config = config
        self._failures = {}
        self._wake.set()

    def stop(self) -> None:
        """Stops looking; a version that is being loaded is loaded to its end first."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def unload(self) -> None:
        """Stops looking, and unloads every version once its requests are answered."""
        self.stop()
        for version in self._versions.live:
            self._versions.retire(version)

    def _run(self) -> None:
        while True:
            woken = self._wake.wait(self._seconds_to_wait())
            self._wake.clear()
            if self._stopping.is_set():
                return
            self._look(anew=woken or self._options.poll_seconds > 0)

    def _seconds_to_wait(self) -> float | None:
        """Returns when to look again; None where nothing but another configuration can matter."""
        if self._options.poll_seconds:
            return self._options.poll_seconds
        # The folder is looked at once, but what is there is to be loaded: retries go on.
        next_attempt = min((f.next_attempt for f in self._failures.values()), default=math.inf)
        return max(0.0, next_attempt - time.monotonic()) if next_attempt < math.inf else None

    def _look(self, *, anew: bool = True) -> None:
        try:
            if anew:
                self._on_disk = version_folders(local_path(self._config.base_path))
            self._poll(self._on_disk)
        except Exception:
            # A folder that cannot be read for a moment must not end the watch.
            _log.exception("model %s: could not look for versions", self._versions.name)

    def _poll(self, on_disk: dict[int, Path]) -> None:
        self._versions.forget_ended(keep=on_disk)
        candidates, count = select_versions(self._config.model_version_policy, on_disk)
        loaded = self._versions.live
        served: list[int] = []
        tried: set[int] = set()
        for version in candidates:
            tried.add(version)
            if version in loaded or self._load(version, on_disk[version]):
                served.append(version)
            if len(served) == count or self._stopping.is_set():
                break
        self._failures = {v: f for v, f in self._failures.items() if v in tried}
        if served:
            for version in sorted(loaded - set(served)):
                self._versions.retire(version)

    def _load(self, version: int, path: Path) -> bool:
        files = _files(path)
        failure = self._failures.get(version)
        if failure and failure.files == files and time.monotonic() < failure.next_attempt:
            return False
        attempts = failure.attempts if failure and failure.files == files else 0
        name = self._versions.name
        _log.info("model %s: loading version %d", name, version)
        self._versions.start_loading(version)
        try:
            servable = Servable.load(path, version, self._options.batching)
            replayed = warm_up(servable, path) if self._options.warm_up else 0
        except Exception as error:
            status = StatusError.wrap(error)
        else:
            self._failures.pop(version, None)
            if self._observer:
                servable.observe(self._observer)
            self._versions.publish(servable)
            _log.info("model %s: version %d serves (%d warm-up requests)", name, version, replayed)
            return True
        again = attempts < self._options.max_retries
        next_attempt = time.monotonic() + self._options.retry_seconds if again else math.inf
        self._failures[version] = _Failure(files, attempts + 1, next_attempt)
        self._versions.fail(version, status)
        _log.error("model %s: version %d cannot be served: %s", name, version, status)
        return False


def _files(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Returns name, size and time of change of every file in a version folder."""
    stats = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
    return frozenset(
        (str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in stats
    )
