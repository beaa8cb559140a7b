"""A catalogue through the Beam pipeline of `towers encode`: memory as it grows, and overhead.

Memory: texts made of the sample shop's titles, by a tiny encoder (two layers, 32 wide, with
MiniLM's vocabulary), so that a million texts take minutes; `towers encode` is a process of its own,
whose resident memory is read twice a second. Overhead: Home Depot titles by all-MiniLM-L6-v2,
beside the in-process encoder, in float32 as the export computes.
"""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from reporting import arguments, homedepot, report

from serving.export import export_retriever
from towers import (
    DEFAULT_PRESET,
    Retriever,
    TextEncoder,
    TextSettings,
    Tokenizer,
    TwoTower,
    load_vocabulary,
)

SHOP = Path(__file__).parent.parent / "examples" / "shop" / "catalog.csv"
_POLL_SECONDS = 0.5
_TEXT = TextSettings("{title}", 32, 128)


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--texts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--titles", type=int, default=20_000, help="by all-MiniLM-L6-v2; 0: none")
    parser.add_argument("--shards", type=int, default=64)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = _export(_tiny_retriever(), folder / "tiny")
        for count in options.texts:
            path = _write(folder / f"{count}.jsonl", itertools.islice(_shop_texts(), count))
            measured = _encode(tiny, path, folder / f"vectors-{count}", options.shards)
            rows.append({"texts": count, "encoder": "tiny"} | measured | _NOT_COMPARED)
            print(rows[-1], file=sys.stderr, flush=True)
            path.unlink()
        if options.titles:
            rows.append(_overhead(options.data, options.titles, folder, options.shards))
    report("beam_encoding", "A catalogue through towers encode", rows, shards=options.shards)


_NOT_COMPARED = {"in process, s": None, "ratio": None, "largest difference": None}


def _overhead(data: Path, count: int, folder: Path, shards: int) -> dict[str, Any]:
    retriever = Retriever.from_preset(text=_TEXT)
    titles = homedepot(data)[1][:count]
    export = _export(retriever, folder / "minilm")
    path = _write(folder / "titles.jsonl", titles)
    measured = _encode(export, path, folder / "vectors", shards)
    retriever.encode_items(titles[:200], dtype="float32")
    start = time.perf_counter()
    expected = retriever.encode_items(titles, dtype="float32")
    seconds = time.perf_counter() - start
    difference = 0.0
    for part in sorted((folder / "vectors").glob("part-*.parquet")):
        table = pq.read_table(part)
        places = [int(item_id) for item_id in table["item_id"].to_pylist()]
        vectors = np.array(table["vector"].to_pylist(), np.float32)
        difference = max(difference, float(np.abs(vectors - expected[places]).max()))
    return (
        {"texts": count, "encoder": DEFAULT_PRESET}
        | measured
        | {
            "in process, s": round(seconds, 1),
            "ratio": round(measured["seconds"] / seconds, 2),
            "largest difference": difference,
        }
    )


def _encode(export: Path, catalog: Path, output: Path, shards: int) -> dict[str, Any]:
    """Runs `towers encode`; of its time the start, up to the first finished shard, is apart."""
    command = [sys.executable, "-m", "towers", "encode", "--json", "--model", str(export)]
    command += ["--catalog", str(catalog), "--output", str(output), "--shards", str(shards)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    memory: list[tuple[int, int]] = []  # finished shards, resident MB
    first = None
    while process.poll() is None:
        finished = len(list((output / "finished").glob("part-*.json")))
        if finished and first is None:
            first = time.perf_counter() - start
        if resident := _resident_mb(process.pid):
            memory.append((finished, resident))
        time.sleep(_POLL_SECONDS)
    seconds = time.perf_counter() - start
    facts = json.loads(process.communicate()[0])
    while_encoding = [(done, mb) for done, mb in memory if done] or memory
    return {
        "seconds": round(seconds, 1),
        "to the first shard, s": round(first or seconds, 1),
        "texts/s": round(facts["items"] / seconds),
        "memory after a tenth, MB": _after(while_encoding, shards // 10),
        "after half, MB": _after(while_encoding, shards // 2),
        "at the end, MB": while_encoding[-1][1],
        "peak, MB": max(mb for _, mb in memory),
    }


def _after(memory: list[tuple[int, int]], shards: int) -> int:
    return next((mb for done, mb in memory if done >= shards), memory[-1][1])


def _resident_mb(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), None)


def _shop_texts() -> Iterator[str]:
    """Pairs of the sample shop's titles, numbered: as many as are wanted, no two the same."""
    with SHOP.open(encoding="utf-8", newline="") as file:
        titles = [row["title"] for row in csv.DictReader(file)]
    pairs = itertools.cycle(itertools.product(titles, titles))
    return (f"{first} {second} {number}" for number, (first, second) in enumerate(pairs))


def _write(path: Path, titles: Iterable[str]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number, title in enumerate(titles):
            file.write(json.dumps({"item_id": str(number), "title": title}) + "\n")
    return path


def _export(retriever: Retriever, base: Path) -> Path:
    """An export to encode by; what items it has itself does not matter."""
    export_retriever(retriever, ["1", "2"], ["Copper kettle", "Garden rake"], base, k=1)
    return base


def _tiny_retriever() -> Retriever:
    import keras
    import keras_hub

    vocabulary = load_vocabulary(DEFAULT_PRESET)
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary.tokens),
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=_TEXT.item_max_length,
    )
    tower = TextEncoder(backbone)
    return Retriever(TwoTower(tower, tower), Tokenizer.from_vocabulary(vocabulary), _TEXT)


if __name__ == "__main__":
    main()
