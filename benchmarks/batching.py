"""CPU time of a query by the number of queries in a batch.

Of an export's `search`, in this process and without the network. CPU time, not latency: it is what
bounds the queries a second of a busy server, and other work on the machine changes it little.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
from reporting import arguments, homedepot, judgements, report

from serving.server.servable import Servable
from serving.server.tensorflow_runtime import set_up_tensorflow
from serving.versions import version_folders

_SIZES = (1, 2, 4, 8, 16, 32)


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--model-base-path", type=Path, action="append", required=True)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    catalog, _ = homedepot(options.data)
    queries = judgements(options.data, "homedepot", "valid", catalog).queries
    texts = np.array([query.encode() for query in queries], object)
    set_up_tensorflow(*options.model_base_path, intra_op_threads=1)
    rows = []
    for base in options.model_base_path:
        version, path = max(version_folders(base).items())
        search = Servable.load(path, version).signature("search")
        seconds: dict[int, list[float]] = {size: [] for size in _SIZES}
        for number in range(options.rounds + 2):
            for size in _SIZES:
                start = time.process_time()
                for part in range(0, _SIZES[-1], size):
                    first = (number * _SIZES[-1] + part) % (len(texts) - _SIZES[-1])
                    search.run({"query": texts[first : first + size]})
                if number >= 2:  # the first ones warm up
                    seconds[size].append((time.process_time() - start) / _SIZES[-1])
        rows.append(
            {"export": base.name}
            | {f"{size}, ms": round(median(seconds[size]) * 1e3, 2) for size in _SIZES}
        )
    report("batching", "CPU time of a query, by queries in a batch", rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
