"""Exact and approximate search as the catalogue grows, beside faiss and hnswlib.

Items are the vectors of Home Depot's titles, each taken as often as it takes and moved by noise of
a given length; queries are validation queries. Every system is built in a process of its own.
Approximate ones take the cheapest setting that finds 95% of the exact top ten on one half of the
queries; recall and time are measured on the other half, one query at a time, on all cores.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reporting import HOMEDEPOT_TEXT, arguments, homedepot, judgements, report

K = 10
TARGET = 0.95
_ROWS_AT_A_TIME = 50_000
_SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)  # of inverted lists
_DEPTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)  # of a walk through a graph
_LINKS, _BUILD_DEPTH = 32, 100

Search = Callable[[np.ndarray], np.ndarray]
"""From query vectors, float32 `[Q, d]`, to rows of items, int `[Q, 10]`."""


@dataclass
class Built:
    """An index, and the settings of its search.

    Attributes:
        search: with the setting that was used last.
        settings: to try, the cheapest first; none where there is nothing to choose.
        use: makes `search` work with one of them.
    """

    search: Search
    settings: Sequence[int] = ()
    use: Callable[[int], None] = lambda setting: None


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--items", type=int, nargs="+", default=[54_667, 250_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=400, help="half of them to choose by")
    parser.add_argument("--noise", type=float, default=0.4, help="length of what is added")
    parser.add_argument("--vectors", type=Path, help=".npy file that item vectors are kept in")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors, queries = _encoded(options.data, options.vectors, options.queries)
        np.save(folder / "queries.npy", queries)
        for count in options.items:
            np.save(folder / "items.npy", grown(vectors, count, options.noise))
            np.save(folder / "truth.npy", _exact(np.load(folder / "items.npy"), queries))
            for system in options.systems:
                command = [sys.executable, __file__, "--measure", system, str(folder)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = {"items": count, "system": system} | json.loads(done.stdout.splitlines()[-1])
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
            report("index_scale", "Search in larger catalogues", rows, **_plain(options))


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {"queries": options.queries, "noise": options.noise, "k": K, "target": TARGET}


def _encoded(data: Path, kept: Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the titles and of queries, float32, of length one."""
    from towers import Retriever, TextSettings
    from towers.encoding import fast_dtype

    catalog, texts = homedepot(data)
    retriever = Retriever.from_preset(text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))
    if kept and kept.is_file():
        vectors = np.load(kept)
    else:
        vectors = retriever.encode_items(texts, dtype=fast_dtype())
        if kept:
            np.save(kept, vectors)
    asked = judgements(data, "homedepot", "valid", catalog).queries
    chosen = np.random.default_rng(0).permutation(len(asked))[:count]
    return vectors, retriever.encode_queries([asked[row] for row in chosen.tolist()])


def grown(vectors: np.ndarray, count: int, noise: float) -> np.ndarray:
    """As many vectors of length one: the given ones first, then moved copies; float32."""
    draw = np.random.default_rng(0)
    grown = np.empty((count, vectors.shape[1]), np.float32)
    for start in range(0, count, _ROWS_AT_A_TIME):
        part = np.arange(start, min(start + _ROWS_AT_A_TIME, count))
        moved = vectors[part % len(vectors)].copy()
        added = draw.standard_normal(moved.shape, np.float32)
        added *= noise / np.linalg.norm(added, axis=1, keepdims=True)
        moved += np.where((part < len(vectors))[:, None], 0, added)
        grown[part] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return grown


