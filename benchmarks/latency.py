"""A query over gRPC against a real catalogue: latency, memory of the server, recall of the index.

Starts `towers serve` as a process of its own and asks it one query at a time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from reporting import arguments, homedepot, judgements, report
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.export import export_retriever
from serving.index.auto import IndexKind
from serving.lexical.fusion import DEFAULT_WEIGHT
from towers import Retriever, TextSettings
from towers.encoding import fast_dtype


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    catalog, texts = homedepot(options.data)
    queries = judgements(options.data, "homedepot", "valid", catalog).queries
    retriever = Retriever.from_preset(text=TextSettings("{title}", 32, 64))
    vectors = retriever.encode_items(texts, dtype=fast_dtype())
    rows = []
    searches: tuple[tuple[str, IndexKind, float], ...] = (
        ("hybrid, exact", "exact", DEFAULT_WEIGHT),
        ("towers alone, exact", "exact", 0.0),
        ("towers alone, scann", "scann", 0.0),
    )
    for name, index, weight in searches:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "homedepot"
            start = time.perf_counter()
            result = export_retriever(
                retriever,
                catalog.item_ids.tolist(),
                texts,
                base,
                index=index,
                item_embeddings=vectors,
                sample_queries=queries,
                lexical_weight=weight,
                lexical_fields={"title": texts},
            )
            exported = time.perf_counter() - start
            rows.append(
                {
                    "search": name,
                    "items": len(texts),
                    "recall@10": round(result.manifest.index_recall, 4),
                    "export, s": round(exported, 1),
                    **_ask(base, queries, options.requests),
                }
            )
    report("latency", "One query at a time over gRPC", rows, requests=options.requests)


def _ask(base: Path, queries: list[str], count: int) -> dict[str, Any]:
    seconds = []
    with _server(base) as (process, port), grpc.insecure_channel(f"localhost:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for number in range(count + 50):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = base.name
            request.inputs["query"].CopyFrom(tf.make_tensor_proto([queries[number % len(queries)]]))
            start = time.perf_counter()
            stub.Predict(request, timeout=30)
            seconds.append(time.perf_counter() - start)
        memory = _peak_memory(process.pid)
    milliseconds = np.array(seconds[50:]) * 1000  # the first ones warm up
    return {
        "p50, ms": round(float(np.percentile(milliseconds, 50)), 2),
        "p99, ms": round(float(np.percentile(milliseconds, 99)), 2),
        "server's peak memory, GB": round(memory / 1e9, 2),
    }


@contextmanager
def _server(base: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "towers", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--rest-port", "0", "--model-base-path", str(base)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = 0
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("gRPC on "):
            port = int(line.rpartition(":")[2])
        if line.startswith("Ready"):
            break
    try:
        yield process, port
    finally:
        process.terminate()
        process.wait(timeout=60)


def _peak_memory(pid: int) -> int:
    """Largest resident size so far, in bytes (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
