"""What shards cost on one machine: export, memory and latency of 1, 2 and 4, beside one index.

Home Depot's titles and validation queries. Each export runs in a process of its own. All servers
run at the same time, and each query is asked of all of them in turn, so that what else the machine
does falls on all alike. The answers of shards are held against those of the one index.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from load import Ask, Server, closed_loop, our_server
from reporting import HOMEDEPOT_TEXT, arguments, homedepot, judgements, report

from serving.client import Hit, RetrievalClient
from serving.fan_out import ShardedClient

K = 10
WHOLE = 0  # as a number of shards: one index, no fan-out
Search = Callable[[str], list[Hit]]


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--shards", type=int, nargs="+", default=[WHOLE, 1, 2, 4])
    parser.add_argument("--lexical", type=float, default=0.4, help="weight of the words")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load by 4 clients")
    parser.add_argument("--vectors", type=Path, help=".npy file that item vectors are kept in")
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        _export(options, int(options.export[0]), Path(options.export[1]))
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        rows, servers, searches = [], [], []
        for count in options.shards:
            base = Path(name) / f"shop{count}"
            command = [sys.executable, *sys.argv, "--export", str(count), str(base)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"shards": count or "none"} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
            config = [] if count == WHOLE else ["--model-config-file", f"{base}/models.config"]
            servers.append(stack.enter_context(our_server(base, *config)))
            searches.append(stack.enter_context(_client(servers[-1], count)))
        queries = _queries(options.data, options.queries)
        _measure(rows, servers, searches, queries, options.seconds)
    settings = {"queries": len(queries), "lexical_weight": options.lexical, "k": K}
    report("sharding", "Shards on one machine", rows, **settings)


def _export(options: argparse.Namespace, count: int, base: Path) -> None:
    """Exports, and prints what it took."""
    from serving.export import export_retriever
    from serving.sharded_export import export_shards
    from towers import Retriever, TextSettings
    from towers.encoding import fast_dtype

    catalog, texts = homedepot(options.data)
    retriever = Retriever.from_preset(text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))
    if options.vectors and options.vectors.is_file():
        vectors = np.load(options.vectors, mmap_mode="r")
    else:
        vectors = retriever.encode_items(texts, dtype=fast_dtype())
        if options.vectors:
            np.save(options.vectors, vectors)
    start = time.perf_counter()
    items = (retriever, catalog.item_ids.tolist(), texts, base)
    settings: dict[str, Any] = {"k": K, "index": "exact", "item_embeddings": vectors}
    settings |= {"lexical_weight": options.lexical, "lexical_fields": {"title": texts}}
    if not options.lexical:
        del settings["lexical_fields"]
    if count == WHOLE:
        export_retriever(*items, **settings)
    else:
        export_shards(*items, shards=count, **settings)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    disk = sum(path.stat().st_size for path in base.rglob("*") if path.is_file()) / 2**20
    print(json.dumps({"export s": seconds, "export peak MiB": peak, "disk MiB": disk}))


@contextmanager
def _client(server: Server, count: int) -> Iterator[Search]:
    address = f"127.0.0.1:{server.port}"
    if count == WHOLE:
        with RetrievalClient(address, model=server.name) as one:
            yield lambda query: one.search([query])[0]
    else:
        with ShardedClient([address] * count, model=server.name) as sharded:
            yield lambda query: sharded.search([query])[0]


def _queries(data: Path, count: int) -> list[str]:
    catalog, _ = homedepot(data)
    asked = judgements(data, "homedepot", "valid", catalog).queries
    chosen = np.random.default_rng(0).permutation(len(asked))[:count]
    return [asked[row] for row in chosen.tolist()]


def _measure(
    rows: list[dict[str, Any]],
    servers: Sequence[Server],
    searches: Sequence[Search],
    queries: Sequence[str],
    load_seconds: float,
) -> None:
    """Adds latencies, throughput, memory and differences from the first row's answers."""
    for search in searches:
        for query in queries[:20]:
            search(query)
    seconds = np.zeros((len(searches), len(queries)))
    found: list[list[list[Hit]]] = [[] for _ in searches]
    for number, query in enumerate(queries):
        for turn in range(len(searches)):
            which = (number + turn) % len(searches)
            start = time.perf_counter()
            found[which].append(searches[which](query))
            seconds[which, number] = time.perf_counter() - start
    for row, server, search, took, answers in zip(
        rows, servers, searches, 1e3 * seconds, found, strict=True
    ):
        clients: list[Ask] = [search] * 4
        load = closed_loop(clients, queries, load_seconds)
        assert not load.failures, load.failures[:1]
        row |= {
            "p50 ms": float(np.median(took)),
            "p90 ms": float(np.percentile(took, 90)),
            "4 clients, queries/s": load.rate,
            "server MiB": server.memory() / 2**20,
            "other answers": sum(
                [hit.item_id for hit in one] != [hit.item_id for hit in other]
                for one, other in zip(answers, found[0], strict=True)
            ),
            "largest difference of scores": max(
                abs(a.score - b.score)
                for one, other in zip(answers, found[0], strict=True)
                for a, b in zip(one, other, strict=True)
            ),
        }


if __name__ == "__main__":
    main()
