"""Memory that training takes when a batch is encoded, and its loss made, in parts."""

from __future__ import annotations

import argparse
import resource

import keras
import keras_hub
import numpy as np

from towers import TextEncoder, TwoTower


def main() -> None:
    """Trains two steps and prints the peak of resident memory before and after, in MB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=100,
        num_layers=4,
        num_heads=4,
        hidden_dim=128,
        intermediate_dim=512,
        max_sequence_length=options.tokens,
    )
    model = TwoTower(TextEncoder(backbone), chunks=options.chunks)
    model.compile(optimizer=keras.optimizers.SGD())
    rng = np.random.default_rng(0)
    shape = options.pairs, options.tokens

    def tokens() -> dict[str, np.ndarray]:
        ids = rng.integers(1, 99, shape).astype(np.int32)
        return {"token_ids": ids, "padding_mask": np.ones(shape, np.int32)}

    before = _peak()
    x = {"query": tokens(), "item": tokens(), "item_ids": np.arange(options.pairs, dtype=np.int32)}
    model.fit(x, batch_size=options.pairs, epochs=2, verbose=0, shuffle=False)
    print(f"{options.chunks} parts: {before} MB before training, {_peak()} MB after")


def _peak() -> int:
    """The peak of resident memory so far, in MB (Linux counts in KB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
