"""What pretraining on the catalogue's titles does to retrieval, without and with few-shot training.

Home Depot's validation queries against a pool of candidates: zero-shot towers, and towers adapted
to training pairs, on the encoder as it came and on pretrained ones. Nothing is held out of the
pairs: when to stop would be one more source of noise. `--shots` without a number leaves out
training on pairs. `--share` also tries encoders part of the way
from the one as it came to the pretrained one.
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
from towers.interpolation import interpolate
from training.config import FitConfig
from training.fit import adapt
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.pretrain import pretrain
from training.pretrain_config import PretrainConfig
from training.shots import draw_shots


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--steps", type=int, nargs="*", default=[200, 500])
    parser.add_argument("--learning-rates", type=float, nargs="*", default=[5e-5, 1e-5])
    parser.add_argument("--share", type=float, nargs="*", default=[])
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--shots", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument("--seeds", type=int, default=2)
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
        "pretraining",
        f"homedepot valid, {options.queries} queries, {len(pool.rows):,} candidates, nDCG@10",
        rows,
        queries=options.queries,
        candidates=len(pool.rows),
        seeds=options.seeds,
    )


def _rows(
    options: Any, texts: list[str], train: Interactions, pool: CandidatePool
) -> Iterator[dict[str, Any]]:
    def measured(retriever: Retriever) -> dict[str, Any]:
        facts: dict[str, Any] = {"zero-shot": round(pool.score(retriever), 4)}
        for shots in options.shots:
            found = []
            for seed in range(options.seeds):
                pairs = draw_shots(train, shots, seed=seed)
                config = FitConfig(held_out=0.0)
                with tempfile.TemporaryDirectory() as folder:
                    adapted = adapt(retriever, pairs, texts, config, folder=Path(folder), seed=seed)
                found.append(pool.score(adapted.retriever))
            facts[f"{shots} shots"] = round(float(np.mean(found)), 4)
        return facts

    def towers(preset: str) -> Retriever:
        return Retriever.from_preset(preset, text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))

    start = towers(DEFAULT_PRESET)
    nothing = {"steps": 0, "rate": "", "share": "", "loss": "", "right": "", "seconds": ""}
    yield {**nothing, **measured(start)}
    for rate in options.learning_rates:
        for steps in options.steps:
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "encoder"
                config = PretrainConfig.of(
                    steps=steps + 100, head_steps=100, learning_rate=rate, max_length=64
                )
                record = pretrain(texts, config, output)
                pretrained = towers(str(output))
            before, after = record["held_out"]
            for share in [*options.share, 1.0]:
                yield {
                    "steps": steps,
                    "rate": f"{rate:g}",
                    "share": share,
                    "loss": f"{before['loss']:.2f} > {after['loss']:.2f}",
                    "right": f"{before['accuracy']:.2f} > {after['accuracy']:.2f}",
                    "seconds": round(record["seconds"]),
                    **measured(interpolate(start, pretrained, share)),
                }


if __name__ == "__main__":
    main()
