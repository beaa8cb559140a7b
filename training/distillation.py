"""Distillation: towers learn, on queries made from the catalogue, what words and towers know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from towers.encoding import Progress, padded, token_sequences
from towers.errors import InputError
from towers.item_text import text_of
from towers.retriever import Retriever
from training.batch_attributes import BatchAttributes
from training.batches import plan_epoch
from training.checkpoints import Checkpoints
from training.config import FitConfig
from training.epoch_dataset import epoch_dataset
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer
from training.loop import train_epochs
from training.methods import EPOCHS, LEARNING_RATES, finished, trainable_copy
from training.pseudo_queries import make_pseudo_queries
from training.teacher import make_teacher

# Rows of a batch that are pseudo-queries: these at least, and what labelled pairs leave empty.
_PSEUDO_ROWS = 16
_PAIRS = 128  # labelled ones, that the learning rate is for
# An epoch is a pass over the pairs, but no less than this many steps.
_MIN_STEPS = 16
# Items that are scored beside those of the pairs and pseudo-queries.
_MAX_ITEMS = 25_000
_MISSPELT = 0.3
# A judged positive is worth this much more than its teacher says, up to a limit.
_POSITIVE_BONUS = 0.3
_POSITIVE_LIMIT = 1.2


@dataclass
class DistillationBatches:
    """Few pairs among many pseudo-queries, all with a teacher's scores, as `tf.data` batches.

    A batch holds labelled pairs, pseudo-queries with the items whose titles they were made from,
    and for each of them one item that ranks high. Every query is scored by the teacher against
    every item of the batch. The labelled queries also have the items of the others as in-batch
    negatives.

    Words and towers together rank better than the towers alone (docs/lexical.md), for any query
    that can be made up from the catalogue: that is what a teacher can tell and few pairs cannot.

    Every epoch has its own order, which depends on the seed and the epoch's number alone.

    Args:
        retriever: the towers of the teacher.
        pairs: positive pairs; None for pseudo-queries alone.
        item_texts: item text of every catalogue row.
        titles: what pseudo-queries are made from, of every catalogue row.
        lexical: the lexical score; None leaves the cosine alone as the teacher.
        lexical_weight: of the lexical score in the teacher's.
        batch_size: labelled pairs a batch, at most.
        pseudo_queries: number of pseudo-queries.
        max_length: items are cut to this many tokens.
        seed: see above.
        progress: told about encoding the items that the teacher scores.
    """

    retriever: Retriever
    pairs: Interactions | None
    item_texts: Sequence[str]
    titles: Sequence[str]
    lexical: LexicalScorer | None
    lexical_weight: float
    batch_size: int = 32
    pseudo_queries: int = 1500
    max_length: int = 64
    seed: int = 0
    progress: Progress | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 3])
        pairs = self.pairs
        self._pseudo = make_pseudo_queries(self.titles, self.pseudo_queries, seed=self.seed)
        if not self._pseudo.texts:
            raise InputError(
                "no query can be made from the titles: some with two words or more are needed, "
                "one of them of four letters"
            )
        labelled = [] if pairs is None else list(pairs.queries)
        # Items of equal text are one item to the towers: each text is scored once.
        ids: dict[str, int] = {}
        self._text_id = np.array([ids.setdefault(t, len(ids)) for t in self.item_texts], np.int64)
        distinct = np.unique(self._text_id, return_index=True)[1]
        own = [self._pseudo.item_row] if pairs is None else [self._pseudo.item_row, pairs.item_row]
        needed = np.unique(distinct[self._text_id[np.concatenate(own)]])
        others = rng.permutation(np.setdiff1d(distinct, needed))[: max(0, _MAX_ITEMS - len(needed))]
        teacher = make_teacher(
            self.retriever,
            [*labelled, *self._pseudo.texts],
            self.item_texts,
            np.sort(np.concatenate([needed, others])),
            self.lexical,
            self.lexical_weight,
            progress=self.progress,
        )
        self._teacher = teacher
        column = np.full(len(distinct), -1, np.int64)
        column[self._text_id[teacher.rows]] = np.arange(len(teacher.rows))
        self._pseudo_column = column[self._text_id[self._pseudo.item_row]]
        if pairs is not None:
            self._pair_column = column[self._text_id[pairs.item_row]]
            self._known = [set[int]() for _ in labelled]
            for query, item in zip(pairs.query_row, self._pair_column, strict=True):
                self._known[query].add(int(item))
        text, tokenizer = self.retriever.text, self.retriever.tokenizer
        prefix = text.query_prefix
        queries = [*labelled, *self._pseudo.texts, *self._pseudo.misspelt]
        self._query_tokens = token_sequences(
            tokenizer, [prefix + query for query in queries], text.query_max_length
        )
        items = [self.item_texts[row] for row in teacher.rows.tolist()]
        self._attributes = BatchAttributes(self.retriever, items)
        self._item_tokens = token_sequences(
            tokenizer,
            [text_of(item) for item in items],
            min(self.max_length, text.item_max_length),
        )

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Numbers of the labelled pairs in each batch of an epoch."""
        if self.pairs is None:
            return [np.zeros(0, np.int64)] * _MIN_STEPS
        rng = np.random.default_rng([self.seed, epoch])
        length = np.array([len(self._item_tokens[item]) for item in self._pair_column])
        batches = plan_epoch(
            self.pairs.query_row, length, self.batch_size, rng, min_steps=_MIN_STEPS
        )
        # Where even that makes few steps, the others have pseudo-queries alone.
        return batches + [np.zeros(0, np.int64)] * (_MIN_STEPS - len(batches))

    def dataset(self) -> tf.data.Dataset:
        """Batches ``(x, y, sample_weight)`` of the epoch that `epoch` says when iteration begins.

        ``x`` is as `towers.TwoTower` takes it. ``y`` is not used. The sample weight of
        pseudo-queries is 0.
        """
        tokens = {
            "token_ids": tf.TensorSpec([None, None], tf.int32),
            "padding_mask": tf.TensorSpec([None, None], tf.int32),
        }
        ids = tf.TensorSpec([None], tf.int32)
        x = {
            "query": tokens,
            "item": tokens,
            "negatives": tokens,
            "item_ids": ids,
            "negative_ids": ids,
            "ignored": tf.TensorSpec([None, None], tf.bool),
            "teacher_scores": tf.TensorSpec([None, None], tf.float32),
            **self._attributes.signature("item_attributes", "negative_attributes"),
        }
        signature = (x, ids, tf.TensorSpec([None], tf.float32))
        return epoch_dataset(self, DistillationBatches._epoch, signature, len(self.plan(0)))

    def _epoch(self) -> Iterator[tuple]:
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        labelled = 0 if self.pairs is None else len(self.pairs.queries)
        pseudo = np.zeros(0, np.int64)
        for pairs in self.plan(self.epoch):
            wanted = max(_PSEUDO_ROWS, self.batch_size - len(pairs))
            if len(pseudo) < wanted:
                pseudo = rng.permutation(len(self._pseudo.texts))
            made, pseudo = pseudo[:wanted], pseudo[wanted:]
            yield self._batch(pairs, made, labelled, rng)

    def _batch(
        self, pairs: np.ndarray, made: np.ndarray, labelled: int, rng: np.random.Generator
    ) -> tuple:
        query = labelled + made  # rows of the teacher's scores
        own = self._pseudo_column[made]
        weight = np.zeros(len(made), np.float32)
        if self.pairs is not None:
            query = np.concatenate([self.pairs.query_row[pairs], query])
            own = np.concatenate([self._pair_column[pairs], own])
            weight = np.concatenate([self.pairs.weight[pairs], weight])
        near = self._teacher.near[query]  # [B, 2, depth]
        mined = near[
            np.arange(len(query)),
            rng.integers(2, size=len(query)),
            rng.integers(near.shape[2], size=len(query)),
        ]
        mined = np.setdiff1d(mined, own)
        if not len(mined):  # all there is stands in the batch already
            mined = own[:1]
        candidates = np.concatenate([own, mined])
        scores = self._teacher.scores[query[:, None], candidates].astype(np.float32)  # [B, C]
        ignored = np.ones(scores.shape, bool)
        n = len(pairs)
        ignored[:n, :n] = False
        for row in range(n):
            known = np.isin(candidates, list(self._known[query[row]]))
            scores[row, known] = np.minimum(scores[row, known] + _POSITIVE_BONUS, _POSITIVE_LIMIT)
            ignored[row, known] = True
        # The place of a pseudo-query's clean or misspelt tokens.
        slip = (query >= labelled) & (rng.random(len(query)) < _MISSPELT)
        tokens = query + slip * len(self._pseudo.texts)
        x = {
            "query": self._pad(self._query_tokens, tokens, self.retriever.text.query_max_length),
            "item": self._pad(self._item_tokens, own, self.max_length),
            "negatives": self._pad(self._item_tokens, mined, self.max_length),
            "item_ids": own.astype(np.int32),
            "negative_ids": mined.astype(np.int32),
            "ignored": ignored,
            "teacher_scores": scores,
            **self._attributes(item_attributes=own, negative_attributes=mined),
        }
        return x, np.zeros(len(query), np.int32), weight

    def _pad(
        self, sequences: Sequence[np.ndarray], rows: np.ndarray, max_length: int
    ) -> dict[str, np.ndarray]:
        chosen = [sequences[row] for row in rows.tolist()]
        return padded(chosen, max_length, self.retriever.tokenizer.pad_id)


