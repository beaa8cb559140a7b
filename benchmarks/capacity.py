"""What a catalogue costs, stage by stage, measured, fitted, and extended to sizes not run here.

Measured: encoding by a SavedModel; exporting the exact index with words, loading and searching it,
each in a process of its own, over Home Depot's titles, repeated with a number behind them and
vectors moved by noise where more are wanted. Indexes of vectors alone, up to a million, are those
of `index_scale.py`. The plan is made on paper, from the fits and `Assumptions`.

`--plan-only` fits and plans anew from the results on disk.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from index_scale import grown
from reporting import RESULTS, arguments, homedepot, judgements, report

WORDS = "exact, words"
KINDS = (WORDS, "exact", "partitioned", "scann")
DOCUMENT = Path(__file__).parent.parent / "docs" / "capacity.md"
QUERY_BYTES = 384 * 4 + 100  # a shard is sent the vector
_MARKS = "<!-- {} of benchmarks/capacity.py -->"
_QUERIES = 100


@dataclass(frozen=True)
class Assumptions:
    """What the plan takes for granted.

    Attributes:
        cores: of one machine, each as quick as one of those measured on.
        memory_gb: of one machine.
        usable: share of the memory that versions may take.
        busy: share of the cores that queries keep busy; the rest is for peaks.
        versions: that a server holds at once while one takes over from another.
        encoders: machines that encode a catalogue.
        search_ms: how long a shard may search for one query.
        replicas: of each shard, at least.
        answer_bytes: of one shard to one query: ten ids of 16 bytes, scores, places, headers.
        queries: a second, none of them the same.
    """

    cores: int = 16
    memory_gb: float = 64.0
    usable: float = 0.75
    busy: float = 0.5
    versions: int = 2
    encoders: int = 100
    search_ms: float = 50.0
    replicas: int = 2
    answer_bytes: int = 600
    queries: int = 100_000


# Measuring


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--encode", type=int, nargs="+", default=[1_000, 3_000, 10_000])
    parser.add_argument("--vectors", type=Path, help=".npy file of the titles' vectors, if there")
    parser.add_argument("--plan-only", action="store_true")
    options = parser.parse_args()
    path = RESULTS / "capacity.json"
    if not options.plan_only:
        with tempfile.TemporaryDirectory() as name:
            report("capacity", "Measured", _measured(options, Path(name)))
    rows = json.loads(path.read_text("utf-8"))["rows"]
    scale = json.loads((RESULTS / "index_scale.json").read_text("utf-8"))["rows"]
    fits = fit_all(rows, scale)
    text = DOCUMENT.read_text("utf-8")
    for name, tables in (
        ("measured", measured_tables(rows)),
        ("fits", fit_table(fits)),
        ("plan", plan_tables(fits, Assumptions())),
    ):
        print(tables)
        text = _placed(text, name, tables)
    DOCUMENT.write_text(text, "utf-8")


def _placed(text: str, name: str, tables: str) -> str:
    begin, end = _MARKS.format(name), _MARKS.format(f"end of {name}")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{tables}\n{end}{rest.partition(end)[2]}"


def _measured(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = [_apart("encode", options, count, "", folder) for count in options.encode]
    for count in options.items:
        rows.append(
            _apart("export", options, count, WORDS, folder)
            | _apart("search", options, count, WORDS, folder)
        )
        print(rows[-1], file=sys.stderr, flush=True)
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _apart(
    stage: str, options: argparse.Namespace, count: int, kind: str, folder: Path
) -> dict[str, Any]:
    """A stage in a process of its own, so that its memory is its own."""
    command = [sys.executable, __file__, "--measure", stage, str(options.data), str(count), kind]
    command += [str(folder), str(options.vectors or "")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"items": count, "kind": kind or "encode"} | json.loads(done.stdout.splitlines()[-1])


def _encode(data: Path, count: int, kind: str, folder: Path, vectors: str) -> dict[str, Any]:
    from serving.bulk.encoder import SavedEncoder
    from serving.item_encoder import save_item_encoder

    if not (folder / "encoder").is_dir():
        save_item_encoder(_retriever(), folder / "encoder")
    encoder, titles = SavedEncoder(folder / "encoder"), _titles(data, count)
    encoder.encode(titles[:256])
    start, cpu = time.perf_counter(), time.process_time()
    encoder.encode(titles)
    return {
        "encode, s": round(time.perf_counter() - start, 2),
        "encode, core s": round(time.process_time() - cpu, 2),
    }


def _export(data: Path, count: int, kind: str, folder: Path, vectors: str) -> dict[str, Any]:
    from serving.export import export_retriever

    retriever, titles = _retriever(), _titles(data, count)
    kept = Path(vectors) if vectors else folder / "vectors.npy"
    if not kept.is_file():
        np.save(kept, retriever.encode_items(_titles(data, None)))
    items = grown(np.load(kept), count, 0.4)
    ids = [f"item-{number}" for number in range(count)]
    start, cpu = time.perf_counter(), time.process_time()
    result = export_retriever(
        *(retriever, ids, titles, folder / f"items-{count}"),
        lexical_weight=0.4,
        item_embeddings=items,
    )
    seconds, cores = time.perf_counter() - start, time.process_time() - cpu
    sizes = {path: path.stat().st_size for path in result.path.rglob("*") if path.is_file()}
    stored = sum(size for path, size in sizes.items() if "assets.extra" in path.parts)
    return {
        "export, s": round(seconds, 1),
        "export, core s": round(cores, 1),
        "export's peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "served part on disk, MB": round((sum(sizes.values()) - stored) / 1e6, 1),
        "on disk, MB": round(sum(sizes.values()) / 1e6, 1),
        "graph file, MB": round(sizes[result.path / "saved_model.pb"] / 1e6, 2),
    }


def _search(data: Path, count: int, kind: str, folder: Path, vectors: str) -> dict[str, Any]:
    import tensorflow as tf

    from serving.loading import load_export

    catalog, _ = homedepot(data)
    asked = judgements(data, "homedepot", "valid", catalog).queries[: 2 * _QUERIES]
    del catalog
    before = _resident_mb()
    start = time.perf_counter()
    model = load_export(folder / f"items-{count}" / "1")
    loaded = time.perf_counter() - start
    times: dict[str, list[float]] = {"search": [], "encode_query": []}
    cores: dict[str, float] = {}
    for name, took in times.items():
        signature = model.signatures[name]
        for query in asked[:_QUERIES]:
            signature(query=tf.constant([query]))
        cpu = time.process_time()
        for query in asked[_QUERIES:]:
            begun = time.perf_counter()
            signature(query=tf.constant([query]))
            took.append(time.perf_counter() - begun)
        cores[name] = (time.process_time() - cpu) / len(took)
    return {
        "load, s": round(loaded, 1),
        "memory of a version, MB": _resident_mb() - before,
        "search, ms": round(float(np.percentile(times["search"], 10)) * 1e3, 2),
        "search, core ms": round(cores["search"] * 1e3, 2),
        "encoding, ms": round(float(np.percentile(times["encode_query"], 10)) * 1e3, 2),
        "of it encoding, core ms": round(cores["encode_query"] * 1e3, 2),
    }


def _retriever() -> Any:
    from towers import Retriever, TextSettings

    return Retriever.from_preset(text=TextSettings("{title}", 32, 64))


def _titles(data: Path, count: int | None) -> list[str]:
    titles = homedepot(data)[1]
    if count is None:
        return titles
    rounds = (
        f"{title} {turn}" if turn else title
        for turn in range(math.ceil(count / len(titles)))
        for title in titles
    )
    return [title for title, _ in zip(rounds, range(count), strict=False)]


def _resident_mb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


# Fitting


@dataclass(frozen=True)
class Fit:
    """A law of the number of items, fitted to measurements.

    Attributes:
        law: ``affine``, a + b n, or ``power``, a n^b.
        a: see `law`.
        b: see `law`.
        error: the largest relative difference at a measured point.
        points: how many were measured.
        largest: the largest number of items measured.
    """

    law: str
    a: float
    b: float
    error: float
    points: int
    largest: int

    def __call__(self, items: float) -> float:
        """The cost of so many items."""
        return self.a + self.b * items if self.law == "affine" else self.a * items**self.b


def fit(law: str, items: Sequence[int], values: Sequence[float]) -> Fit:
    """Least squares of relative errors; neither coefficient of an affine law is negative."""
    from scipy.optimize import nnls

    n, y = np.asarray(items, float), np.asarray(values, float)
    if law == "affine":
        (a, b), _ = nnls(np.stack([1 / y, n / y], axis=1), np.ones(len(y)))
        found = a + b * n
    else:
        b, log_a = np.polyfit(np.log(n), np.log(y), 1)
        a = math.exp(log_a)
        found = a * n**b
    error = float(np.abs(found / y - 1).max())
    return Fit(law, float(a), float(b), error, len(y), int(n.max()))


_ENCODE, _ENCODE_QUERY = "encode items, core s", "encode a query, core ms"
_SEARCH, _BUILD = "search without encoding, ms", "export, s"
_MEMORY, _PEAK = "memory of a version, MB", "export's peak memory, MB"
_GRAPH = "graph file, MB"


def fit_all(rows: Sequence[dict[str, Any]], scale: Sequence[dict[str, Any]]) -> dict[str, Fit]:
    """All fits by name, "KIND: STAGE"; `scale` are the rows of index_scale.json."""
    encode = [row for row in rows if row["kind"] == "encode"]
    words = [row for row in rows if row["kind"] == WORDS]

    def of(some: Sequence[dict[str, Any]], stage: str, law: str = "affine") -> Fit:
        return fit(law, [row["items"] for row in some], [row[stage] for row in some])

    mean = float(np.median([row["of it encoding, core ms"] for row in words]))
    fits = {
        _ENCODE: of(encode, "encode, core s"),
        _ENCODE_QUERY: Fit("affine", mean, 0.0, math.nan, len(words), 1),
        f"{WORDS}: {_BUILD}": of(words, "export, core s"),
    }
    for stage in (_MEMORY, _PEAK, _GRAPH, "on disk, MB"):
        fits[f"{WORDS}: {stage}"] = of(words, stage)
    for kind in KINDS[1:]:
        some = [row for row in scale if row["system"] == f"ours, {kind}"]
        law = "affine" if kind == "exact" else "power"
        fits[f"{kind}: {_SEARCH}"] = of(some, "p50, ms", law)
        fits[f"{kind}: {_BUILD}"] = of(some, "build, s", law)
        fits[f"{kind}: {_MEMORY}"] = of(some, "memory beside the items', MB")
        fits[f"{kind}: {_PEAK}"] = of(some, "peak memory, MB")
    fits[f"{WORDS}: {_SEARCH}"] = _with_words(fits[f"exact: {_SEARCH}"], words)
    return fits


def _with_words(exact: Fit, words: Sequence[dict[str, Any]]) -> Fit:
    """Exact search of vectors, and what words take where there are few of those."""
    took = [row["search, core ms"] - row["of it encoding, core ms"] for row in words]
    law = Fit("affine", exact.a + took[0], exact.b, 0.0, len(words), words[-1]["items"])
    errors = [abs(law(row["items"]) / ms - 1) for row, ms in zip(words, took, strict=True)]
    return replace(law, error=max(errors))


# Planning


@dataclass(frozen=True)
class Plan:
    """What it takes to serve a catalogue.

    Attributes:
        kind: of index.
        items: in the catalogue.
        shard_items: in a shard.
        limit: what allows no more of them.
        shards: their number.
        core_ms: that one query takes, on all shards together.
        machines: that serve.
        memory_tb: theirs.
        build_hours: to export one shard; all are built side by side.
        encode_hours: to encode the catalogue on `Assumptions.encoders` machines.
        gather_gbit: a second, from shards to those who asked.
        slow: share of queries that wait for a shard slower than its own 99th percentile.
    """

    kind: str
    items: int
    shard_items: int
    limit: str
    shards: int
    core_ms: float
    machines: int
    memory_tb: float
    build_hours: float
    encode_hours: float
    gather_gbit: float
    slow: float


def limits(fits: dict[str, Fit], kind: str, given: Assumptions) -> dict[str, float]:
    """For each thing that one index on one machine needs, the most items that it allows."""
    memory = given.memory_gb * 1000 * given.usable
    return {
        "memory": _most(fits[f"{kind}: {_MEMORY}"], memory / given.versions),
        "time of a search": _most(fits[f"{kind}: {_SEARCH}"], given.search_ms),
        "memory of the export": _most(fits[f"{kind}: {_PEAK}"], memory),
        "graph file of 2 GB": _most(fits[f"{WORDS}: {_GRAPH}"], 2**31 / 1e6),
    }


def _most(law: Fit, value: float) -> float:
    """The number of items at which a law has a value."""
    if law.law == "power":
        return float((value / law.a) ** (1 / law.b))
    return (value - law.a) / law.b if law.b else math.inf


def plan(fits: dict[str, Fit], kind: str, items: int, given: Assumptions) -> Plan:
    """A catalogue in as few shards as the limits allow, one a machine."""
    allowed = limits(fits, kind, given)
    limit = min(allowed, key=lambda name: allowed[name])
    shards = math.ceil(items / min(allowed[limit], items))
    shard_items = math.ceil(items / shards)
    # A search of one query runs on one core: core time and time by the clock agree (docs).
    core_ms = fits[_ENCODE_QUERY](1) + shards * fits[f"{kind}: {_SEARCH}"](shard_items)
    load = given.queries * core_ms / 1000 / (given.cores * given.busy)
    machines = shards * max(given.replicas, math.ceil(load / shards))
    return Plan(
        kind,
        items,
        shard_items,
        limit if shards > 1 else "the catalogue",
        shards,
        core_ms,
        machines,
        machines * given.memory_gb / 1000,
        fits[f"{kind}: {_BUILD}"](shard_items) / 3600,
        fits[_ENCODE](items) / (given.encoders * given.cores) / 3600,
        given.queries * shards * (given.answer_bytes + QUERY_BYTES) * 8 / 1e9,
        1 - 0.99**shards,
    )


# Showing


def measured_tables(rows: Sequence[dict[str, Any]]) -> str:
    """What was measured, in Markdown."""
    encode = [row for row in rows if row["kind"] == "encode"]
    names = ["items", "encode, s", "encode, core s"]
    tables = [
        _table(names, [[_count(row["items"]), *(row[x] for x in names[1:])] for row in encode])
    ]
    others = [row for row in rows if row["kind"] != "encode"]
    names = [name for name in others[0] if name not in ("encode, s", "encode, core s")]
    cells = [[_count(row["items"]), *(row[x] for x in names[1:])] for row in others]
    return "\n\n".join([*tables, _table(names, cells)])


def fit_table(fits: dict[str, Fit]) -> str:
    """The fits, in Markdown."""
    cells = []
    for name, law in fits.items():
        if law.law == "power":
            shown = f"{law.a:.3g} n^{law.b:.2f}"
        elif law.b == 0:
            shown = f"{law.a:.3g}"
        else:
            shown = f"{law.a:.3g} + {law.b * 1e6:.3g} n / 10^6"
        error = "" if math.isnan(law.error) else f"{law.error:.0%}"
        cells.append(
            [name, shown, error, law.points, _count(law.largest) if law.largest > 1 else ""]
        )
    return _table(["cost of n items", "law", "largest error", "points", "measured up to"], cells)


def plan_tables(fits: dict[str, Fit], given: Assumptions) -> str:
    """The plan and what breaks first, in Markdown."""
    plans = [plan(fits, kind, n, given) for n in (10**6, 10**8, 10**9) for kind in KINDS]
    cells = [
        [
            *(_count(one.items), one.kind, _count(one.shard_items), one.limit, f"{one.shards:,}"),
            *(f"{one.core_ms:,.0f}", f"{one.machines:,}", f"{one.memory_tb:,.1f}"),
            *(f"{one.build_hours:.2g}", f"{one.encode_hours:.2g}"),
            *(f"{one.gather_gbit:,.1f}", f"{one.slow:.0%}"),
        ]
        for one in plans
    ]
    names = ["items", "search", "items a shard", "limited by", "shards", "core ms a query"]
    names += ["machines", "RAM, TB", "export of a shard, h", "encode, h", "gather, Gbit/s"]
    names += ["queries that meet a p99"]
    allowed = {kind: limits(fits, kind, given) for kind in KINDS}
    reach = [[kind, *(_count(allowed[kind][name]) for name in allowed[kind])] for kind in KINDS]
    assumed = ", ".join(f"{name} {value}" for name, value in asdict(given).items())
    return "\n\n".join(
        [
            "The most items of one index on one machine:",
            _table(["search", *next(iter(allowed.values()))], reach),
            f"{given.queries:,} queries a second:",
            _table(names, cells),
            f"(`Assumptions`: {assumed})",
        ]
    )


def _count(items: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if items >= size:
            return f"{items / size:.3g} {letter}"
    return f"{items:.0f}"


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


_MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "encode": _encode,
    "export": _export,
    "search": _search,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        stage, data, items, kind, folder, vectors = sys.argv[2:]
        print(json.dumps(_MEASURES[stage](Path(data), int(items), kind, Path(folder), vectors)))
    else:
        main()
