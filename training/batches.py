"""Training batches: tokenised once, alike in length, no query twice in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from towers.encoding import token_sequences
from towers.retriever import Retriever
from training.interactions import Interactions

# Batches are cut from stretches of this many batches, sorted by length inside: long enough to save
# most padding, short enough that an epoch differs from the last one.
_STRETCH = 8
_WIDTH_STEP = 8  # widths are multiples of this, so that there are few distinct shapes


def plan_batches(
    query: np.ndarray,
    length: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    repeat_queries: bool = False,
) -> list[np.ndarray]:
    """Cuts the pairs of an epoch into batches.

    Pairs are shuffled, cut into stretches of 8 batches, sorted by length inside a stretch and dealt
    to its batches; the batches come in random order. A pair that would be the second one of its
    query in a batch goes to the next batch with room, in the end to one of its own.

    Args:
        query: int ``[pairs]``, the query of each pair.
        length: int ``[pairs]``, what the cost of a pair grows with.
        batch_size: pairs a batch, at most.
        rng: decides the order; equal generators give equal batches.
        repeat_queries: let a batch hold several pairs of a query.

    Returns:
        Arrays of pair numbers: every pair in exactly one of them.
    """
    order = rng.permutation(len(query))
    full: list[np.ndarray] = []
    open_batches: list[list[int]] = []
    members: list[set[int]] = []
    for start in range(0, len(order), _STRETCH * batch_size):
        stretch = order[start : start + _STRETCH * batch_size]
        for pair in stretch[np.argsort(length[stretch], kind="stable")].tolist():
            key = int(query[pair])
            for batch, queries in zip(open_batches, members, strict=True):
                if len(batch) < batch_size and (repeat_queries or key not in queries):
                    break
            else:
                batch, queries = [], set()
                open_batches.append(batch)
                members.append(queries)
            batch.append(pair)
            queries.add(key)
        # Batches with room stay open for the pairs of the next stretch.
        full += [np.array(batch) for batch in open_batches if len(batch) == batch_size]
        still = [i for i, batch in enumerate(open_batches) if len(batch) < batch_size]
        open_batches = [open_batches[i] for i in still]
        members = [members[i] for i in still]
    full += [np.array(batch) for batch in open_batches]
    return [full[i] for i in rng.permutation(len(full))]


@dataclass
class PairBatches:
    """The positive pairs of a training run as `tf.data` batches for `towers.TwoTower`.

    Tokenisation happens once, here. Every epoch has its own order, which depends on the seed and
    the epoch's number alone: a run that is taken up again at epoch 3 sees what it would have seen.
    Set `epoch` before an epoch begins (`EpochOrder` does it in `fit`).

    Args:
        retriever: its tokenizer and text settings are used.
        pairs: positive pairs.
        item_texts: item text of every catalogue row.
        batch_size: pairs a batch.
        seed: see above.
        repeat_queries: let a batch hold several positives of one query.
        catalog_negatives: items drawn from the whole catalogue for each batch, as extra negatives.
    """

    retriever: Retriever
    pairs: Interactions
    item_texts: Sequence[str]
    batch_size: int = 32
    seed: int = 0
    repeat_queries: bool = False
    catalog_negatives: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        text, tokenizer = self.retriever.text, self.retriever.tokenizer
        self._query_tokens = token_sequences(
            tokenizer,
            [text.query_prefix + query for query in self.pairs.queries],
            text.query_max_length,
        )
        # Items of equal text are one item to the tower: ids are those of distinct texts.
        ids: dict[str, int] = {}
        self._text_id = np.array([ids.setdefault(t, len(ids)) for t in self.item_texts], np.int32)
        rows = (
            np.arange(len(self.item_texts))
            if self.catalog_negatives
            else np.unique(self.pairs.item_row)
        )
        sequences = token_sequences(
            tokenizer, [self.item_texts[row] for row in rows.tolist()], text.item_max_length
        )
        self._item_tokens = dict(zip(rows.tolist(), sequences, strict=True))
        self._length = np.array(
            [
                len(self._query_tokens[query]) + len(self._item_tokens[item])
                for query, item in zip(
                    self.pairs.query_row.tolist(), self.pairs.item_row.tolist(), strict=True
                )
            ]
        )
        positives: list[set[int]] = [set() for _ in self.pairs.queries]
        for query, item in zip(self.pairs.query_row, self.pairs.item_row, strict=True):
            positives[query].add(int(self._text_id[item]))
        self._positive_ids = [np.array(sorted(ids), np.int32) for ids in positives]

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch as arrays of pair numbers."""
        rng = np.random.default_rng([self.seed, epoch])
        return plan_batches(
            self.pairs.query_row,
            self._length,
            self.batch_size,
            rng,
            repeat_queries=self.repeat_queries,
        )

    def dataset(self) -> tf.data.Dataset:
        """Batches ``(x, y, sample_weight)`` of the epoch that `epoch` says when iteration begins.

        ``x`` is as `towers.TwoTower` takes it: ``query``, ``item``, ``item_ids``, ``positive_ids``
        and, where asked for, ``negatives`` and ``negative_ids``. ``y`` is not used.
        """
        tokens = {
            "token_ids": tf.TensorSpec([None, None], tf.int32),
            "padding_mask": tf.TensorSpec([None, None], tf.int32),
        }
        ids = tf.TensorSpec([None], tf.int32)
        x = {
            "query": tokens,
            "item": tokens,
            "item_ids": ids,
            "positive_ids": tf.TensorSpec([None, None], tf.int32),
        }
        if self.catalog_negatives:
            x |= {"negatives": tokens, "negative_ids": ids}
        signature = (x, ids, tf.TensorSpec([None], tf.float32))
        dataset = tf.data.Dataset.from_generator(self._epoch, output_signature=signature)
        return dataset.prefetch(2)

    def _epoch(self) -> Iterator[tuple]:
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        for pairs in self.plan(self.epoch):
            queries, items = self.pairs.query_row[pairs], self.pairs.item_row[pairs]
            x = {
                "query": self._pad([self._query_tokens[query] for query in queries]),
                "item": self._pad([self._item_tokens[item] for item in items.tolist()]),
                "item_ids": self._text_id[items],
                "positive_ids": _padded([self._positive_ids[query] for query in queries], -1)[0],
            }
            if self.catalog_negatives:
                drawn = rng.integers(len(self.item_texts), size=self.catalog_negatives)
                x["negatives"] = self._pad([self._item_tokens[item] for item in drawn.tolist()])
                x["negative_ids"] = self._text_id[drawn]
            yield x, np.zeros(len(pairs), np.int32), self.pairs.weight[pairs]

    def _pad(self, sequences: list[np.ndarray]) -> dict[str, np.ndarray]:
        token_ids, mask = _padded(sequences, self.retriever.tokenizer.pad_id, _WIDTH_STEP)
        return {"token_ids": token_ids, "padding_mask": mask}


def _padded(sequences: list[np.ndarray], fill: int, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Stacks sequences to ``[N, T]``, T a multiple of `step`, with the mask of what is real."""
    width = -(-max(len(sequence) for sequence in sequences) // step) * step
    padded = np.full((len(sequences), width), fill, np.int32)
    mask = np.zeros((len(sequences), width), np.int32)
    for i, sequence in enumerate(sequences):
        padded[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
    return padded, mask