def distil(
    retriever: Retriever,
    pairs: Interactions | None,
    item_texts: Sequence[str],
    config: FitConfig,
    *,
    titles: Sequence[str],
    lexical: LexicalScorer,
    lexical_weight: float,
    folder: Path,
    name: str = "distillation",
    pool: CandidatePool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Retriever, Checkpoints]:
    """Teaches towers to rank as the words and they themselves do together.

    The teacher is ``(1 - lexical_weight) * cosine + lexical_weight * lexical`` with the towers as
    they come. Labels count for more than it where there are any.

    References:
        - Wang et al. 2022, GPL: Generative Pseudo Labeling, NAACL (pseudo-queries, a teacher)
        - Furlanello et al. 2018, Born-Again Neural Networks, ICML (a student like its teacher)

    Args:
        retriever: the towers to start from; left as it is.
        pairs: positive pairs; None for pseudo-queries alone.
        item_texts: item text of every catalogue row.
        config: the recipe.
        titles: what pseudo-queries are made from, of every catalogue row.
        lexical: the lexical score.
        lexical_weight: of the lexical score in the teacher's.
        folder: for checkpoints and TensorBoard's event files.
        name: of a folder inside the folders of these.
        pool: held-out queries that decide which weights are best; the last ones if None.
        seed: decides pseudo-queries and the order.
        progress: told (steps done, steps in all).

    Returns:
        The towers in float32, and losses and held-out scores by epoch.

    Raises:
        InputError: no query can be made from the titles, or training diverged.
    """
    rate = config.learning_rate
    if rate is None:  # many labelled pairs change the towers more
        labelled = 0 if pairs is None else len(pairs)
        rate = LEARNING_RATES["distilled"] * math.sqrt(_PAIRS / max(_PAIRS, labelled))
    update = {"learning_rate": rate, "epochs": config.epochs or EPOCHS}
    config = config.model_copy(update=update)
    keras.utils.set_random_seed(seed)
    batches = DistillationBatches(
        retriever,
        pairs,
        item_texts,
        titles,
        lexical,
        lexical_weight,
        batch_size=config.batch_size,
        pseudo_queries=config.pseudo_queries,
        seed=seed,
    )
    model = trainable_copy(retriever.model, "distilled", config)
    student = Retriever(model, retriever.tokenizer, retriever.text)
    checkpoints = train_epochs(
        student,
        batches,
        config,
        folder=folder,
        name=name,
        pool=pool,
        progress=progress,
    )
    return Retriever(finished(model), retriever.tokenizer, retriever.text), checkpoints
