"""Training batches: tokenised once, alike in length, no query twice in one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from towers.encoding import padded, token_sequences
from towers.item_text import text_of
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from training.augmentation import Augmentation
from training.batch_attributes import BatchAttributes
from training.epoch_dataset import epoch_dataset
from training.frozen_states import frozen_states
from training.negatives import CatalogNegatives, text_ids
from training.pair_vectors import PairVectors
from training.pairs import Pairs

# Batches are cut from stretches of this many batches, sorted by length inside: long enough to save
# most padding, short enough that an epoch differs from the last one.
_STRETCH = 8
_SMALL_BATCH = 8
_MOST_PASSES = 4


def plan_batches(
    query: np.ndarray,
    length: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    repeat_queries: bool = False,
) -> list[np.ndarray]:
    """Cuts the pairs of an epoch into batches.

    Pairs are shuffled, cut into stretches of 8 batches and sorted by length inside a stretch, so
    that a batch holds pairs of about one length. Then each pair that is a second one of its query
    in a batch changes place with the nearest pair for which that mends it.

    Args:
        query: int ``[pairs]``, the query of each pair.
        length: int ``[pairs]``, what the cost of a pair grows with.
        batch_size: pairs a batch, at most.
        rng: decides the order; equal generators give equal batches.
        repeat_queries: let a batch hold several pairs of a query.

    Returns:
        Arrays of pair numbers in random order, every pair in exactly one. Their number depends on
        the pairs alone: as few as the batch size allows, more only where a query has more pairs
        than that. Their sizes differ by at most one.
    """
    n_pairs = len(query)
    n_batches = -(-n_pairs // batch_size)
    if not repeat_queries:
        n_batches = max(n_batches, int(np.unique(query, return_counts=True)[1].max()))
    batch = np.sort(np.arange(n_pairs) % n_batches)  # the batch of each place, [pairs]
    order = rng.permutation(n_pairs)
    stretch = batch // _STRETCH
    order = order[np.lexsort((length[order], stretch))]
    if not repeat_queries and not _separate_queries(query[order], batch, order):
        # Too crowded for changing places: deal the pairs of one query after the other.
        shuffled = rng.permutation(int(query.max()) + 1)[query]
        order, batch = np.argsort(shuffled, kind="stable"), np.arange(n_pairs) % n_batches
    return [order[batch == number] for number in rng.permutation(n_batches)]


def plan_epoch(
    query: np.ndarray,
    length: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    min_steps: int = 1,
    repeat_queries: bool = False,
) -> list[np.ndarray]:
    """Cuts the pairs into batches as `plan_batches` does, few pairs several times over.

    A handful of pairs would fill a batch or two, and training would end after as many steps.
    Where there are fewer batches than `min_steps`, batches become smaller, down to 8 pairs, and
    pairs come again, up to four times.

    Args:
        min_steps: number of batches to come near to.
        query, length, batch_size, rng, repeat_queries: as of `plan_batches`.

    Returns:
        Arrays of pair numbers, every pair in equally many. Their number depends on the pairs alone.
    """
    thin = -(-len(query) * _MOST_PASSES // min_steps)
    size = min(batch_size, max(_SMALL_BATCH, thin))
    batches = list[np.ndarray]()
    for _ in range(_MOST_PASSES):
        batches += plan_batches(query, length, size, rng, repeat_queries=repeat_queries)
        if len(batches) >= min_steps:
            break
    return batches


def _separate_queries(query: np.ndarray, batch: np.ndarray, order: np.ndarray) -> bool:
    """Changes places until no batch holds a query twice; False where that comes to a dead end.

    Args:
        query: the query in each place; changed like ``order``.
        batch: the batch of each place.
        order: the pair in each place, changed in place.
    """
    held = Counter(zip(batch.tolist(), query.tolist(), strict=True))
    for place in range(len(order)):
        here = int(batch[place])
        if held[here, int(query[place])] < 2:
            continue
        for other in np.argsort(np.abs(np.arange(len(order)) - place), kind="stable")[1:].tolist():
            there = int(batch[other])
            mine, theirs = int(query[place]), int(query[other])
            if there != here and not held[there, mine] and not held[here, theirs]:
                held.subtract([(here, mine), (there, theirs)])
                held.update([(there, mine), (here, theirs)])
                for array in (query, order):
                    array[[place, other]] = array[[other, place]]
                break
        else:
            return False
    return True


@dataclass
class PairBatches:
    """The positive pairs of a training run as `tf.data` batches for `towers.TwoTower`.

    Tokenisation happens once, here, and so does what lies below the layers that are trained
    (`TextEncoder.frozen_layers`), where neither changed queries nor `TwoTower.fgm` come between;
    there is no dropout there. Every epoch has its own order, which depends on the seed and
    the epoch's number alone: a run that is taken up again at epoch 3 sees what it would have seen.
    Set `epoch` before an epoch begins (`EpochOrder` does it in `fit`).

    Args:
        retriever: its tokenizer and text settings are used.
        pairs: positive pairs.
        item_texts: item text of every catalogue row.
        batch_size: pairs a batch, at most.
        seed: see above.
        repeat_queries: let a batch hold several positives of one query.
        catalog_negatives: items drawn from the whole catalogue for each batch, as extra negatives.
        min_steps: batches an epoch, see `plan_epoch`.
        negatives: mined and cached negatives for each batch.
        anchor: vectors of the untrained towers, whose scores come with each batch; those of all
            items that can stand in a batch.
        grades: tell the grades of known positives too.
        augmentation: changes queries, each time they come, anew in every epoch.
    """

    retriever: Retriever
    pairs: Pairs
    item_texts: Sequence[str]
    batch_size: int = 32
    seed: int = 0
    repeat_queries: bool = False
    catalog_negatives: int = 0
    min_steps: int = 1
    negatives: CatalogNegatives | None = None
    anchor: PairVectors | None = None
    grades: bool = False
    augmentation: Augmentation | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        text, tokenizer = self.retriever.text, self.retriever.tokenizer
        self._query_tokens = self._tokens_of(self.pairs.queries)
        self._text_id = text_ids(self.item_texts)
        self._extra = bool(self.catalog_negatives or (self.negatives and self.negatives.encoded))
        rows = np.arange(len(self.item_texts)) if self._extra else np.unique(self.pairs.item_row)
        sequences = token_sequences(
            tokenizer,
            [text_of(self.item_texts[row]) for row in rows.tolist()],
            text.item_max_length,
        )
        model, pad_id = self.retriever.model, tokenizer.pad_id
        self._query_states = self._item_states = None
        if not model.fgm:  # which moves the embeddings of tokens
            if self.augmentation is None:
                self._query_states = frozen_states(
                    model.query_tower, self._query_tokens, text.query_max_length, pad_id
                )
            states = frozen_states(model.item_tower, sequences, text.item_max_length, pad_id)
            if states is not None:
                self._item_states = dict(zip(rows.tolist(), states, strict=True))
        self._attributes = BatchAttributes(self.retriever, self.item_texts)
        self._item_tokens = dict(zip(rows.tolist(), sequences, strict=True))
        self._length = np.array(
            [
                len(self._query_tokens[query]) + len(self._item_tokens[item])
                for query, item in zip(
                    self.pairs.query_row.tolist(), self.pairs.item_row.tolist(), strict=True
                )
            ]
        )
        # The best grade of each text that is a positive of the query.
        positives: list[dict[int, int]] = [{} for _ in self.pairs.queries]
        for query, item, grade in zip(
            self.pairs.query_row, self.pairs.item_row, self.pairs.grade.tolist(), strict=True
        ):
            known, text_id = positives[query], int(self._text_id[item])
            known[text_id] = max(grade, known.get(text_id, grade))
        shape = len(positives), max(map(len, positives))
        self._positive_ids = np.full(shape, -1, np.int32)
        self._positive_grades = np.zeros(shape, np.int32)
        for row, known in enumerate(positives):
            self._positive_ids[row, : len(known)] = sorted(known)
            self._positive_grades[row, : len(known)] = [known[key] for key in sorted(known)]

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch as arrays of pair numbers."""
        rng = np.random.default_rng([self.seed, epoch])
        return plan_epoch(
            self.pairs.query_row,
            self._length,
            self.batch_size,
            rng,
            min_steps=self.min_steps,
            repeat_queries=self.repeat_queries,
        )

    def dataset(self) -> tf.data.Dataset:
        """Batches ``(x, y, sample_weight)`` of the epoch that `epoch` says when iteration begins.

        ``x`` is as `towers.TwoTower` takes it: ``query``, ``item``, ``item_ids``, ``positive_ids``
        and, where asked for, ``positive_grades``, ``negatives`` and ``cached`` with their ids,
        ``ignored`` and ``teacher_scores``. ``y`` is not used.
        """
        tokens = {
            "token_ids": tf.TensorSpec([None, None], tf.int32),
            "padding_mask": tf.TensorSpec([None, None], tf.int32),
        }

        def texts(tower: TextEncoder, kept: Any) -> dict[str, tf.TensorSpec]:
            states = tf.TensorSpec([None, None, int(tower.backbone.hidden_dim)], tf.float32)
            mask = tokens["padding_mask"]
            return tokens if kept is None else {"states": states, "padding_mask": mask}

        model = self.retriever.model
        ids = tf.TensorSpec([None], tf.int32)
        x = {
            "query": texts(model.query_tower, self._query_states),
            "item": texts(model.item_tower, self._item_states),
            "item_ids": ids,
            "positive_ids": tf.TensorSpec([None, None], tf.int32),
        }
        if self._extra:
            x |= {"negatives": tokens, "negative_ids": ids}
            x |= self._attributes.signature("negative_attributes")
        x |= self._attributes.signature("item_attributes")
        if self.negatives:
            x["ignored"] = tf.TensorSpec([None, None], tf.bool)
            if self.negatives.cached:
                width = self.retriever.embedding_dim
                x |= {"cached": tf.TensorSpec([None, width], tf.float32), "cached_ids": ids}
        if self.anchor:
            x["teacher_scores"] = tf.TensorSpec([None, None], tf.float32)
        if self.grades:
            x["positive_grades"] = tf.TensorSpec([None, None], tf.int32)
        signature = (x, ids, tf.TensorSpec([None], tf.float32))
        count = len(self.plan(0))  # all epochs' alike
        return epoch_dataset(self, PairBatches._epoch, signature, count)

    def _epoch(self) -> Iterator[tuple]:
        text = self.retriever.text
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        for pairs in self.plan(self.epoch):
            queries, items = self.pairs.query_row[pairs], self.pairs.item_row[pairs]
            query = self._pad(self._queries(queries.tolist(), rng), text.query_max_length)
            item = self._pad(
                [self._item_tokens[item] for item in items.tolist()], text.item_max_length
            )
            if self._query_states is not None:
                query = _with_states(query, [self._query_states[row] for row in queries.tolist()])
            if self._item_states is not None:
                item = _with_states(item, [self._item_states[row] for row in items.tolist()])
            x = {
                "query": query,
                "item": item,
                "item_ids": self._text_id[items],
                "positive_ids": self._positive_ids[queries],
            }
            if self.grades:
                x["positive_grades"] = self._positive_grades[queries]
            x |= self._attributes(item_attributes=items)
            x |= self._further(pairs, rng)
            yield x, np.zeros(len(pairs), np.int32), self.pairs.weight[pairs]

    def _further(self, pairs: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Candidates from outside of the batch, and what is known of all of them."""
        x: dict[str, Any] = {}
        rows = [self.pairs.item_row[pairs]]  # catalogue rows of the candidates, by kind
        if self._extra:
            drawn = rng.integers(len(self.item_texts), size=self.catalog_negatives)
            if self.negatives and self.negatives.encoded:
                drawn = np.concatenate([self.negatives.draw(pairs, rng), drawn])
            if not len(drawn):  # nothing hard for any of them, but a batch must have its shape
                drawn = rng.integers(len(self.item_texts), size=1)
            rows.append(drawn)
            sequences = [self._item_tokens[item] for item in drawn.tolist()]
            x["negatives"] = self._pad(sequences, self.retriever.text.item_max_length)
            x["negative_ids"] = self._text_id[drawn]
            x |= self._attributes(negative_attributes=drawn)
        if self.negatives:
            if self.negatives.cached:
                rows.append(self.negatives.draw_cached(rng))
                x["cached"] = self.negatives.vectors.of_items(rows[-1])
                x["cached_ids"] = self._text_id[rows[-1]]
            near = self.negatives.too_near(pairs, np.concatenate(rows[1:]))
            own = np.zeros((len(pairs), len(pairs)), bool)
            x["ignored"] = np.concatenate([own, near], axis=1)
        if self.anchor:
            queries = self.pairs.query_row[pairs]
            x["teacher_scores"] = self.anchor.cosines(queries, np.concatenate(rows))
        return x

    def _queries(self, rows: list[int], rng: np.random.Generator) -> Sequence[np.ndarray]:
        """Tokens of queries, changed where there is an augmentation."""
        if self.augmentation is None:
            return [self._query_tokens[row] for row in rows]
        return self._tokens_of([self.augmentation(self.pairs.queries[row], rng) for row in rows])

    def _tokens_of(self, queries: Sequence[str]) -> list[np.ndarray]:
        text = self.retriever.text
        return token_sequences(
            self.retriever.tokenizer,
            [text.query_prefix + query for query in queries],
            text.query_max_length,
        )

    def _pad(self, sequences: Sequence[np.ndarray], max_length: int) -> dict[str, np.ndarray]:
        return padded(sequences, max_length, self.retriever.tokenizer.pad_id)


def _with_states(
    tokens: dict[str, np.ndarray], states: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """A padded batch with states ``[T, hidden]`` of its texts in place of their token ids."""
    mask = tokens["padding_mask"]
    filled = np.zeros((*mask.shape, states[0].shape[1]), np.float32)
    for row, one in enumerate(states):
        filled[row, : len(one)] = one
    return {"states": filled, "padding_mask": mask}
