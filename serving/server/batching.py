"""Dynamic batching: requests that wait for one signature at the same time share a run of its graph.

Options and messages are TF Serving's (`batching_parameters_file`, `shared_batch_scheduler.h`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from serving.server.status import StatusError
from serving.server.text_proto import BatchingParameters, read_text_proto
from towers.errors import InputError

_Arrays = Mapping[str, np.ndarray]
_Key = tuple[tuple[int, ...], ...]
_WRAPPED = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")


@dataclass(frozen=True)
class BatchingOptions:
    """How requests are batched.

    Attributes:
      max_batch_size: The most rows of a batch. A request of more rows is run alone.
      batch_timeout_micros: How long a batch waits to be filled; with 0 it takes who waits anyway,
        while the batches before it are run.
      max_enqueued_batches: How many batches of a signature may wait; more are refused.
      num_batch_threads: How many batches of a signature are run at once.
      allowed_batch_sizes: Where given, a batch is filled up to one of these sizes with copies of
        its first row. They rise to `max_batch_size`.
      pad_variable_length_inputs: Whether inputs of different shapes may share a batch: the smaller
        are filled up with copies of their first element, as in TF Serving. Outputs are not cut.
      every_model: Whether the requests of every model are batched; otherwise those of exports of
        this package, whose rows are known not to depend on each other.
    """

    max_batch_size: int = 32
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 100
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    every_model: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          InputError: One is out of its range, or the allowed sizes do not rise to the largest.
        """
        for name, least in (
            ("max_batch_size", 1),
            ("batch_timeout_micros", 0),
            ("max_enqueued_batches", 1),
            ("num_batch_threads", 1),
        ):
            if getattr(self, name) < least:
                raise InputError(
                    f"batching: {name} is {getattr(self, name)}; it has to be {least} or more."
                )
        sizes = self.allowed_batch_sizes
        if sizes and (sizes[0] < 1 or list(sizes) != sorted(set(sizes))):
            raise InputError(
                "batching: allowed_batch_sizes entries must be monotonically increasing, and above "
                f"0, not {list(sizes)}."
            )
        if sizes and sizes[-1] != self.max_batch_size:
            raise InputError(
                "batching: final entry in allowed_batch_sizes must equal max_batch_size, which is "
                f"{self.max_batch_size}, not {sizes[-1]}."
            )


