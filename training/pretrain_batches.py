"""Batches of masked texts: tokenised once, alike in length, masked anew every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import tensorflow as tf

from towers.encoding import padded
from towers.tokenizer import Tokenizer
from training.batches import plan_batches
from training.epoch_dataset import epoch_dataset
from training.pretrain_masking import WordMasking

_SPECS = (
    {
        "token_ids": tf.TensorSpec([None, None], tf.int32),
        "padding_mask": tf.TensorSpec([None, None], tf.int32),
        "positions": tf.TensorSpec([None, None], tf.int32),
    },
    tf.TensorSpec([None, None], tf.int32),
    tf.TensorSpec([None, None], tf.float32),
)


class MaskedBatches:
    """An endless row of batches, each of which depends on the seed and its number alone.

    A pretraining that is taken up again at step 300 sees what it would have seen.

    Args:
        sequences: token ids of each text, special tokens included; at least one.
        tokenizer: see `WordMasking`.
        max_length: the width of a batch is never more.
        batch_size: texts a batch, at most.
        mask_rate: probability that a word is masked.
        seed: see above.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int = 32,
        mask_rate: float = 0.15,
        seed: int = 0,
    ) -> None:
        self.sequences, self.tokenizer, self.max_length = sequences, tokenizer, max_length
        self.batch_size, self.seed = batch_size, seed
        self.masking = WordMasking(tokenizer, mask_rate)
        self._planned: tuple[int, list[np.ndarray]] = (-1, [])

    @cached_property
    def per_epoch(self) -> int:
        """Number of batches that hold each text once."""
        return len(self._plan(0))

    def batch(self, number: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """A batch as `WordMasking` makes it."""
        epoch, place = divmod(number, self.per_epoch)
        if self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        texts = [self.sequences[row] for row in self._planned[1][place]]
        tokens = padded(texts, self.max_length, self.tokenizer.pad_id)
        rng = np.random.default_rng([self.seed, number, 1])
        return self.masking(tokens["token_ids"], tokens["padding_mask"], rng)

    def dataset(self, first: int, last: int) -> tf.data.Dataset:
        """Batches ``first`` to ``last - 1`` as ``(x, y, sample_weight)`` for `fit`."""

        def batches(source: MaskedBatches) -> Iterator[tuple]:
            yield from map(source.batch, range(first, last))

        return epoch_dataset(self, batches, _SPECS, last - first)

    def _plan(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 0])
        lengths = np.array([len(ids) for ids in self.sequences])
        texts = np.arange(len(lengths))
        return plan_batches(texts, lengths, self.batch_size, rng, repeat_queries=True)
