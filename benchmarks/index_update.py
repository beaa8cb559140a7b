"""One in a hundred items changed: from the command to answers of the new version.

Exports a real catalogue, serves it, and gives `towers index replace` new titles for 1% of its
items. The clock starts with the command's process and stops when the server has the new version in
service, warmed up.
"""

from __future__ import annotations

import json
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
import pyarrow as pa
import pyarrow.parquet as pq
from reporting import arguments, homedepot, judgements, report
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serving.export import export_retriever
from serving.index.auto import IndexKind
from serving.lexical.fusion import DEFAULT_WEIGHT
from towers import Retriever, TextSettings
from towers.encoding import fast_dtype

_AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--share", type=float, default=0.01, help="of the items that change")
    parser.add_argument("--vectors", type=Path, help=".npy file that item vectors are kept in")
    options = parser.parse_args()
    catalog, texts = homedepot(options.data)
    queries = judgements(options.data, "homedepot", "valid", catalog).queries
    retriever = Retriever.from_preset(text=TextSettings("{title}", 32, 64))
    if options.vectors and options.vectors.is_file():
        vectors = np.load(options.vectors)
    else:
        vectors = retriever.encode_items(texts, dtype=fast_dtype())
        if options.vectors:
            np.save(options.vectors, vectors)
    rows = np.random.default_rng(0).permutation(len(texts))[: round(len(texts) * options.share)]
    searches: tuple[tuple[str, IndexKind, float], ...] = (
        ("hybrid, exact", "exact", DEFAULT_WEIGHT),
        ("towers alone, exact", "exact", 0.0),
        ("towers alone, scann", "scann", 0.0),
        ("towers alone, partitioned", "partitioned", 0.0),
    )
    measured = []
    for name, index, weight in searches:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "homedepot"
            start = time.perf_counter()
            export_retriever(
                retriever,
                catalog.item_ids.tolist(),
                texts,
                base,
                index=index,
                item_embeddings=vectors,
                sample_queries=queries,
                lexical_weight=weight,
                lexical_fields={"title": texts} if weight else None,
            )
            exported = time.perf_counter() - start
            file = Path(folder) / "changed.parquet"
            changed = {
                "item_id": [catalog.item_ids[row] for row in rows],
                "title": [f"New and improved {texts[row]}" for row in rows],
            }
            pq.write_table(pa.table(changed), file)
            measured.append(
                {"search": name, "items": len(texts), "changed": len(rows)}
                | {"export without encoding, s": round(exported, 1)}
                | _replace(base, file)
            )
    report("index_update", "1% of the items changed", measured, share=options.share)


def _replace(base: Path, file: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "towers", "index", "replace", str(base), str(file), "--json"]
    with _server(base) as port, grpc.insecure_channel(f"localhost:{port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = base.name
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        published = time.perf_counter() - start
        facts = json.loads(done.stdout)
        while not any(
            status.version == facts["version"] and status.state == _AVAILABLE
            for status in stub.GetModelStatus(request, timeout=30).model_version_status
        ):
            time.sleep(0.05)
        serving = time.perf_counter() - start
    return {
        "texts encoded": facts["encoded"],
        "published, s": round(published, 1),
        "serving, s": round(serving, 1),
    }


@contextmanager
def _server(base: Path) -> Iterator[int]:
    """A server of the model, in a process of its own; yields its gRPC port."""
    command = [sys.executable, "-m", "towers", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--rest-port", "0", "--model-base-path", str(base)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = 0
    for line in process.stdout:
        if line.startswith("gRPC on "):
            port = int(line.rpartition(":")[2])
        if line.startswith("Ready"):
            break
    try:
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


if __name__ == "__main__":
    main()