def _exact(items: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The lowest of the ten best scores of each query, ``[Q]``: what reaches it is one of them."""
    best = np.full((len(queries), K), -np.inf, np.float32)
    for start in range(0, len(items), _ROWS_AT_A_TIME):
        scores = np.concatenate([best, queries @ items[start : start + _ROWS_AT_A_TIME].T], axis=1)
        best = -np.partition(-scores, K - 1, axis=1)[:, :K]
    return best.min(axis=1)


def measure(system: str, folder: Path) -> dict[str, Any]:
    """Builds one system and measures it.

    Args:
        system: its name.
        folder: holds items, queries and the scores to reach.
    """
    items, queries = np.load(folder / "items.npy"), np.load(folder / "queries.npy")
    least = np.load(folder / "truth.npy")
    half = len(queries) // 2
    before = _memory("VmRSS")
    start = time.perf_counter()
    built = SYSTEMS[system](items, queries[:half])
    seconds = time.perf_counter() - start

    def found(part: slice) -> np.ndarray:
        rows = np.concatenate([built.search(query[None]) for query in queries[part]])
        scores = np.einsum("qd,qkd->qk", queries[part], items[rows])
        # Exact to the rounding of another order of adding up.
        return ((scores >= least[part, None] - 1e-5) & (rows >= 0)).mean(axis=1)

    setting = None
    for setting in built.settings:
        built.use(setting)
        recalls = found(slice(half))
        if recalls.mean() - 2 * recalls.std() / math.sqrt(half) >= TARGET:
            break
    recall = float(found(slice(half, None)).mean())
    times = []
    for query in queries[half:]:
        begun = time.perf_counter()
        built.search(query[None])
        times.append(time.perf_counter() - begun)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {
        "build, s": round(seconds, 1),
        "memory beside the items', MB": round((_memory("VmRSS") - before) / 1e6),
        "peak memory, MB": round(_memory("VmHWM") / 1e6),
        "setting": setting,
        "recall@10": round(recall, 3),
        "p50, ms": round(float(p50), 2),
        "p99, ms": round(float(p99), 2),
    }


def _memory(field: str) -> int:
    """Resident bytes of this process, now (VmRSS) or at most (VmHWM); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _ours(kind: Any) -> Callable[[np.ndarray, np.ndarray], Built]:
    """An index of `serving.index`, tuned by itself; ``build`` includes the tuning."""

    def build(items: np.ndarray, queries: np.ndarray) -> Built:
        import tensorflow as tf

        from serving.index.auto import choose_index

        ids = np.arange(len(items)).astype(str).tolist()
        index = choose_index(ids, items, queries, kind=kind, k=K, target_recall=TARGET).index
        print(kind, index.parameters, file=sys.stderr)
        search = tf.function(
            lambda query: index(query)[1],
            input_signature=[tf.TensorSpec([None, items.shape[1]], tf.float32)],
            autograph=False,
        )

        def rows(vectors: np.ndarray) -> np.ndarray:
            found = search(tf.constant(vectors)).numpy()
            return np.array([[int(item_id or -1) for item_id in line] for line in found])

        rows(queries[:1])  # traced
        return Built(rows)

    return build


def _faiss_flat(items: np.ndarray, queries: np.ndarray) -> Built:
    import faiss

    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return Built(lambda vectors: index.search(vectors, K)[1])


def _faiss_ivf(items: np.ndarray, queries: np.ndarray) -> Built:
    import faiss

    lists = 4 * math.isqrt(len(items))
    index = faiss.index_factory(items.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(items[np.random.default_rng(0).permutation(len(items))[: 40 * lists]])
    index.add(items)

    def use(setting: int) -> None:
        faiss.extract_index_ivf(index).nprobe = setting

    settings = sorted({math.ceil(lists * share) for share in _SHARES})
    return Built(lambda vectors: index.search(vectors, K)[1], settings, use)


def _faiss_hnsw(items: np.ndarray, queries: np.ndarray) -> Built:
    import faiss

    index = faiss.IndexHNSWFlat(items.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_DEPTH
    index.add(items)

    def use(setting: int) -> None:
        index.hnsw.efSearch = setting

    return Built(lambda vectors: index.search(vectors, K)[1], _DEPTHS, use)


def _hnswlib(items: np.ndarray, queries: np.ndarray) -> Built:
    import hnswlib

    index = hnswlib.Index("ip", items.shape[1])
    index.init_index(len(items), M=_LINKS, ef_construction=_BUILD_DEPTH, random_seed=0)
    for start in range(0, len(items), _ROWS_AT_A_TIME):
        index.add_items(items[start : start + _ROWS_AT_A_TIME])
    return Built(lambda vectors: index.knn_query(vectors, K)[0].astype(int), _DEPTHS, index.set_ef)


SYSTEMS: dict[str, Callable[[np.ndarray, np.ndarray], Built]] = {
    "ours, exact": _ours("exact"),
    "ours, partitioned": _ours("partitioned"),
    "ours, scann": _ours("scann"),
    "faiss, flat": _faiss_flat,
    "faiss, IVF": _faiss_ivf,
    "faiss, HNSW": _faiss_hnsw,
    "hnswlib": _hnswlib,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
