"""Embeddings against sentence-transformers, and the speed of encoding whole catalogues.

Both encode the same texts on the same cores in one run; each rate is the best of the repetitions,
after a warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from reporting import arguments, esci, homedepot, report
from sentence_transformers import SentenceTransformer

from towers import DEFAULT_PRESET, Retriever, TextSettings
from towers.checkpoint import resolve_preset

MAX_LENGTH = 128


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--sample", type=int, default=0, help="texts a catalogue; 0 for all")
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    peer = SentenceTransformer(resolve_preset(DEFAULT_PRESET), device="cpu")
    peer.max_seq_length = MAX_LENGTH
    retriever = Retriever.from_preset(text=TextSettings("{title}", 32, MAX_LENGTH))

    def theirs(texts: Sequence[str]) -> np.ndarray:
        return peer.encode(
            list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )

    systems: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
        "sentence-transformers": theirs,
        "ours, float32": lambda texts: retriever.encode_items(texts, dtype="float32"),
        "ours, bfloat16": lambda texts: retriever.encode_items(texts, dtype="bfloat16"),
    }
    rows = []
    for name, texts in (
        ("homedepot", homedepot(options.data)[1]),
        ("esci", esci(options.data)[1]),
    ):
        rng = np.random.default_rng(0)
        drawn = rng.permutation(len(texts))
        reference = theirs([texts[i] for i in drawn[:2000]])
        sample = [texts[i] for i in drawn[: options.sample or len(texts)]]
        seconds = dict.fromkeys(systems, float("inf"))
        for _ in range(options.repeat):  # in turns, so that a slow minute hits all of them
            for system, encode in systems.items():
                encode(sample[:200])
                start = time.perf_counter()
                encode(sample)
                seconds[system] = min(seconds[system], time.perf_counter() - start)
        for system, encode in systems.items():
            cosines = np.sum(encode([texts[i] for i in drawn[:2000]]) * reference, axis=1)
            rows.append(
                {
                    "catalogue": name,
                    "system": system,
                    "texts/s": round(len(sample) / seconds[system], 1),
                    "ratio": round(seconds["sentence-transformers"] / seconds[system], 2),
                    "lowest cosine to sentence-transformers (2,000 texts)": round(
                        float(cosines.min()), 6
                    ),
                }
            )
    report("encoding", "Encoding catalogues", rows, sample=options.sample, repeat=options.repeat)


if __name__ == "__main__":
    main()
