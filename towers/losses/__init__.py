"""Losses on embeddings, in `keras.ops`, and the masks that keep false negatives out of them."""

from __future__ import annotations

from towers.losses.additive_margin_softmax import AdditiveMarginSoftmax
from towers.losses.graded_softmax import GradedSoftmax, graded_softmax
from towers.losses.in_batch_softmax import InBatchSoftmax, in_batch_softmax
from towers.losses.in_blocks import loss_in_blocks
from towers.losses.masks import (
    accidental_hits,
    known_grades,
    known_positives,
    same_item,
    same_query,
)
from towers.losses.r_drop import r_drop
from towers.losses.score_distillation import ScoreDistillation, score_distillation

__all__ = [
    "AdditiveMarginSoftmax",
    "GradedSoftmax",
    "InBatchSoftmax",
    "ScoreDistillation",
    "accidental_hits",
    "graded_softmax",
    "in_batch_softmax",
    "known_grades",
    "known_positives",
    "loss_in_blocks",
    "r_drop",
    "same_item",
    "same_query",
    "score_distillation",
]