def read_batching_parameters(path: str | Path) -> BatchingOptions:
    """Reads TF Serving's BatchingParameters in text form; what is not in it has its default.

    Raises:
      InputError: The file cannot be read, or a value is out of its range.
    """
    parameters = read_text_proto(path, BatchingParameters())
    # `thread_pool_name` is taken and means nothing: there are no pools to share.
    given: dict[str, Any] = {
        name: getattr(parameters, name).value for name in _WRAPPED if parameters.HasField(name)
    }
    try:
        return BatchingOptions(
            allowed_batch_sizes=tuple(parameters.allowed_batch_sizes),
            pad_variable_length_inputs=parameters.pad_variable_length_inputs,
            **given,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def batching_options(
    enable: bool | None, parameters_file: str | Path | None
) -> BatchingOptions | None:
    """Returns what `--enable-batching` and `--batching-parameters-file` ask for together.

    Args:
      enable: Batching of every model, or of none; None for that of this package's exports.
      parameters_file: BatchingParameters in text form.

    Returns:
      The options, or None for no batching.

    Raises:
      InputError: There is a file though batching is off, or the file is not as it has to be.
    """
    if enable is False:
        if parameters_file is not None:
            raise InputError("--batching-parameters-file is given, but --enable-batching is false.")
        return None
    options = read_batching_parameters(parameters_file) if parameters_file else BatchingOptions()
    return replace(options, every_model=bool(enable))


class Batcher:
    """Runs a function of rows for many callers at once.

    There are no threads but the callers': whoever finds a batch ready runs it, for all in it. So a
    lone caller loses nothing by it, and whoever waits keeps its version of a model loaded.
    Safe to use from any thread.
    """

    def __init__(
        self, function: Callable[[_Arrays], dict[str, np.ndarray]], options: BatchingOptions
    ) -> None:
        """Makes a batcher.

        Args:
          function: Arrays of equally many rows to arrays of as many rows.
          options: How to batch.
        """
        self._function = function
        self._options = options
        self._changed = threading.Condition()
        self._batches: list[_Batch] = []  # that wait, the oldest first
        self._running = 0
        self._by_row = True

    def run(self, inputs: _Arrays) -> dict[str, np.ndarray]:
        """Computes the outputs for some rows, perhaps together with those of other callers.

        Whatever is wrong with one caller's rows concerns that caller alone: a batch that fails is
        run again, each request by itself.

        Raises:
          StatusError: RESOURCE_EXHAUSTED, where too many batches wait.
          Exception: Whatever the function raises for these rows.
        """
        rows = {len(array) for array in inputs.values()}
        if not self._by_row or len(rows) != 1 or not 0 < min(rows) <= self._options.max_batch_size:
            return self._function(inputs)
        task = _Task(inputs, rows.pop())
        with self._changed:
            self._enqueue(task)
            while not task.done:
                batch = self._next_batch()
                if batch is None:
                    self._changed.wait(self._seconds_to_wait())
                else:
                    with self._slot():
                        self._process(batch.tasks)
        if task.error is not None:
            raise task.error
        return task.outputs

    def _enqueue(self, task: _Task) -> None:
        key = self._key(task.inputs)
        for batch in reversed(self._batches):
            if batch.key == key and batch.rows + task.rows <= self._options.max_batch_size:
                batch.tasks.append(task)
                return
        if len(self._batches) >= self._options.max_enqueued_batches:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{len(self._batches)} batches enqueued and max_enqueued_batches is "
                f"{self._options.max_enqueued_batches}",
            )
        due = time.monotonic() + self._options.batch_timeout_micros / 1e6
        self._batches.append(_Batch(key, due, [task]))

    def _key(self, inputs: _Arrays) -> _Key:
        """What requests of one batch have in common; inputs of a signature are in one order."""
        if not self._options.pad_variable_length_inputs:
            return tuple(array.shape[1:] for array in inputs.values())
        # Nothing can be filled up with the first element of what has none.
        return tuple((array.ndim,) if array.size else array.shape[1:] for array in inputs.values())

    def _next_batch(self) -> _Batch | None:
        """Takes the oldest batch that is full or has waited for long enough."""
        if self._running >= self._options.num_batch_threads:
            return None
        now = time.monotonic()
        for place, batch in enumerate(self._batches):
            if batch.due <= now or batch.rows == self._options.max_batch_size:
                return self._batches.pop(place)
        return None

    def _seconds_to_wait(self) -> float | None:
        """Returns when to look again; None where a batch that ends will wake us."""
        if self._running >= self._options.num_batch_threads or not self._batches:
            return None
        return max(0.0, min(batch.due for batch in self._batches) - time.monotonic())

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Counts a run, and lets go of the lock meanwhile."""
        self._running += 1
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()
            self._running -= 1
            self._changed.notify_all()

    def _process(self, tasks: Sequence[_Task]) -> None:
        if len(tasks) > 1:
            try:
                self._run_together(tasks)
            except Exception:
                pass  # which of them it was, is found out now
            else:
                return
        for task in tasks:
            try:
                task.outputs = self._function(task.inputs)
            except Exception as error:
                task.error = error
            task.done = True

    def _run_together(self, tasks: Sequence[_Task]) -> None:
        rows = sum(task.rows for task in tasks)
        size = min((s for s in self._options.allowed_batch_sizes if s >= rows), default=rows)
        outputs = self._function(
            {name: _join([task.inputs[name] for task in tasks], size) for name in tasks[0].inputs}
        )
        if any(array.shape[:1] != (size,) for array in outputs.values()):
            self._by_row = False
            raise ValueError("outputs have not as many rows as inputs")
        start = 0
        for task in tasks:
            end = start + task.rows
            task.outputs = {name: array[start:end] for name, array in outputs.items()}
            start = end
        for task in tasks:
            task.done = True


@dataclass(eq=False)
class _Task:
    """One caller's rows, and what came of them."""

    inputs: _Arrays
    rows: int
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    error: Exception | None = None
    done: bool = False


@dataclass(eq=False)
class _Batch:
    """Tasks that will be run together, once it is due or full."""

    key: _Key
    due: float
    tasks: list[_Task]

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


def _join(arrays: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Puts arrays below each other, ``[size, ...]``; each is filled up to the widest."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0).astype(int).tolist()
    joined = np.concatenate([_widened(array, shape) for array in arrays])
    missing = size - len(joined)
    return np.concatenate([joined, np.repeat(joined[:1], missing, axis=0)]) if missing else joined


def _widened(array: np.ndarray, shape: list[int]) -> np.ndarray:
    if list(array.shape[1:]) == shape:
        return array
    wide = np.full([len(array), *shape], array.flat[0], array.dtype)
    wide[tuple(slice(size) for size in array.shape)] = array
    return wide
