"""The versions of one model: which are loaded, which one answers, and what became of the others."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from serving.server.servable import Servable
from serving.server.status import StatusError, not_found

_State = get_model_status_pb2.ModelVersionStatus


@dataclass(frozen=True)
class VersionStatus:
    """Where a version is in its life.

    Attributes:
      version: The version's number.
      state: A `ModelVersionStatus.State`.
      code: OK, or why the version ended without ever being available.
      message: The error; empty where there is none.
    """

    version: int
    state: int
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""


@dataclass
class _Live:
    servable: Servable
    in_flight: int = 0


class ModelVersions:
    """The versions of one model that this server has seen.

    A version goes from loading to available (`publish`) or ended (`fail`), and from available
    through unloading to ended (`retire`). Requests take a version with `acquire`; one that is
    retired takes no new requests, and is let go of when the last that it has is answered.
    Safe to use from any thread.
    """

    def __init__(self, name: str, on_publish: Callable[[], None] | None = None) -> None:
        """Makes a model without versions.

        Args:
          name: The model's name.
          on_publish: Called whenever a version has become available.
        """
        self.name = name
        self._on_publish = on_publish
        self._changed = threading.Condition()
        self._live: dict[int, _Live] = {}
        self._statuses: dict[int, VersionStatus] = {}

    @property
    def newest(self) -> int | None:
        """The version that answers requests that name none; None while nothing is loaded."""
        with self._changed:
            return max(self._live, default=None)

    @property
    def live(self) -> set[int]:
        """The versions that answer requests."""
        with self._changed:
            return set(self._live)

    def export_times(self) -> list[tuple[int, float]]:
        """Returns each version that answers requests, and when it was exported."""
        with self._changed:
            return [(version, live.servable.exported) for version, live in self._live.items()]

    def statuses(self) -> list[VersionStatus]:
        """Returns every version's status, the newest version first."""
        with self._changed:
            return [self._statuses[version] for version in sorted(self._statuses, reverse=True)]

    @contextmanager
    def acquire(self, version: int | None = None) -> Iterator[Servable]:
        """Lends a loaded version, and keeps it loaded meanwhile.

        Args:
          version: The version wanted; the newest that is available when None.

        Raises:
          StatusError: NOT_FOUND, where that version is not available.
        """
        with self._changed:
            chosen = max(self._live, default=None) if version is None else version
            live = None if chosen is None else self._live.get(chosen)
            if live is None:
                wanted = (
                    f"Latest({self.name})"
                    if version is None
                    else f"Specific({self.name}, {version})"
                )
                raise not_found(f"Servable not found for request: {wanted}")
            live.in_flight += 1
        try:
            yield live.servable
        finally:
            with self._changed:
                live.in_flight -= 1
                if not live.in_flight:
                    self._changed.notify_all()

    def start_loading(self, version: int) -> None:
        """Records that a version is being loaded."""
        self._set(VersionStatus(version, _State.LOADING))

    def publish(self, servable: Servable) -> None:
        """Makes a loaded version available."""
        with self._changed:
            self._live[servable.version] = _Live(servable)
            self._set(VersionStatus(servable.version, _State.AVAILABLE))
        if self._on_publish:
            self._on_publish()

    def fail(self, version: int, error: StatusError) -> None:
        """Records that a version could not be loaded, and why."""
        self._set(VersionStatus(version, _State.END, error.code, error.message))

    def retire(self, version: int) -> None:
        """Takes a version away from new requests, waits for those it has, and unloads it."""
        with self._changed:
            live = self._live.pop(version)
            self._set(VersionStatus(version, _State.UNLOADING))
            while live.in_flight:
                self._changed.wait()
        # A restored SavedModel is full of reference cycles: without a collection, its variables
        # and index would stay in memory beside the new version's.
        del live
        gc.collect()
        self._set(VersionStatus(version, _State.END))

    def forget_ended(self, keep: Iterable[int]) -> None:
        """Drops the record of versions that ended, other than those in `keep`."""
        kept = set(keep)
        with self._changed:
            self._statuses = {
                version: status
                for version, status in self._statuses.items()
                if status.state != _State.END or version in kept
            }

    def _set(self, status: VersionStatus) -> None:
        with self._changed:
            self._statuses[status.version] = status
