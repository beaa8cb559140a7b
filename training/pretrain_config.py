"""The settings of a pretraining: a typed, validated record."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from towers.checkpoint import DEFAULT_PRESET
from towers.errors import InputError


class PretrainConfig(BaseModel):
    """All that decides a pretraining, texts aside.

    Attributes:
        preset: the encoder to start from; see `towers.checkpoint`.
        steps: gradient steps in all.
        head_steps: of these, how many train the head alone: what a random head would ask of the
            encoder is noise.
        batch_size: texts a step.
        max_length: tokens of a text, ``[CLS]`` and ``[SEP]`` included.
        learning_rate: peak of the schedule of the encoder's steps: linear warm-up, cosine decay.
        head_learning_rate: likewise while the head is trained alone.
        warmup: share of either's steps that warm up.
        mask_rate: probability that a word is masked.
        weight_decay: AdamW's, not applied to biases and norms.
        clip_norm: upper limit of the gradient's global norm.
        checkpoint_steps: steps from one checkpoint to the next.
        seed: decides the texts kept back, the order, the masks, the head's first weights, dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    preset: str = DEFAULT_PRESET
    steps: int = Field(500, ge=1)
    head_steps: int = Field(100, ge=0)
    batch_size: int = Field(32, ge=1)
    max_length: int = Field(128, ge=3)
    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float = Field(1e-3, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    mask_rate: float = Field(0.15, gt=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    checkpoint_steps: int = Field(100, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _head_first(self) -> Self:
        if self.head_steps > self.steps:
            raise ValueError(f"head_steps {self.head_steps} is over steps {self.steps}")
        return self

    @classmethod
    def of(cls, **values: Any) -> PretrainConfig:
        """Makes one from values, of which None means not given.

        Raises:
            InputError: a value is wrong; the message names it.
        """
        try:
            return cls(**{name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            faults = "; ".join(
                ": ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors()
            )
            raise InputError(f"pretraining: {faults}") from error
