"""A server in trouble: versions swapped under load, killed and restarted, asked for long.

Latency counts from when a query came (see `load.open_loop`). Goals: not one failed request, serving
again within 10 s of a kill, memory that does not grow.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from load import Server, closed_loop, many, open_loop, our_server
from reporting import arguments, homedepot, judgements, report
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serving.versions import version_folders

_AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE
_CLIENTS = 4
_PARTS = 10  # of the requests, after each of which memory is looked at


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--model-base-path", type=Path, required=True, help="an export to serve")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=20.0, help="queries a second during swaps")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200_000)
    options = parser.parse_args()
    catalog, _ = homedepot(options.data)
    queries = judgements(options.data, "homedepot", "valid", catalog).queries
    _, export = max(version_folders(options.model_base_path).items())
    with tempfile.TemporaryDirectory(dir=options.model_base_path.parent) as name:
        base = Path(name) / options.model_base_path.name
        _publish(export, base, 1)
        row: dict[str, Any] = {"export": base.name}
        row |= _kill(base, queries, options.restarts)
        row |= _swap(export, base, queries, options.swaps, options.rate)
        row |= _remember(base, queries, options.requests)
    settings: dict[str, Any] = {name: str(value) for name, value in vars(options).items()}
    report("soak", "A server in trouble", [row], **settings)


def _publish(export: Path, base: Path, version: int) -> None:
    base.mkdir(parents=True, exist_ok=True)
    draft = base / f".tmp-{version}"
    shutil.copytree(export, draft)
    draft.rename(base / str(version))


def _kill(base: Path, queries: list[str], restarts: int) -> dict[str, Any]:
    """Kills the server while it is asked, and starts it again."""
    seconds = []
    for _ in range(restarts):
        with our_server(base) as server, many(server.grpc_client, _CLIENTS) as clients:
            load = threading.Thread(target=closed_loop, args=(clients, queries, 2.0))
            load.start()
            time.sleep(1)
            server.process.kill()
            server.process.wait()
            start = time.perf_counter()
            with our_server(base) as restarted, restarted.grpc_client() as ask:
                ask(queries[0])
                seconds.append(time.perf_counter() - start)
            load.join()
    return {"from kill to answer, s (longest)": round(max(seconds), 1)} if seconds else {}


def _swap(export: Path, base: Path, queries: list[str], swaps: int, rate: float) -> dict[str, Any]:
    """Publishes version after version while the server is asked."""
    if not swaps:
        return {}
    done = threading.Event()
    answered, failures, slowest = 0, 0, 0.0

    def load() -> None:
        nonlocal answered, failures, slowest
        with many(server.grpc_client, 4 * _CLIENTS) as clients:
            while not done.is_set():
                outcome = open_loop(clients, queries, rate, 5.0, seed=answered)
                answered += len(outcome.seconds)
                failures += len(outcome.failures)
                slowest = max(slowest, outcome.percentile(100))

    with our_server(base) as server:
        thread = threading.Thread(target=load)
        thread.start()
        first = max(version_folders(base))
        for version in range(first + 1, first + 1 + swaps):
            _publish(export, base, version)
            _wait_for(server, version)
            shutil.rmtree(base / str(version - 1))
        done.set()
        thread.join()
    return {
        "swaps": swaps,
        "requests meanwhile": answered,
        "failed": failures,
        "slowest, ms": round(slowest),
    }


def _wait_for(server: Server, version: int) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = server.name
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        while True:
            statuses = stub.GetModelStatus(request, timeout=60).model_version_status
            # One at a time: the one before has to be gone.
            if [s.version for s in statuses if s.state == _AVAILABLE] == [version]:
                return
            time.sleep(0.1)


def _remember(base: Path, queries: list[str], requests: int) -> dict[str, Any]:
    """Looks at the server's memory while it is asked for long."""
    if not requests:
        return {}
    sizes = []
    with our_server(base) as server, many(server.grpc_client, 4 * _CLIENTS) as clients:
        failures = 0
        for _ in range(_PARTS):
            # At no time that could be kept: as fast as they are answered.
            outcome = open_loop(clients, queries, 1e9, requests / _PARTS / 1e9)
            failures += len(outcome.failures)
            sizes.append(server.memory() / 1e6)
    return {
        "requests": requests,
        "requests failed": failures,
        "memory after a tenth, MB": round(sizes[0]),
        "memory after half, MB": round(sizes[_PARTS // 2 - 1]),
        "memory at the end, MB": round(sizes[-1]),
    }


if __name__ == "__main__":
    main()
