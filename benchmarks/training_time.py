"""Seconds to adapt on the same pairs, beside sentence-transformers, in one run.

Five epochs, batch 32. Ours keeps a tenth of the queries back and scores them before training and
after each epoch, which its time includes; `patience` is set so that it does not stop early.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from adaptation import ITEM_LENGTH, sentence_transformers
from reporting import arguments, homedepot, judgements, report

from towers import Retriever, TextSettings
from training.config import FitConfig
from training.fit import adapt
from training.shots import draw_shots


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--shots", type=int, default=512)
    options = parser.parse_args()
    catalog, texts = homedepot(options.data)
    train = judgements(options.data, "homedepot", "train", catalog)
    pairs = draw_shots(train, options.shots, seed=0)
    retriever = Retriever.from_preset(text=TextSettings("{title}", 32, ITEM_LENGTH["homedepot"]))

    def ours(held_out: float, **fit: Any) -> float:
        config = FitConfig(epochs=5, held_out=held_out, patience=5, **fit)
        with tempfile.TemporaryDirectory() as folder:
            return adapt(retriever, pairs, texts, config, folder=Path(folder)).seconds

    seconds = {
        "sentence-transformers": sentence_transformers(pairs, texts, 0)[1],
        "ours, all pairs": ours(0.0),
        "ours, a tenth held out": ours(0.1),
        "ours, all pairs, mixed_bfloat16": ours(0.0, mixed_precision="mixed_bfloat16"),
        "ours, a tenth held out, mixed_bfloat16": ours(0.1, mixed_precision="mixed_bfloat16"),
    }
    peer = seconds["sentence-transformers"]
    rows = [
        {"system": system, "seconds": round(spent, 1), "ratio": round(spent / peer, 2)}
        for system, spent in seconds.items()
    ]
    report("training_time", f"Five epochs on {options.shots} pairs", rows, shots=options.shots)


if __name__ == "__main__":
    main()
