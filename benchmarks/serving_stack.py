"""Our server against the stack a user would build instead, in one run.

The same encoder, items, vectors and queries; ours over gRPC, theirs (sentence-transformers, faiss
or hnswlib, FastAPI, uvicorn) over HTTP, each in a process of its own, one at a time. Clients are in
this process. For each number of clients there is a closed loop, which tells how many queries a
second a server answers, and an open loop, in which queries come at random times, at half the rate
that the slowest server could answer; latency counts from when a query came.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from load import Ask, closed_loop, many, open_loop, our_server, peer_server
from reporting import arguments, homedepot, judgements, report

from serving.export import export_retriever
from serving.index.auto import IndexKind
from towers import DEFAULT_PRESET, Retriever, TextSettings
from towers.checkpoint import resolve_preset
from towers.encoding import fast_dtype

_CLIENTS = (1, 4, 16)
_PEERS = ("faiss", "hnswlib")
_Client = Callable[[], AbstractContextManager[Ask]]


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--vectors", type=Path, help=".npy file that item vectors are kept in")
    parser.add_argument("--items", type=int, help="how many of the catalogue's; all if absent")
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
    item_ids = catalog.item_ids.tolist()[: options.items]
    texts, vectors = texts[: options.items], vectors[: options.items]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "vectors.npy", vectors)
        (folder / "item_ids").write_text("\n".join(item_ids), "utf-8")
        kinds: tuple[IndexKind, ...] = ("exact", "scann")
        for kind in kinds:
            export_retriever(
                retriever,
                item_ids,
                texts,
                folder / kind,
                index=kind,
                item_embeddings=vectors,
                sample_queries=queries,
            )
        rows = _measure(folder, kinds, queries, options.seconds)
    report(
        "serving_stack",
        "Our server and the stack a user would build",
        rows,
        items=len(texts),
        seconds=options.seconds,
    )


def _measure(
    folder: Path, kinds: tuple[IndexKind, ...], queries: list[str], seconds: float
) -> list[dict[str, Any]]:
    @contextmanager
    def ours(kind: str, *arguments: str) -> Iterator[_Client]:
        with our_server(folder / kind, *arguments) as server:
            yield server.grpc_client

    @contextmanager
    def theirs(index: str) -> Iterator[_Client]:
        files = (str(folder / "vectors.npy"), str(folder / "item_ids"))
        with peer_server(resolve_preset(DEFAULT_PRESET), *files, index) as server:
            yield server.http_client

    systems: dict[str, Callable[[], AbstractContextManager[_Client]]] = {}
    for kind in kinds:
        systems[f"ours, {kind}"] = partial(ours, kind)
        systems[f"ours, {kind}, not batched"] = partial(ours, kind, "--enable-batching=false")
    for index in _PEERS:
        systems[f"sentence-transformers, {index}"] = partial(theirs, index)
    rates: dict[tuple[str, int], float] = {}
    for system, start in systems.items():
        with start() as client:
            for count in _CLIENTS:
                with many(client, count) as clients:
                    closed_loop(clients, queries, seconds / 4)  # warms up
                    rates[system, count] = closed_loop(clients, queries, seconds).rate
    rows = []
    for system, start in systems.items():
        with start() as client:
            for count in _CLIENTS:
                rate = min(rates[other, count] for other in systems) / 2
                with many(client, count) as clients:
                    closed_loop(clients, queries, seconds / 4)
                    outcome = open_loop(clients, queries, rate, seconds)
                rows.append(
                    {
                        "system": system,
                        "clients": count,
                        "closed loop, queries/s": round(rates[system, count], 1),
                        "open loop, queries/s": round(rate, 1),
                        "p50, ms": round(outcome.percentile(50), 1),
                        "p99, ms": round(outcome.percentile(99), 1),
                        "failures": len(outcome.failures),
                    }
                )
    return rows


if __name__ == "__main__":
    main()
