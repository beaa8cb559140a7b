"""Servers as processes, and load on them: what the serving benchmarks share."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

Ask = Callable[[str], Any]
"""Sends one query, waits for the answer and checks it; raises where there is none."""


@dataclass(frozen=True)
class Server:
    """A server in a process of its own.

    Attributes:
      process: The process.
      port: Where it listens.
      name: What its model is called.
    """

    process: subprocess.Popen[str]
    port: int
    name: str = ""

    def memory(self) -> int:
        """Returns the resident size in bytes (Linux)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    @contextmanager
    def grpc_client(self) -> Iterator[Ask]:
        """A client of TensorFlow Serving's API with a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

            def ask(query: str) -> Any:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = self.name
                request.inputs["query"].CopyFrom(tf.make_tensor_proto([query]))
                answer = stub.Predict(request, timeout=60)
                assert answer.outputs["item_ids"].string_val[0]
                return answer

            yield ask

    @contextmanager
    def http_client(self) -> Iterator[Ask]:
        """A client of `peer_server.py` with a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)

        def ask(query: str) -> Any:
            body = json.dumps({"query": query})
            connection.request("POST", "/search", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            assert answer["item_ids"][0]
            return answer

        yield ask
        connection.close()


@contextmanager
def our_server(base: Path, *options: str) -> Iterator[Server]:
    """`towers serve` on a model's folder; ended when the context is left, if it still runs."""
    command = [sys.executable, "-m", "towers", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--rest-port", "0", "--model-base-path", str(base), *options]
    with _process(command, port_after="gRPC on ") as (process, port):
        yield Server(process, port, base.name)


@contextmanager
def peer_server(*arguments: str) -> Iterator[Server]:
    """`peer_server.py` with these arguments."""
    script = Path(__file__).with_name("peer_server.py")
    with _process([sys.executable, str(script), *arguments], port_after="HTTP on ") as started:
        yield Server(*started)


@contextmanager
def _process(command: list[str], port_after: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = 0
        for line in process.stdout:
            if line.startswith(port_after):
                port = int(line.rpartition(":")[2])
            if line.startswith("Ready"):
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended before it was ready")
        yield process, port
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass
class Outcome:
    """What became of a load.

    Attributes:
      seconds: The latency of each request that was answered.
      failures: The errors of those that were not.
      duration: From the first request's time to the last answer, in seconds.
    """

    seconds: list[float] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    duration: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.duration

    def percentile(self, percent: float) -> float:
        """Returns a percentile of the latency, in milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1e3 if self.seconds else float("nan")


def closed_loop(clients: Sequence[Ask], queries: Sequence[str], duration: float) -> Outcome:
    """Each client asks its next query when it has the answer to the one before."""
    start = time.perf_counter()

    def times() -> Iterator[float | None]:
        while time.perf_counter() < start + duration:
            yield None

    return _load(clients, queries, times(), start)


def open_loop(
    clients: Sequence[Ask], queries: Sequence[str], rate: float, duration: float, seed: int = 0
) -> Outcome:
    """Queries come at random times (Poisson), whether or not there is a client free to send them.

    A latency counts from when a query came, so one that had to wait for a client is late, too.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * duration)))
    start = time.perf_counter()
    return _load(clients, queries, iter((start + np.cumsum(gaps)).tolist()), start)


def _load(
    clients: Sequence[Ask], queries: Sequence[str], times: Iterator[float | None], start: float
) -> Outcome:
    outcome = Outcome()
    lock = threading.Lock()
    numbers = iter(range(1 << 60))

    def work(ask: Ask) -> None:
        while True:
            with lock:
                number, due = next(numbers), next(times, "end")
            if due == "end":
                return
            if isinstance(due, float):
                time.sleep(max(0.0, due - time.perf_counter()))
            begun = due if isinstance(due, float) else time.perf_counter()
            try:
                ask(queries[number % len(queries)])
            except Exception as error:
                outcome.failures.append(error)
            else:
                outcome.seconds.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=work, args=(ask,)) for ask in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.duration = time.perf_counter() - start
    return outcome


@contextmanager
def many(client: Callable[[], Any], count: int) -> Iterator[list[Ask]]:
    """Opens a client as many times."""
    with ExitStack() as stack:
        yield [stack.enter_context(client()) for _ in range(count)]
