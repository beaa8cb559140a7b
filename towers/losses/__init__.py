"""Losses on embeddings, in `keras.ops`, and the masks that keep false negatives out of them."""

from __future__ import annotations

from towers.losses.in_batch_softmax import InBatchSoftmax, in_batch_softmax
from towers.losses.masks import accidental_hits, known_positives, same_query
from towers.losses.score_distillation import ScoreDistillation, score_distillation

__all__ = [
    "InBatchSoftmax",
    "ScoreDistillation",
    "accidental_hits",
    "in_batch_softmax",
    "known_positives",
    "same_query",
    "score_distillation",
]
