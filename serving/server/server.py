"""`towers serve`: one process that answers gRPC and REST, and follows its model's folder."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.loading import GRAPH_FILE
from serving.server.access import Access
from serving.server.batching import BatchingOptions
from serving.server.calls import Calls, WorkLimit
from serving.server.config_watcher import ConfigWatcher
from serving.server.grpc_service import ModelService, PredictionService
from serving.server.http_server import HttpServer
from serving.server.metrics import DEFAULT_PATH, Metrics
from serving.server.model_api import ModelApi
from serving.server.model_config import (
    ModelServerConfig,
    check_model_config,
    local_path,
    read_model_config,
    single_model_config,
)
from serving.server.model_watcher import LoadOptions
from serving.server.models import Models
from serving.server.open_calls import OpenCalls
from serving.server.reflection import SERVICE_NAMES, add_reflection
from serving.server.rest import RestApi
from serving.server.status import StatusError
from serving.server.tensorflow_runtime import set_up_tensorflow
from serving.server.text_proto import MonitoringConfig, read_text_proto
from serving.server.transport_security import channel_arguments, server_credentials
from towers.errors import InputError

DEFAULT_PORT = 8500
DEFAULT_REST_PORT = 8501
_MAX_WORKERS = 64
_SPARE_CALLS = 256  # over gRPC, whose message has not come, or for health and reflection
_SERVICES_OF_TF_SERVING = ("PredictionService", "ModelService")  # so called by its health service
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_GRPC_OPTIONS: dict[str, int | str] = {
    "grpc.max_send_message_length": -1,
    # Otherwise Linux lets two servers share a port, and each gets half of the requests.
    "grpc.so_reuseport": 0,
}


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
        model_base_path: str | Path | None = None,
        *,
        model_name: str | None = None,
        model_config_file: str | Path | None = None,
        model_config_poll_seconds: float = 0.0,
        labels_for_unavailable: bool = False,
        loading: LoadOptions | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        rest_port: int = 0,
        workers: int | None = None,
        rest_workers: int | None = None,
        max_request_bytes: int = 64 << 20,
        max_pending: int = 1000,
        rest_timeout_seconds: float = 30.0,
        message_seconds: float = 60.0,
        ssl_config_file: str | Path | None = None,
        grpc_channel_arguments: str = "",
        monitoring_config_file: str | Path | None = None,
        access: Access | None = None,
        log_requests: bool = False,
        log_query_text: bool = False,
        drain_seconds: float = 30.0,
        lame_duck_seconds: float = 0.0,
    ) -> None:
        """Takes the ports; nothing is loaded or answered before `start`.

        Args:
          model_base_path: The folder that holds one folder for each version of the one model.
          model_name: What clients call it; the folder's name when None.
          model_config_file: A ModelServerConfig in text form, which counts instead of these two.
          model_config_poll_seconds: How often that file is looked at for changes; 0 for never.
          labels_for_unavailable: Whether a new label may name a version that is not available.
          loading: How versions are found and loaded.
          host: The address to listen on.
          port: The gRPC port; 0 takes a free one.
          rest_port: The REST port; 0 takes a free one.
          workers: How many requests each transport has in hand at once. When None, four for each
            CPU, as in TF Serving, or two batches of them where requests are batched.
          rest_workers: How many REST has, where not as many.
          max_request_bytes: Longer requests are refused, whatever they were compressed to.
          max_pending: How many requests may wait for that, on each transport; more are refused.
          rest_timeout_seconds: After this long a REST request is answered with 504.
          message_seconds: A gRPC call that sends no message for so long is ended.
          ssl_config_file: An SSLConfig in text form: TLS on the gRPC port. The REST port stays
            without, as in TF Serving.
          grpc_channel_arguments: NAME=VALUE, with commas between.
          monitoring_config_file: A MonitoringConfig in text form: whether metrics are shown on the
            REST port, and where. None shows them where TF Serving does.
          access: Who may call and how often; anybody and any number when None.
          log_requests: Whether each call is logged, without what was asked.
          log_query_text: Whether what was asked is logged, too.
          drain_seconds: How long `stop` waits for requests that are being answered.
          lame_duck_seconds: How long before that `stop` goes on to take requests, while health says
            NOT_SERVING: until those who balance the load have noticed.

        Raises:
          InputError: Neither folder nor configuration file is given, the folder cannot hold
            versions, the file is not as it has to be, or a port cannot be had.
        """
        if model_config_file is not None:
            self._config = _read_and_check(model_config_file)
        elif model_base_path is not None:
            base_path = Path(model_base_path)
            _check_base_path(base_path)
            self._config = single_model_config(model_name or base_path.resolve().name, base_path)
        else:
            raise InputError(
                "expected the folder of a model (--model-base-path) or a file that lists models "
                "(--model-config-file)."
            )
        _check_port(port)
        _check_port(rest_port)
        loading = loading or LoadOptions()
        workers = workers or _workers(loading.batching)
        self.drain_seconds = drain_seconds
        self._lame_duck_seconds = lame_duck_seconds
        self._health = health.HealthServicer()
        # Until each model has a version. Models that are added later do not take it back: the
        # others are served while they are loaded.
        self._set_health(_NOT_SERVING)
        metrics = Metrics()
        self._models = Models(
            loading,
            metrics.observer,
            on_complete=lambda: self._set_health(_SERVING),
            labels_for_unavailable=labels_for_unavailable,
        )
        metrics.watch(self._models)
        credentials = server_credentials(ssl_config_file) if ssl_config_file else None
        options = {
            **_GRPC_OPTIONS,
            "grpc.max_receive_message_length": max_request_bytes,
            **channel_arguments(grpc_channel_arguments),
        }
        metrics_path = _metrics_path(monitoring_config_file)
        self._config_watcher = (
            ConfigWatcher(Path(model_config_file), self._models, model_config_poll_seconds)
            if model_config_file is not None and model_config_poll_seconds
            else None
        )
        api = ModelApi(self._models)
        calls = Calls(
            access or Access(),
            metrics,
            self._models.__contains__,
            log_requests=log_requests,
            log_query_text=log_query_text,
        )

        self.host = _bracketed(host)
        listener = self._listener = _bind(host, rest_port)
        self.rest_port: int = listener.getsockname()[1]
        self._http = HttpServer(
            RestApi(api, metrics, metrics_path),
            calls,
            listener,
            workers=rest_workers or workers,
            max_pending=max_pending,
            max_body_bytes=max_request_bytes,
            timeout_seconds=rest_timeout_seconds,
            drain_seconds=drain_seconds,
        )
        self._open_calls = OpenCalls(message_seconds)
        limit = WorkLimit(workers, max_pending)
        # A thread for each call, made when first needed: a call takes one before its message is
        # there, and those that send none must not keep the others from their turn.
        threads = workers + max_pending + _SPARE_CALLS
        self._grpc = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            interceptors=[self._open_calls],
            options=list(options.items()),
            maximum_concurrent_rpcs=threads,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(api, calls, limit), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(api, calls, limit), self._grpc
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        add_reflection(self._grpc)
        try:
            address = f"{self.host}:{port}"
            self.grpc_port: int = (
                self._grpc.add_secure_port(address, credentials)
                if credentials
                else self._grpc.add_insecure_port(address)
            )
        except RuntimeError as error:
            listener.close()
            raise InputError(f"cannot listen on {host}:{port} for gRPC: {error}") from error

    @property
    def base_paths(self) -> list[Path]:
        """The folders of the models that are served from the start."""
        return [local_path(model.base_path) for model in self._config.model_config_list.config]

    @property
    def serving_versions(self) -> dict[str, int | None]:
        """The newest version that each model serves; None where none could be loaded."""
        return self._models.newest

    def start(self) -> None:
        """Loads the versions that are there, then begins to answer.

        Raises:
          InputError: A label names a version that could not be loaded.
        """
        try:
            self._models.start(self._config)
        except StatusError as error:
            self._models.stop()
            self._grpc.stop(None)
            self._listener.close()
            raise InputError(error.message) from error
        if self._config_watcher:
            self._config_watcher.start()
        self._open_calls.start()
        self._grpc.start()
        self._http.start()

    def stop(self) -> None:
        """Takes no new requests, answers those it has, and ends."""
        self._health.enter_graceful_shutdown()
        time.sleep(self._lame_duck_seconds)
        deadline = time.monotonic() + self.drain_seconds
        self._grpc.stop(self.drain_seconds)
        self._http.stop()
        self._open_calls.drain(deadline - time.monotonic())
        self._grpc.stop(None).wait()  # streams, such as those that watch the health, end here
        self._open_calls.stop()
        if self._config_watcher:
            self._config_watcher.stop()
        self._models.stop()

    def __enter__(self) -> ModelServer:
        """Starts the server."""
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Stops the server."""
        self.stop()

    def _set_health(self, status: int) -> None:
        for service in (*SERVICE_NAMES, *_SERVICES_OF_TF_SERVING, health.OVERALL_HEALTH):
            self._health.set(service, status)


