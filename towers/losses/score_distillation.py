"""Distillation: a student's scores of the candidates are drawn to a teacher's."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def score_distillation(
    query: Tensor,
    candidates: Tensor,
    teacher_scores: Tensor,
    *,
    temperature: float = 0.05,
    teacher_temperature: float = 0.05,
) -> Tensor:
    """Kullback-Leibler divergence of the student's ranking of the candidates from the teacher's.

        loss[i] = sum_j t[i, j] * log(t[i, j] / s[i, j])

    with `t[i] = softmax(teacher_scores[i] / teacher_temperature)` and
    `s[i] = softmax(<query[i], candidates[.]> / temperature)`, in float32 whatever the dtypes.

    Args:
        query: `[B, d]`.
        candidates: `[C, d]`.
        teacher_scores: `[B, C]`, higher is better.
        temperature: Above 0, of the student.
        teacher_temperature: Above 0; a lower one makes the teacher surer.

    Returns:
        float32 `[B]`, 0 or more.
    """
    query = ops.cast(query, "float32")
    candidates = ops.cast(candidates, "float32")
    student = ops.log_softmax(ops.matmul(query, ops.transpose(candidates)) / temperature, axis=-1)
    teacher = ops.log_softmax(ops.cast(teacher_scores, "float32") / teacher_temperature, axis=-1)
    return ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)


@keras.saving.register_keras_serializable(package="towers")
class ScoreDistillation:
    """`score_distillation` as one number to minimise, with its options as configuration.

    The teacher may be anything that scores a query against items: a cross-encoder, a fusion of
    words and vectors (`training.distillation`), or the untrained towers themselves, from whose
    ranking training then cannot stray far.

    References:
        - Hinton, Vinyals & Dean 2015, Distilling the Knowledge in a Neural Network,
          https://arxiv.org/abs/1503.02531
        - Lin, Yang & Lin 2021, In-Batch Negatives for Knowledge Distillation with Tightly-Coupled
          Teachers for Dense Retrieval, RepL4NLP (KL over in-batch candidates)

    Args:
        weight: Factor of the loss beside other losses, 0 or more.
        temperature: Of the student, above 0.
        teacher_temperature: Above 0.
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        temperature: float = 0.05,
        teacher_temperature: float = 0.05,
    ) -> None:
        if weight < 0 or temperature <= 0 or teacher_temperature <= 0:
            raise ValueError(
                "weight must be 0 or more and temperatures above 0; got "
                f"{weight}, {temperature}, {teacher_temperature}"
            )
        self.weight = weight
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature

    def __call__(self, query: Tensor, candidates: Tensor, teacher_scores: Tensor) -> Tensor:
        """`weight` times the mean of the queries' losses, a float32 scalar."""
        losses = score_distillation(
            query,
            candidates,
            teacher_scores,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )
        return self.weight * ops.mean(losses)

    def get_config(self) -> dict[str, float]:
        """The constructor's arguments."""
        return {
            "weight": self.weight,
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
        }

    @classmethod
    def from_config(cls, config: dict[str, float]) -> ScoreDistillation:
        """Rebuilds the loss from `get_config`."""
        return cls(**config)
