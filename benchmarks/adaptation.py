"""Few-shot adaptation on real product search, beside sentence-transformers' usual recipe.

Every system gets the same pairs, drawn with the same seed, and is measured on the same queries over
the whole catalogue. Choose settings on `--split valid`; look at `test` last.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from reporting import arguments, esci, homedepot, judgements, report

from towers import DEFAULT_PRESET, Retriever, TextSettings
from towers.checkpoint import resolve_preset
from towers.encoding import fast_dtype
from training.config import Method, TrainConfig
from training.evaluation import evaluate
from training.fit import adapt
from training.interactions import Interactions
from training.search import Run, top_k
from training.shots import draw_shots

MEASURES = {
    "homedepot": ("nDCG@10", "RR@10", "R(rel=2)@100"),
    "esci": ("nDCG@10", "RR(rel=3)@10", "R(rel=3)@100"),
}
GAINS = {"homedepot": {0: 0.0, 1: 1.0, 2: 2.0}, "esci": {0: 0.0, 1: 1.0, 2: 10.0, 3: 100.0}}
MIN_GRADE = {"homedepot": 1, "esci": 3}
ITEM_LENGTH = {"homedepot": 64, "esci": 128}


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--dataset", choices=list(MEASURES), default="homedepot")
    parser.add_argument("--split", choices=["valid", "test"], default="test")
    parser.add_argument("--shots", type=int, nargs="*", default=[512])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-seeds", type=int, default=0, help="sentence-transformers too")
    parser.add_argument(
        "--methods", nargs="+", choices=get_args(Method), default=["full"], help="docs/methods.md"
    )
    parser.add_argument("--config", help="training configuration, TOML or JSON")
    options = parser.parse_args()
    name = options.dataset
    catalog, texts = {"homedepot": homedepot, "esci": esci}[name](options.data)
    train = judgements(options.data, name, "train", catalog)
    queries = judgements(options.data, name, options.split, catalog)
    config = TrainConfig.read(options.config).fit
    zero_shot = Retriever.from_preset(text=TextSettings("{title}", 32, ITEM_LENGTH[name]))

    def measure(items: np.ndarray, encoded: np.ndarray) -> dict[str, float]:
        scores, rows = top_k(encoded, items, 100)
        run = Run(queries.queries, rows, scores)
        return evaluate(run, queries, catalog, measures=MEASURES[name], gains=GAINS[name]).means

    def ours(retriever: Retriever) -> dict[str, float]:
        items = retriever.encode_items(texts, dtype=fast_dtype())
        return measure(items, retriever.encode_queries(queries.queries))

    rows: list[dict[str, Any]] = [_row("zero-shot", 0, [ours(zero_shot)], [0.0])]
    for shots in options.shots:
        ours_by_method = {method: f"ours, {method}" for method in options.methods}
        peers = ["sentence-transformers"] if options.peer_seeds else []
        names = [*ours_by_method.values(), *peers]
        systems: dict[str, list[dict[str, float]]] = {system: [] for system in names}
        seconds: dict[str, list[float]] = {system: [] for system in names}
        for seed in range(options.seeds):
            pairs = draw_shots(train, shots, seed=seed, min_grade=MIN_GRADE[name])
            for method, system in ours_by_method.items():
                with tempfile.TemporaryDirectory() as folder:
                    where = Path(folder)
                    result = adapt(
                        zero_shot, pairs, texts, config, method=method, folder=where, seed=seed
                    )
                seconds[system].append(result.seconds)
                systems[system].append(ours(result.retriever))
            if seed < options.peer_seeds:
                model, spent = sentence_transformers(pairs, texts, seed)
                model.max_seq_length = ITEM_LENGTH[name]
                encode = {"normalize_embeddings": True, "show_progress_bar": False}
                items = model.encode(texts, batch_size=64, **encode)
                model.max_seq_length = 32
                seconds["sentence-transformers"].append(spent)
                systems["sentence-transformers"].append(
                    measure(items, model.encode(queries.queries, **encode))
                )
        rows += [_row(system, shots, systems[system], seconds[system]) for system in systems]
    report(
        f"adaptation-{name}-{options.split}",
        f"{name} {options.split}, {options.seeds} seeds, mean ± standard deviation",
        rows,
        seeds=options.seeds,
        fit=config.model_dump(),
    )


def sentence_transformers(pairs: Interactions, texts: list[str], seed: int) -> tuple[Any, float]:
    """Fine-tunes with the usual recipe: in-batch softmax, 5 epochs, batch 32, rate 2e-5."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesSymmetricRankingLoss
    from sentence_transformers.training_args import BatchSamplers

    model = SentenceTransformer(resolve_preset(DEFAULT_PRESET), device="cpu")
    model.max_seq_length = 64
    columns = {
        "anchor": [pairs.queries[row] for row in pairs.query_row.tolist()],
        "positive": [texts[row] for row in pairs.item_row.tolist()],
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model,
            SentenceTransformerTrainingArguments(
                folder,
                num_train_epochs=5,
                per_device_train_batch_size=32,
                learning_rate=2e-5,
                warmup_ratio=0.1,
                batch_sampler=BatchSamplers.NO_DUPLICATES,
                seed=seed,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            Dataset.from_dict(columns),
            loss=MultipleNegativesSymmetricRankingLoss(model),
        )
        start = time.perf_counter()
        trainer.train()
        return model, time.perf_counter() - start


def _row(
    system: str, shots: int, results: list[dict[str, float]], seconds: list[float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"system": system, "shots": shots}
    for measure in results[0]:
        values = np.array([result[measure] for result in results])
        spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
        row[measure] = f"{values.mean():.4f}{spread}"
    row["training, s"] = round(float(np.mean(seconds)), 1)
    return row


if __name__ == "__main__":
    main()
