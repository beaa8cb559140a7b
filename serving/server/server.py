"""`towers serve`: one process that answers gRPC and REST, and follows its model's folder."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.loading import GRAPH_FILE
from serving.server.grpc_service import ModelService, PredictionService
from serving.server.http_server import HttpServer
from serving.server.model_api import ModelApi
from serving.server.model_versions import ModelVersions
from serving.server.model_watcher import ModelWatcher
from serving.server.rest import RestApi
from serving.server.tensorflow_runtime import set_up_tensorflow
from towers.errors import InputError

DEFAULT_PORT = 8500
DEFAULT_REST_PORT = 8501
_GRPC_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    # Otherwise Linux lets two servers share a port, and each gets half of the requests.
    ("grpc.so_reuseport", 0),
)


class ModelServer:
    """A running server, for use inside a process and in tests.

    Example:
      ```python
      with ModelServer("saved_models/shop") as server:
          client = RetrievalClient(f"localhost:{server.grpc_port}", model="shop")
      ```
    """

    def __init__(
        self,
        model_base_path: str | Path,
        *,
        model_name: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        rest_port: int = 0,
        poll_seconds: float = 1.0,
        workers: int | None = None,
        max_request_bytes: int = 64 << 20,
        drain_seconds: float = 30.0,
    ) -> None:
        """Takes the ports; nothing is loaded or answered before `start`.

        Args:
          model_base_path: The folder that holds one folder for each version.
          model_name: What clients call the model; the folder's name when None.
          host: The address to listen on.
          port: The gRPC port; 0 takes a free one.
          rest_port: The REST port; 0 takes a free one.
          poll_seconds: How often the folder is looked at for new versions.
          workers: How many requests each transport answers at once; four for each CPU when None,
            as in TF Serving.
          max_request_bytes: Longer requests are refused, whatever they were compressed to.
          drain_seconds: How long `stop` waits for requests that are being answered.

        Raises:
          InputError: The folder cannot hold versions, or a port cannot be had.
        """
        base_path = Path(model_base_path)
        _check_base_path(base_path)
        _check_port(port)
        _check_port(rest_port)
        if poll_seconds <= 0:
            raise InputError(f"the poll interval is {poll_seconds} s; it has to be above 0.")
        workers = workers or 4 * (os.cpu_count() or 1)
        self.model_name = model_name or base_path.resolve().name
        self._drain_seconds = drain_seconds
        self._versions = ModelVersions(self.model_name)
        self._watcher = ModelWatcher(base_path, self._versions, poll_seconds)
        api = ModelApi({self.model_name: self._versions})

        listener = _bind(host, rest_port)
        self.rest_port: int = listener.getsockname()[1]
        self._http = HttpServer(
            RestApi(api).handle,
            listener,
            workers=workers,
            max_body_bytes=max_request_bytes,
            drain_seconds=drain_seconds,
        )
        self._grpc = grpc.server(
            ThreadPoolExecutor(workers, thread_name_prefix="grpc"),
            options=(*_GRPC_OPTIONS, ("grpc.max_receive_message_length", max_request_bytes)),
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(api), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(api), self._grpc)
        try:
            self.grpc_port: int = self._grpc.add_insecure_port(f"{_bracketed(host)}:{port}")
        except RuntimeError as error:
            listener.close()
            raise InputError(f"cannot listen on {host}:{port} for gRPC: {error}") from error

    @property
    def serving_version(self) -> int | None:
        """The version that answers requests; None while none could be loaded."""
        return self._versions.newest

    def start(self) -> None:
        """Loads the newest version, if there is one, then begins to answer."""
        self._watcher.start()
        self._grpc.start()
        self._http.start()

    def stop(self) -> None:
        """Takes no new requests, answers those it has, and ends."""
        grpc_stopped = self._grpc.stop(self._drain_seconds)
        self._http.stop()
        grpc_stopped.wait()
        self._watcher.stop()

    def __enter__(self) -> ModelServer:
        """Starts the server."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the server."""
        self.stop()


def run_server(
    model_base_path: str | Path,
    *,
    model_name: str | None = None,
    host: str = "0.0.0.0",
    port: int = DEFAULT_PORT,
    rest_port: int = DEFAULT_REST_PORT,
    poll_seconds: float = 1.0,
    workers: int | None = None,
    drain_seconds: float = 30.0,
    intra_op_threads: int | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish; a second one kills.

    To be called in the main thread, where Python delivers signals, and before TensorFlow has
    computed anything. The arguments are those of `ModelServer`, and of `set_up_tensorflow`. What is
    served, and where, is printed once the server is ready; what happens later goes to the log.

    Raises:
      InputError: The folder cannot hold versions, or a port cannot be had.
    """
    server = ModelServer(
        model_base_path,
        model_name=model_name,
        host=host,
        port=port,
        rest_port=rest_port,
        poll_seconds=poll_seconds,
        workers=workers,
        drain_seconds=drain_seconds,
    )
    set_up_tensorflow(model_base_path, intra_op_threads)
    # What was imported stays. Taken out of the garbage collector's sight, it no longer makes
    # every collection stop all threads for a quarter of a second.
    gc.collect()
    gc.freeze()
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.start()
    shown = _bracketed(host)
    if server.serving_version is None:
        print(f"Model {server.model_name}: no version to serve in {model_base_path} yet")
    else:
        print(f"Model {server.model_name}: version {server.serving_version} is served")
    print(f"gRPC on {shown}:{server.grpc_port}")
    print(f"REST on http://{shown}:{server.rest_port}/v1/models/{server.model_name}")
    print("Ready", flush=True)
    stopping.wait()
    print("Stopping: running requests are answered first", flush=True)
    server.stop()


def _check_base_path(base_path: Path) -> None:
    if not base_path.is_dir():
        raise InputError(
            f"there is no folder {base_path}; name the one that holds the model's versions, "
            "such as saved_models/NAME."
        )
    if (base_path / GRAPH_FILE).exists():
        raise InputError(
            f"{base_path} is a version, not a model; name the folder above, {base_path.parent}."
        )


def _check_port(port: int) -> None:
    if not 0 <= port <= 65_535:  # gRPC would take the remainder
        raise InputError(f"{port} is not a port; a port is from 0, any that is free, to 65535.")


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port} for REST: {error}") from error
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
