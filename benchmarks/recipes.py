"""What each way of training is worth on Home Depot: losses, negatives, changed queries, warm-up.

Validation queries are ranked against a pool of 10,000 items, which is the whole catalogue of this
experiment: all items judged for them and those of the training pairs, and random ones. Everything
is trained to the end, and the last weights count: no query is held out, nothing is chosen.
Results are written after each training, so that one broken off has not been for nothing.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from reporting import HOMEDEPOT_TEXT, arguments, homedepot, judgements, report

from towers import Retriever, TextSettings
from towers.cli.lexical import lexical_scorer
from towers.encoding import fast_dtype
from training.catalog import Catalog
from training.config import AugmentConfig, FitConfig, Method
from training.fit import adapt
from training.interactions import Interactions
from training.lexical_weight import fused, ndcg_by_query
from training.shots import draw_shots
from training.warm_up import warm_up

LEXICAL_WEIGHT = 0.5


@dataclass(frozen=True)
class Recipe:
    """One way of training.

    Attributes:
        method: what is trained.
        fit: fields of the configuration.
        warm_up: peak rate of a warm-up on the catalogue before it; None for none.
    """

    method: Method = "full"
    fit: dict[str, Any] = field(default_factory=dict)
    warm_up: float | None = None


def _changed(**chances: Any) -> Recipe:
    return Recipe(fit={"augment": AugmentConfig(**chances)})


def _passes(epochs: int, learning_rate: float) -> Recipe:
    return Recipe(fit={"epochs": epochs, "learning_rate": learning_rate})


RECIPES = {
    "full": Recipe(),
    "distilled": Recipe("distilled"),
    "linear": Recipe("linear"),
    "hard negatives, towers": Recipe(fit={"hard_negatives": 1}),
    "hard negatives, both": Recipe(fit={"hard_negatives": 1, "hard_negatives_from": "both"}),
    "cached negatives": Recipe(fit={"cached_negatives": 4096}),
    "catalogue negatives": Recipe(fit={"catalog_negatives": 32}),
    "anchor": Recipe(fit={"anchor": 1.0}),
    "margin": Recipe(fit={"loss": "margin"}),
    "graded": Recipe(fit={"loss": "graded"}),
    "fgm": Recipe(fit={"fgm": 1.0}),
    "r_drop": Recipe(fit={"r_drop": 1.0}),
    "warm-up": Recipe(warm_up=2e-5),
    "typos": _changed(typos=0.3),
    "word dropout": _changed(word_dropout=0.3),
    "word swap": _changed(word_swap=0.3),
    "units": _changed(units=0.3),
    "typos, word dropout": _changed(typos=0.2, word_dropout=0.2),
    "rate 2e-5": _passes(5, 2e-5),
    "rate 5e-5": _passes(5, 5e-5),
    "rate 2e-4": _passes(5, 2e-4),
    "5 passes, 2.5e-5": _passes(5, 2.5e-5),
    "2 passes, 5e-5": _passes(2, 5e-5),
    "2 passes, 1e-4": _passes(2, 1e-4),
    "1 pass, 1e-4": _passes(1, 1e-4),
    "20 steps": Recipe(fit={"min_steps": 4}),
    "40 steps, 5e-5": Recipe(fit={"min_steps": 8, "learning_rate": 5e-5}),
    "80 steps, 2e-5": Recipe(fit={"min_steps": 16, "learning_rate": 2e-5}),
    "80 steps": Recipe(fit={"min_steps": 16}),
}
"""By name; steps are those of up to 128 pairs."""


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--shots", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--name", default="recipes", help="of the file of results")
    options = parser.parse_args()
    whole, _ = homedepot(options.data)
    queries = judgements(options.data, "homedepot", "valid", whole)
    rng = np.random.default_rng(0)
    queries = queries.select_queries(rng.permutation(len(queries.queries))[: options.queries])
    train = judgements(options.data, "homedepot", "train", whole)
    draws = {
        (shots, seed): draw_shots(train, shots, seed=seed, min_grade=1)
        for seed in options.seeds
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
    zero_shot = Retriever.from_preset(text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))

    def mean_ndcg(scores: np.ndarray) -> float:
        return float(ndcg_by_query(scores, gains)[gains.any(axis=1)].mean())

    def measure(retriever: Retriever) -> tuple[float, float]:
        items = retriever.encode_items(texts, dtype=fast_dtype())
        cosine = retriever.encode_queries(queries.queries) @ items.T
        return mean_ndcg(cosine), mean_ndcg(fused(cosine, words, LEXICAL_WEIGHT))

    def trained(recipe: Recipe, pairs: Interactions, seed: int) -> tuple[Retriever, float]:
        config = FitConfig(held_out=0.0, **recipe.fit)
        start, seconds = zero_shot, 0.0
        with tempfile.TemporaryDirectory() as folder:
            if recipe.warm_up is not None:
                start, _ = warm_up(
                    zero_shot,
                    texts,
                    config,
                    folder=Path(folder),
                    learning_rate=recipe.warm_up,
                    seed=seed,
                )
            if len(pairs):
                result = adapt(
                    start,
                    pairs,
                    texts,
                    config,
                    method=recipe.method,
                    folder=Path(folder),
                    lexical=lexical,
                    seed=seed,
                )
                start, seconds = result.retriever, result.seconds
        return start, seconds

    results = {("zero-shot", 0): [(*measure(zero_shot), 0.0)]}
    print("zero-shot", results["zero-shot", 0], file=sys.stderr, flush=True)
    for (shots, seed), drawn in draws.items():
        for name in options.recipes:
            retriever, seconds = trained(RECIPES[name], pooled(drawn), seed)
            found = (*measure(retriever), seconds)
            results.setdefault((name, shots), []).append(found)
            print(f"{name}, {shots} pairs, seed {seed}: {found}", file=sys.stderr, flush=True)
            report(
                options.name,
                f"homedepot valid, nDCG@10 among {len(rows):,} items, seeds {options.seeds}",
                [
                    {
                        "recipe": name,
                        "pairs": shots,
                        "towers": _shown([one[0] for one in values]),
                        f"with words ({LEXICAL_WEIGHT:g})": _shown([one[1] for one in values]),
                        "training, s": round(float(np.mean([one[2] for one in values])), 1),
                    }
                    for (name, shots), values in sorted(results.items(), key=lambda e: e[0][1])
                ],
                queries=len(queries.queries),
            )


def _shown(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"


if __name__ == "__main__":
    main()
