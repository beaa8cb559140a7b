"""Encoding many texts: tokenised once, sorted by length, in batches of equal cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from towers.text_encoder import Architecture, EncoderWeights, TextEncoder
from towers.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Called with (texts done, texts in all)."""


def part_of(progress: Progress | None, place: int, parts: int) -> Progress | None:
    """The progress of one of several equal parts, told as that of all; None for None."""
    if progress is None:
        return None
    return lambda done, total: progress(place * total + done, parts * total)


# Tokens a batch, padding included. Large enough for the matrix products to run at full speed, small
# enough for the activations to stay in a CPU's cache (measured: benchmarks/encoding.py).
BATCH_TOKENS = 2048
# One batch's operations that do not spread over cores run beside another's that do.
_BATCHES_AT_ONCE = 2
_TOKENISE_ROWS = 4096
_KEPT = 32  # compiled functions; each is a graph without its weights

Forward = Callable[[EncoderWeights, dict[str, np.ndarray]], Any]


class BatchEncoder:
    """An encoder compiled for bulk work; it follows the encoder's weights as they change.

    Args:
        encoder: the text encoder.
        tokenizer: its tokenizer.
        dtype: dtype of the matrix products, ``float32`` or ``bfloat16``; the encoder's own where
            None. bfloat16 doubles the speed on CPUs with AVX512_BF16 or AMX and moves an embedding
            by a cosine below 1e-4 (docs/benchmarks.md).
    """

    def __init__(
        self, encoder: TextEncoder, tokenizer: Tokenizer, dtype: str | None = None
    ) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.dtype = dtype or encoder.compute_dtype

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_length: int,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Encodes texts.

        Args:
            texts: any number of strings.
            max_length: the longest sequence in tokens, special tokens included.
            progress: told about the progress after every batch.

        Returns:
            float32 ``[len(texts), d]``, rows of length one, in the order of the texts.
        """
        sequences = token_sequences(self.tokenizer, texts, max_length)
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        vectors = np.empty((len(texts), self.encoder.embedding_dim), np.float32)
        # Longest first: the peak of memory comes at once, not after an hour.
        order = np.argsort(-lengths, kind="stable")
        weights = self.encoder.read_weights(self.dtype)
        forward = _compiled(self.encoder.architecture, weights)

        def embed(rows: np.ndarray) -> np.ndarray:
            vectors[rows] = keras.ops.convert_to_numpy(
                forward(
                    weights,
                    padded(
                        [sequences[row] for row in rows],
                        max_length,
                        self.tokenizer.pad_id,
                    ),
                )
            )
            return rows

        done = 0
        workers = ThreadPoolExecutor(_BATCHES_AT_ONCE)
        try:
            for rows in workers.map(embed, _batches(order, lengths)):
                done += len(rows)
                if progress is not None:
                    progress(done, len(texts))
        finally:
            workers.shutdown(cancel_futures=True)
        return vectors


def _compiled(architecture: Architecture, weights: EncoderWeights) -> Forward:
    """`Architecture.embed`, compiled by the backend once for all encoders that differ in weights.

    Runs that try several towers encode with many of the same shape; compiling takes longer than
    encoding a small catalogue.
    """
    if keras.backend.backend() == "tensorflow":
        return _tf_function(architecture, tf.nest.map_structure(tf.TensorSpec.from_tensor, weights))
    if keras.backend.backend() == "jax":
        return _jax_function(architecture)
    return architecture.embed


@lru_cache(maxsize=_KEPT)
def _tf_function(architecture: Architecture, weights: EncoderWeights) -> Forward:
    """For weights of given specifications."""

    def embed(weights: EncoderWeights, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return architecture.embed(weights, inputs)

    ids = tf.TensorSpec([None, None], tf.int32)
    signature = [weights, {"token_ids": ids, "padding_mask": ids}]
    return tf.function(embed, input_signature=signature, autograph=False)


@lru_cache(maxsize=_KEPT)
def _jax_function(architecture: Architecture) -> Forward:
    import jax

    return jax.jit(architecture.embed)


def token_sequences(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int
) -> list[np.ndarray]:
    """Tokenises texts to int32 arrays, ``[CLS]`` and ``[SEP]`` included, cut to ``max_length``."""
    ends = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
    sequences = []
    for start in range(0, len(texts), _TOKENISE_ROWS):
        chunk = tf.constant(list(texts[start : start + _TOKENISE_ROWS]), tf.string)
        pieces = tokenizer.tokenize(chunk)[:, : max_length - 2]
        flat, splits = pieces.flat_values.numpy(), pieces.row_splits.numpy()
        sequences += [
            np.concatenate([ends[0], flat[a:b], ends[1]]) for a, b in itertools.pairwise(splits)
        ]
    return sequences


def padded(
    sequences: Sequence[np.ndarray], max_length: int, pad_id: int, step: int | None = None
) -> dict[str, np.ndarray]:
    """Stacks token sequences to a batch for `towers.TextEncoder`.

    Args:
        sequences: token ids, special tokens included.
        max_length: the width is never more: the encoder may not have more positions.
        pad_id: fills rows up.
        step: the width ``T`` is rounded up to a multiple of it. 1 if None on TensorFlow, where one
            graph serves all widths, and 8 on other backends, which compile every shape anew.

    Returns:
        ``token_ids`` and ``padding_mask``, int32 ``[len(sequences), T]``.
    """
    if step is None:
        step = 1 if keras.backend.backend() == "tensorflow" else 8
    longest = max(len(sequence) for sequence in sequences)
    width = min(-(-longest // step) * step, max_length)
    token_ids = np.full((len(sequences), width), pad_id, np.int32)
    mask = np.zeros_like(token_ids)
    for row, sequence in enumerate(sequences):
        token_ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"token_ids": token_ids, "padding_mask": mask}


def _batches(order: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts an order of falling length into batches of about BATCH_TOKENS padded tokens."""
    start = 0
    while start < len(order):
        size = max(1, BATCH_TOKENS // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def fast_dtype() -> str:
    """``bfloat16`` where this machine multiplies bfloat16 matrices natively, else ``float32``.

    That is any GPU or TPU, and CPUs with AVX512_BF16 or AMX as far as Linux names their features.
    """
    if keras.backend.backend() == "tensorflow" and (
        tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU")
    ):
        return "bfloat16"
    try:
        features = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in features or "amx_bf16" in features else "float32"
