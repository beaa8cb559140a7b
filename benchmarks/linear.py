"""From new pairs to a new version by a linear map, where the catalogue has been encoded before.

`linear` maps the vectors that the untrained towers made, so that no item is encoded again. Measured
in one process, TensorFlow loaded, towers and vectors in memory: fitting the map, choosing the
weight of words, and writing the version.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from reporting import HOMEDEPOT_TEXT, arguments, homedepot, judgements, report

from serving.export import export_retriever
from towers import Retriever, TextSettings
from towers.cli.lexical import lexical_fields, lexical_scorer
from towers.encoding import fast_dtype
from training.fit import adapt
from training.lexical_weight import choose_lexical_weight
from training.shots import draw_shots


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--shots", type=int, default=512)
    options = parser.parse_args()
    catalog, texts = homedepot(options.data)
    pairs = draw_shots(
        judgements(options.data, "homedepot", "train", catalog), options.shots, seed=0
    )
    plain = Retriever.from_preset(text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))
    retriever = plain.knowing(texts, plain.encode_base(texts, dtype=fast_dtype()))
    lexical = lexical_scorer(HOMEDEPOT_TEXT, catalog)
    rows = []
    for name, with_words in (("towers alone", False), ("with words", True)):
        row: dict[str, Any] = {"export": name, "items": len(texts), "pairs": len(pairs)}
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            result = adapt(retriever, pairs, texts, method="linear", folder=Path(folder))
            row["map, s"] = time.perf_counter() - start
            start, weight = time.perf_counter(), 0.0
            if with_words:
                weight = choose_lexical_weight(
                    retriever, pairs, texts, lexical, adapted=result.retriever
                ).weight
            row["weight of words, s"] = time.perf_counter() - start
            start = time.perf_counter()
            export_retriever(
                result.retriever,
                catalog.item_ids.tolist(),
                texts,
                Path(folder) / "homedepot",
                index="exact",
                item_embeddings=result.retriever.encode_items(texts),
                lexical_weight=weight,
                lexical_fields=lexical_fields(HOMEDEPOT_TEXT, catalog) if with_words else None,
            )
            row["export, s"] = time.perf_counter() - start
        took = {key: round(value, 1) for key, value in row.items() if key.endswith(", s")}
        rows.append(row | took | {"in all, s": round(sum(took.values()), 1)})
    report("linear", "A linear map and a new version", rows, shots=options.shots)


if __name__ == "__main__":
    main()
