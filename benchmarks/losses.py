"""What each loss, kind of negative and regulariser does to few-shot training on Home Depot.

Validation queries are ranked against a pool of 10,000 items, which is the whole catalogue of this
experiment: all items judged for them and those of the training pairs, and random ones. Everything
is trained for five epochs, and the last weights count: no query is held out, nothing is chosen.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from reporting import HOMEDEPOT_TEXT, arguments, homedepot, judgements, report

from towers import Retriever, TextSettings
from towers.cli.lexical import lexical_scorer
from towers.encoding import fast_dtype
from training.catalog import Catalog
from training.config import FitConfig
from training.fit import adapt
from training.interactions import Interactions
from training.lexical_weight import fused, ndcg_by_query
from training.shots import draw_shots

LEXICAL_WEIGHT = 0.4
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hard_negatives, towers": {"hard_negatives": 1},
    "hard_negatives, both": {"hard_negatives": 1, "hard_negatives_from": "both"},
    "cached_negatives": {"cached_negatives": 4096},
    "anchor": {"anchor": 1.0},
    "margin": {"loss": "margin"},
    "graded": {"loss": "graded"},
    "fgm": {"fgm": 1.0},
    "r_drop": {"r_drop": 1.0},
    "cached_negatives, remine": {"cached_negatives": 4096, "remine": 1},
    "hard_negatives, margin": {"hard_negatives": 1, "loss": "margin"},
    "cached_negatives, anchor": {"cached_negatives": 4096, "anchor": 1.0},
}


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--shots", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    options = parser.parse_args()
    whole, _ = homedepot(options.data)
    queries = judgements(options.data, "homedepot", "valid", whole)
    rng = np.random.default_rng(0)
    queries = queries.select_queries(rng.permutation(len(queries.queries))[: options.queries])
    train = judgements(options.data, "homedepot", "train", whole)
    draws = {
        (shots, seed): draw_shots(train, shots, seed=seed)
        for seed in range(options.seeds)
        for shots in options.shots
    }
    judged = np.unique(np.concatenate([j.item_row for j in (queries, *draws.values())]))
    others = rng.permutation(np.setdiff1d(np.arange(len(whole)), judged))
    rows = np.sort(np.concatenate([judged, others[: max(0, options.pool - len(judged))]]))
    catalog = Catalog(whole.table.take(rows), whole.path, whole.sha256)
    texts = [title or "" for title in catalog.column("title")]

    def pooled(judged: Interactions) -> Interactions:
        return replace(judged, item_row=np.searchsorted(rows, judged.item_row), catalog=catalog)

    queries = pooled(queries)
    gains = np.zeros((len(queries.queries), len(rows)), np.float32)
    gains[queries.query_row, queries.item_row] = queries.grade
    lexical = lexical_scorer(HOMEDEPOT_TEXT, catalog)
    words = np.concatenate(
        [lexical(queries.queries[start : start + 64]) for start in range(0, len(gains), 64)]
    )
    zero_shot = Retriever.from_preset(text=TextSettings("{title}", 32, 64))

    def mean_ndcg(scores: np.ndarray) -> float:
        return float(ndcg_by_query(scores, gains)[gains.any(axis=1)].mean())

    def measure(retriever: Retriever) -> tuple[float, float]:
        items = retriever.encode_items(texts, dtype=fast_dtype())
        cosine = retriever.encode_queries(queries.queries) @ items.T
        both = fused(cosine, words, LEXICAL_WEIGHT)
        return mean_ndcg(cosine), mean_ndcg(both)

    results: dict[tuple[str, int], list[tuple[float, float, float]]] = {
        ("zero-shot", 0): [(*measure(zero_shot), 0.0)]
    }
    for (shots, seed), drawn in draws.items():
        for name in options.recipes:
            config = FitConfig(held_out=0.0, **RECIPES[name])
            with tempfile.TemporaryDirectory() as folder:
                result = adapt(
                    zero_shot,
                    pooled(drawn),
                    texts,
                    config,
                    folder=Path(folder),
                    lexical=lexical,
                    seed=seed,
                )
            found = (*measure(result.retriever), result.seconds)
            results.setdefault((name, shots), []).append(found)
            print(f"{name}, {shots} pairs, seed {seed}: {found}", file=sys.stderr, flush=True)
    report(
        "losses-homedepot-valid",
        f"homedepot valid, nDCG@10 among {len(rows):,} items, {options.seeds} seeds",
        [
            {
                "recipe": name,
                "pairs": shots,
                "towers": _shown([one[0] for one in values]),
                f"with words ({LEXICAL_WEIGHT:g})": _shown([one[1] for one in values]),
                "training, s": round(float(np.mean([one[2] for one in values])), 1),
            }
            for (name, shots), values in sorted(results.items(), key=lambda entry: entry[0][1])
        ],
        recipes=RECIPES,
        queries=len(queries.queries),
    )


def _shown(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"


if __name__ == "__main__":
    main()
