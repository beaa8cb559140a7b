"""Pairs a second in training on a GPU or TPU, and how much of the chip that is.

Runs on a machine with Keras on JAX or PyTorch (`KERAS_BACKEND`) and without TensorFlow: weights are
random, and so are tokens, which changes no speed. Each line is a process of its own, so that its
peak of memory is its own and one that does not fit ends alone. The share of the peak is of what a
large matrix product reaches on the same chip in the same run, in the same dtype.

With PyTorch and sentence-transformers installed, the same shapes are trained by its
`MultipleNegativesRankingLoss` under autocast, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax" if find_spec("jax") else "torch")

VOCABULARY = 30_522
WARM_UP = 3


@dataclass(frozen=True)
class Shape:
    """A BERT's shape.

    Attributes:
        name: as people know it.
        layers: transformer layers.
        hidden: width of the residual stream.
        heads: attention heads.
    """

    name: str
    layers: int
    hidden: int
    heads: int

    def pair_flops(self, length: int) -> float:
        """Floating-point operations of training on one pair of texts of this many tokens.

        Matrix products alone, two operations a multiplication; twice the forward pass on the way
        back (Kaplan et al. 2020, section 2.1, with attention).
        """
        token = 24 * self.hidden**2 + 4 * length * self.hidden  # kernels; scores and their sums
        return 2 * 3 * self.layers * token * length


SHAPES = {
    "tiny": Shape("tiny", 2, 64, 2),
    "MiniLM": Shape("MiniLM", 6, 384, 12),
    "BERT-base": Shape("BERT-base", 12, 768, 12),
}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        system: ``towers``, ``sentence-transformers`` or ``peak``.
        shape: name of a shape.
        length: tokens a text, all of them real.
        batch: pairs a step.
        dtype: of matrix products: ``bfloat16`` or ``float32``.
        steps: steps that are timed.
    """

    system: str
    shape: str
    length: int
    batch: int
    dtype: str
    steps: int


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["MiniLM", "BERT-base"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a small setting, for any CPU")
    parser.add_argument("--output", type=Path, help="JSON file; benchmarks/results/ if not given")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)))))
        return
    if options.tiny:
        options.models, options.batches, options.lengths = ["tiny"], [8], [16]
        options.dtype, options.steps = "float32", 2

    def run(system: str, model: str, length: int, batch: int) -> dict[str, Any]:
        return in_a_process(Case(system, model, length, batch, options.dtype, options.steps))

    # The side of the square matrices is the batch.
    peak = run("peak", "tiny", 1, 512 if options.tiny else 8192)
    peer = bool(find_spec("torch") and find_spec("sentence_transformers"))
    rows = []
    for model in options.models:
        for length in options.lengths:
            for batch in options.batches:
                ours = run("towers", model, length, batch)
                theirs = run("sentence-transformers", model, length, batch) if peer else {}
                rows.append(row(SHAPES[model], length, batch, peak, ours, theirs))
                print(rows[-1], flush=True)
    write(rows, peak, options)


def row(
    shape: Shape,
    length: int,
    batch: int,
    peak: dict[str, Any],
    ours: dict[str, Any],
    theirs: dict[str, Any],
) -> dict[str, Any]:
    """One line of the table; a dash for what could not be measured."""
    speed, other = ours.get("pairs_per_second"), theirs.get("pairs_per_second")
    flops = speed * shape.pair_flops(length) if speed else None
    share = flops / peak["flops"] if flops and peak.get("flops") else None
    return {
        "model": shape.name,
        "tokens": length,
        "batch": batch,
        "pairs/s": round(speed, 1) if speed else ours.get("error", "-"),
        "TFLOP/s": round(flops / 1e12, 4) if flops else "-",
        "of peak": f"{share:.0%}" if share else "-",
        "memory, MB": ours.get("memory_mb", "-"),
        "sentence-transformers, pairs/s": round(other, 1) if other else theirs.get("error", "-"),
        "ratio": round(speed / other, 2) if speed and other else "-",
    }