def run_server(
    server: ModelServer,
    intra_op_threads: int | None = None,
    inter_op_threads: int | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish; a second one kills.

    To be called in the main thread, where Python delivers signals, and before TensorFlow has
    computed anything. What is served, and where, is printed once the server is ready; what happens
    later goes to the log.

    Args:
      server: A server that was not started.
      intra_op_threads: How many threads share one operation; see `set_up_tensorflow`.
      inter_op_threads: How many operations are run at once; see `set_up_tensorflow`.

    Raises:
      InputError: A label names a version that could not be loaded.
    """
    set_up_tensorflow(
        *server.base_paths, intra_op_threads=intra_op_threads, inter_op_threads=inter_op_threads
    )
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
    for name, version in server.serving_versions.items():
        if version is None:
            print(f"Model {name}: no version to serve yet")
        else:
            print(f"Model {name}: version {version} is served")
    names = list(server.serving_versions)
    print(f"gRPC on {server.host}:{server.grpc_port}")
    only = names[0] if len(names) == 1 else ""
    print(f"REST on http://{server.host}:{server.rest_port}/v1/models/{only}")
    print("Ready", flush=True)
    stopping.wait()
    print("Stopping: running requests are answered first", flush=True)
    server.stop()


def _read_and_check(model_config_file: str | Path) -> ModelServerConfig:
    config = read_model_config(model_config_file)
    try:
        check_model_config(config)
    except StatusError as error:
        raise InputError(f"{model_config_file}: {error.message}") from error
    return config


def _workers(batching: BatchingOptions | None) -> int:
    # A request keeps a thread while it waits for its batch, so threads bound the size of batches.
    batched = min(2 * batching.max_batch_size, _MAX_WORKERS) if batching else 0
    return max(4 * (os.cpu_count() or 1), batched)


def _metrics_path(monitoring_config_file: str | Path | None) -> str | None:
    if monitoring_config_file is None:
        return DEFAULT_PATH
    config = read_text_proto(monitoring_config_file, MonitoringConfig()).prometheus_config
    return (config.path or DEFAULT_PATH) if config.enable else None


def _check_base_path(base_path: Path) -> None:
    if not base_path.is_dir():
        raise InputError(
            f"there is no folder {base_path}; name the one that holds the model's versions, "
            "such as saved_models/NAME."
        )
    if (base_path / "metrics.json").exists():
        raise InputError(
            f"{base_path} is what `towers train` wrote, not an export; `towers export --model "
            f"{base_path}` makes one."
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
