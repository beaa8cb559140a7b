"""What augmentation and a warm-up on the catalogue do to few-shot training.

Home Depot's validation queries against a pool of candidates, full fine-tuning. Nothing is held out
of the pairs: when to stop would be one more source of noise. Without `--shots` (or with 0) the
warm-up is measured without pairs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from reporting import HOMEDEPOT_TEXT, arguments, homedepot, judgements, report

from towers import DEFAULT_PRESET, Retriever, TextSettings
from training.config import AugmentConfig, FitConfig
from training.fit import adapt
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.shots import draw_shots
from training.warm_up import warm_up

CHANGES = ("none", "typos", "word_dropout", "word_swap", "units")


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--shots", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--changes", nargs="*", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--probability", type=float, default=0.3)
    parser.add_argument("--warm-up", type=float, nargs="*", default=[], help="peak rates to try")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--candidates", type=int, default=10_000)
    options = parser.parse_args()
    catalog, texts = homedepot(options.data)
    train = judgements(options.data, "homedepot", "train", catalog)
    valid = judgements(options.data, "homedepot", "valid", catalog)
    some = np.random.default_rng(0).permutation(len(valid.queries))[: options.queries]
    pool = CandidatePool(valid.select_queries(some), texts, size=options.candidates)
    rows = []
    for row in _rows(options, texts, train, pool):
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    report(
        "augmentation",
        f"homedepot valid, {options.queries} queries, {len(pool.rows):,} candidates, nDCG@10",
        rows,
        queries=options.queries,
        candidates=len(pool.rows),
        seeds=options.seeds,
        probability=options.probability,
    )


def _rows(
    options: Any, texts: list[str], train: Interactions, pool: CandidatePool
) -> Iterator[dict[str, Any]]:
    start = Retriever.from_preset(DEFAULT_PRESET, text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))
    yield _row("zero-shot", 0, [pool.score(start)])
    warm = {}
    for rate in options.warm_up:
        with tempfile.TemporaryDirectory() as folder:
            warm[rate], _ = warm_up(
                start, texts, FitConfig(), folder=Path(folder), learning_rate=rate
            )
        yield _row(f"warm-up at {rate:g}", 0, [pool.score(warm[rate])])
    for shots in options.shots:
        for name in options.changes:
            chances = {} if name == "none" else {name: options.probability}
            augment = AugmentConfig(**chances)
            yield _row(
                name, shots, _scores(options.seeds, shots, start, texts, train, pool, augment)
            )
        for rate, towers in warm.items():
            found = _scores(options.seeds, shots, towers, texts, train, pool, AugmentConfig())
            yield _row(f"warm-up at {rate:g}", shots, found)


def _scores(
    seeds: int,
    shots: int,
    start: Retriever,
    texts: list[str],
    train: Interactions,
    pool: CandidatePool,
    augment: AugmentConfig,
) -> list[float]:
    found = []
    for seed in range(seeds):
        pairs = draw_shots(train, shots, seed=seed)
        config = FitConfig(held_out=0.0, augment=augment)
        with tempfile.TemporaryDirectory() as folder:
            result = adapt(start, pairs, texts, config, folder=Path(folder), seed=seed)
        found.append(pool.score(result.retriever))
    return found


def _row(name: str, shots: int, scores: list[float]) -> dict[str, Any]:
    by_seed = " ".join(f"{score:.4f}" for score in scores)
    return {
        "what": name,
        "shots": shots,
        "nDCG@10": round(float(np.mean(scores)), 4),
        "by seed": by_seed,
    }


if __name__ == "__main__":
    main()