def write(rows: list[dict[str, Any]], peak: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints the table and writes the record."""
    from reporting import report

    title = f"Training, {options.dtype}; measured peak {peak.get('flops', 0) / 1e12:.3g} TFLOP/s"
    settings = {"backend": os.environ["KERAS_BACKEND"], "dtype": options.dtype, "peak": peak}
    report("accelerator", title, rows, path=options.output, **settings)


def in_a_process(case: Case) -> dict[str, Any]:
    """What a process of its own measures; ``error`` and the last line it said if it failed."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    environment = {**os.environ}
    if case.system == "sentence-transformers":
        environment["KERAS_BACKEND"] = "torch"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        print(done.stderr[-2000:], file=sys.stderr)
        memory = (
            "out of memory" in done.stderr.lower() or "resource_exhausted" in done.stderr.lower()
        )
        return {"error": "out of memory" if memory else (said[-1][:60] if said else "failed")}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(case: Case) -> dict[str, Any]:
    """Measures one case in this process."""
    if case.system == "peak":
        return measure_peak(case)
    train = towers_epoch(case) if case.system == "towers" else peer_epoch(case)
    train(WARM_UP)  # compiles
    start = time.perf_counter()
    train(case.steps)
    seconds = time.perf_counter() - start
    return {"pairs_per_second": case.steps * case.batch / seconds, "memory_mb": peak_memory_mb()}


def measure_peak(case: Case) -> dict[str, Any]:
    """Operations a second of square matrix products, one after the other on the device."""
    n, repeat = case.batch, 20
    matrix = np.random.default_rng(0).normal(size=(n, n)) / np.sqrt(n)  # products keep their size
    product = _products(matrix.astype("float32"), case.dtype, repeat)
    product()
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        product()
        best = max(best, repeat * 2 * n**3 / (time.perf_counter() - start))
    return {"flops": best, "side": n, "device": _device()}


def _products(matrix: np.ndarray, dtype: str, repeat: int) -> Callable[[], None]:
    """Multiplies by a matrix again and again, and waits for the result."""
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        place = "cuda" if torch.cuda.is_available() else "cpu"
        square = torch.tensor(matrix, device=place, dtype=getattr(torch, dtype))

        def eager() -> None:
            x = square
            for _ in range(repeat):
                x = x @ square
            float(x[0, 0])

        return eager
    import jax
    import jax.numpy as jnp

    operand = jnp.asarray(matrix, dtype)
    chain = jax.jit(lambda a: jax.lax.fori_loop(0, repeat, lambda _, x: x @ a, a))
    return lambda: chain(operand).block_until_ready()


def towers_epoch(case: Case) -> Callable[[int], None]:
    """Trains a `TwoTower` of random weights for some steps, in Keras's own `fit`."""
    import keras
    import keras_hub

    from towers import TextEncoder, TwoTower

    shape = SHAPES[case.shape]
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=shape.layers,
        num_heads=shape.heads,
        hidden_dim=shape.hidden,
        intermediate_dim=4 * shape.hidden,
        max_sequence_length=512,
        dropout=0.1,
        dtype="mixed_bfloat16" if case.dtype == "bfloat16" else "float32",
    )
    model = TwoTower(TextEncoder(backbone))
    model.compile(optimizer=keras.optimizers.AdamW(2e-5))
    batches = token_batches(case)

    def train(steps: int) -> None:
        def epoch() -> Iterator[tuple[dict[str, Any]]]:
            for _ in range(steps):
                yield (next(batches),)

        model.fit(epoch(), steps_per_epoch=steps, epochs=1, verbose=0)

    return train


def peer_epoch(case: Case) -> Callable[[int], None]:
    """The same by sentence-transformers: its model, its loss, autocast."""
    import torch
    from sentence_transformers import SentenceTransformer, losses
    from transformers import BertConfig, BertModel, BertTokenizer

    shape = SHAPES[case.shape]
    place = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        config = BertConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            hidden_size=shape.hidden,
            intermediate_size=4 * shape.hidden,
        )
        BertModel(config).save_pretrained(folder)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
        (Path(folder) / "vocab.txt").write_text("\n".join(words))
        BertTokenizer(str(Path(folder) / "vocab.txt")).save_pretrained(folder)
        # With mean pooling, as it comes; the loss normalises.
        model = SentenceTransformer(folder, device=place)
    model.train()
    loss = losses.MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-5)
    batches = token_batches(case)

    def train(steps: int) -> None:
        for _ in range(steps):
            batch = next(batches)
            features = [
                {
                    "input_ids": torch.tensor(batch[name]["token_ids"], device=place),
                    "attention_mask": torch.tensor(batch[name]["padding_mask"], device=place),
                }
                for name in ("query", "item")
            ]
            optimizer.zero_grad()
            half = case.dtype == "bfloat16"
            with torch.autocast(place, torch.bfloat16, enabled=half):
                value = loss(features, None)
            value.backward()
            optimizer.step()
        float(value)

    return train


def token_batches(case: Case) -> Iterator[dict[str, Any]]:
    """Batches of random tokens."""
    rng = np.random.default_rng(0)

    def tokens() -> dict[str, np.ndarray]:
        ids = rng.integers(1000, VOCABULARY, (case.batch, case.length)).astype(np.int32)
        return {"token_ids": ids, "padding_mask": np.ones_like(ids)}

    while True:
        yield {"query": tokens(), "item": tokens(), "item_ids": np.arange(case.batch)}


def peak_memory_mb() -> int:
    """The peak of the device's memory so far, in MB; on a CPU that of the process."""
    import resource

    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated() >> 20)
    else:
        import jax

        if stats := jax.devices()[0].memory_stats():
            return int(stats["peak_bytes_in_use"] >> 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _device() -> str:
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import jax

    return str(jax.devices()[0].device_kind)


if __name__ == "__main__":
    main()
