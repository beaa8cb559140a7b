"""The lexical weight that is chosen from few shots, and what it is worth, with zero-shot towers.

For each data set and number of shots the weight is chosen as `towers train --lexical auto` does and
measured on queries that were not drawn from, over the whole catalogue. Choose settings on `--split
valid` (of ESCI, which has none: its train queries); look at `test` last.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from reporting import (
    ESCI_TEXT,
    HOMEDEPOT_TEXT,
    arguments,
    esci,
    homedepot,
    judgements,
    report,
)

from serving.lexical import LexicalIndex, normalised
from towers import Retriever, TextSettings
from towers.encoding import Progress, fast_dtype
from towers.item_text import ItemTemplate
from training.catalog import Catalog
from training.evaluation import evaluate
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer, choose_lexical_weight, fused
from training.search import Run
from training.shots import draw_shots
from training.train import render_items

SHOP = Path(__file__).parent.parent / "examples" / "shop"
GAINS = {0: 0.0, 1: 1.0, 2: 10.0, 3: 100.0}
SHOTS = (0, 8, 32, 128, 512)
WEIGHTS = tuple(step / 20 for step in range(21))
QUERIES_AT_A_TIME = 64


class KnownVectors:
    """Towers with the item vectors computed beforehand."""

    def __init__(self, towers: Retriever, texts: Sequence[str], vectors: np.ndarray) -> None:
        self.towers, self.vectors = towers, vectors
        self.rows = {text: row for row, text in enumerate(texts)}

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """As the towers."""
        return self.towers.encode_queries(queries)

    def encode_items(
        self, texts: Sequence[str], dtype: str | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Looks them up."""
        return self.vectors[[self.rows[text] for text in texts]]


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--vectors", type=Path, help="folder to keep item vectors in")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    catalog, texts = homedepot(options.data)
    rows += _measured(
        options,
        "homedepot",
        catalog,
        texts,
        HOMEDEPOT_TEXT,
        judgements(options.data, "homedepot", "train", catalog),
        judgements(options.data, "homedepot", options.split, catalog),
    )
    catalog, texts = esci(options.data)
    rows += _measured(
        options,
        "esci",
        catalog,
        texts,
        ESCI_TEXT,
        judgements(options.data, "esci", "train", catalog),
        judgements(options.data, "esci", "test" if options.split == "test" else "train", catalog),
        min_grade=3,
        gains=GAINS,
    )
    catalog = Catalog.read(SHOP / "catalog.csv")
    template = ItemTemplate.for_columns(catalog.table.column_names)
    rows += _measured(
        options,
        "sample shop",
        catalog,
        render_items(template, catalog),
        template,
        Interactions.read(SHOP / "train.csv", catalog),
        Interactions.read(SHOP / f"{options.split}.csv", catalog),
    )
    report(
        f"lexical_weight-{options.split}",
        f"Lexical weight chosen from shots, zero-shot towers, {options.split}",
        rows,
        seeds=options.seeds,
    )


def _measured(
    options: Any,
    name: str,
    catalog: Catalog,
    texts: list[str],
    template: ItemTemplate,
    train: Interactions,
    asked: Interactions,
    *,
    min_grade: int = 1,
    gains: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """The rows of one data set."""
    length = 64 if name == "homedepot" else 128
    towers = Retriever.from_preset(text=TextSettings(template.pattern, 32, length))
    kept = options.vectors / f"{name.replace(' ', '_')}.npy" if options.vectors else None
    if kept is not None and kept.exists():
        items = np.load(kept).astype(np.float32)
    else:
        items = towers.encode_items(texts, dtype=fast_dtype())
        if kept is not None:
            np.save(kept, items)
    columns = {
        column: [text or "" for text in catalog.column(column)] for column in template.columns
    }
    index = LexicalIndex.build(columns)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def score(queries: tf.Tensor) -> tf.Tensor:
        return normalised(index.scores(queries))

    def lexical(queries: Sequence[str]) -> np.ndarray:
        return score(tf.constant(list(queries))).numpy()

    known: Any = KnownVectors(towers, texts, items)
    by_weight = _by_weight(towers, items, lexical, asked, catalog, gains)
    best = max(by_weight, key=lambda weight: by_weight[weight])
    rows = []
    for count in SHOTS:
        if count > len(train.positives(min_grade)):
            continue
        weights, seconds = [], []
        for seed in range(options.seeds if count else 1):
            shots = draw_shots(train, count, seed=seed, min_grade=min_grade) if count else None
            start = time.perf_counter()
            weights.append(choose_lexical_weight(known, shots, texts, lexical, seed=seed).weight)
            seconds.append(time.perf_counter() - start)
        found = [by_weight[weight] for weight in weights]
        rows.append(
            {
                "data": name,
                "shots": count,
                "weights": " ".join(f"{weight:g}" for weight in weights),
                "nDCG@10": round(float(np.mean(found)), 4),
                "worst": round(min(found), 4),
                "at 0": round(by_weight[0.0], 4),
                "at .6": round(by_weight[0.6], 4),
                "best": f"{by_weight[best]:.4f} at {best:g}",
                "choosing, s": round(float(np.mean(seconds)), 1),
            }
        )
    return rows


def _by_weight(
    towers: Retriever,
    items: np.ndarray,
    lexical: LexicalScorer,
    asked: Interactions,
    catalog: Catalog,
    gains: Mapping[int, float] | None,
) -> dict[float, float]:
    """nDCG@10 at every weight."""
    queries = towers.encode_queries(asked.queries)
    found: dict[float, list[Any]] = {weight: [] for weight in WEIGHTS}
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        cosine, words = queries[part] @ items.T, lexical(asked.queries[part])
        for weight in WEIGHTS:
            found[weight].append(tf.math.top_k(fused(cosine, words, weight), 10))
    means = {}
    for weight, parts in found.items():
        scores = np.concatenate([part.values.numpy() for part in parts])
        rows = np.concatenate([part.indices.numpy() for part in parts]).astype(np.int64)
        run = Run(list(asked.queries), rows, scores)
        means[weight] = evaluate(run, asked, catalog, measures=["nDCG@10"], gains=gains).means[
            "nDCG@10"
        ]
    return means


if __name__ == "__main__":
    main()
