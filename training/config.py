"""The settings of a training run: a typed, validated record, read once and written back whole."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from towers.checkpoint import DEFAULT_PRESET
from towers.errors import InputError

Method = Literal[
    "zero-shot",
    "full",
    "linear",
    "lora",
    "adalora",
    "bitfit",
    "top",
    "adapters",
    "prefix",
    "distilled",
]
"""What is trained."""
Strategy = Literal["auto", "mirrored", "multi-worker", "tpu"]
"""``auto``: all GPUs of this machine where it has several, else one device. ``mirrored``: several
devices of this machine. ``multi-worker``: machines that ``TF_CONFIG`` names. ``tpu``: a TPU."""
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class EncoderConfig(_Section):
    """The towers.

    Attributes:
        preset: see `towers.checkpoint`.
        pooling: ``mean``, ``cls`` or ``max``.
        projection_dim: width of a projection after pooling; none if absent.
        shared: one encoder for queries and items.
        item_template: item text; from the catalogue's columns if absent.
        query_max_length: tokens.
        item_max_length: tokens.
        query_prefix: put before every query.
        numeric: columns of numbers that are fused into an item's vector; docs/attributes.md.
        categorical: columns of categories, likewise.
        image: fuse the column ``image_embedding``, likewise.
    """

    preset: str = DEFAULT_PRESET
    pooling: Literal["mean", "cls", "max"] = "mean"
    projection_dim: int | None = Field(None, ge=1)
    shared: bool = True
    item_template: str | None = None
    query_max_length: int = Field(32, ge=3)
    item_max_length: int = Field(128, ge=3)
    query_prefix: str = ""
    numeric: list[str] = []
    categorical: list[str] = []
    image: bool = False


class AugmentConfig(_Section):
    """How often the queries of pairs are changed, anew in each epoch: probabilities; 0 for never.

    Attributes:
        typos: one slip of the hand on a keyboard.
        word_dropout: a tenth of the words, at least one, left out.
        word_swap: two words in each other's place.
        synonyms: one word or phrase by another of its meaning.
        synonyms_from: a file of the columns ``text`` and ``synonym``, or ``wordnet``.
        units: one unit of measure or abbreviation in another spelling.
        back_translation: a paraphrase by `translator`.
        translator: ``module:function``, from a list of texts to a list of texts.
    """

    typos: Share = 0.0
    word_dropout: Share = 0.0
    word_swap: Share = 0.0
    synonyms: Share = 0.0
    synonyms_from: str | None = None
    units: Share = 0.0
    back_translation: Share = 0.0
    translator: str | None = None

    @model_validator(mode="after")
    def _sources(self) -> AugmentConfig:
        if self.synonyms and self.synonyms_from is None:
            raise ValueError('synonyms need synonyms_from: a file, or "wordnet"')
        if self.back_translation and self.translator is None:
            raise ValueError('back_translation needs translator = "module:function"')
        return self


class FitConfig(_Section):
    """The adaptation.

    Attributes:
        epochs: passes over the pairs, at most; None is 5, and fewer the more pairs there are where
            all weights are trained.
        min_steps: steps of an epoch to come near to with few pairs, which then come in smaller
            batches, and up to four times; docs/auto.md has why that is no default.
        batch_size: pairs a batch; the other items of a batch are a query's negatives.
        learning_rate: peak of the schedule: linear warm-up, cosine decay; the method's own if
            absent.
        warmup: share of the steps that warm up.
        weight_decay: AdamW's, not applied to biases and norms.
        clip_norm: upper limit of the gradient's global norm.
        temperature: divisor of the cosines.
        learn_temperature: train the temperature too.
        symmetric: add the item-to-query direction of the loss.
        loss: of the pairs: ``softmax`` over the batch, ``margin`` (the positive must win by
            `margin`) or ``graded`` (grades are the targets; `towers.losses`).
        margin: of ``margin``: in units of the cosine.
        catalog_negatives: random catalogue items added to each batch as negatives.
        hard_negatives: items that rank high for a query and are no positives of it, added for each
            pair of a batch (`training.negatives`).
        hard_negatives_from: whose ranking that is: ``towers``, ``lexical`` or ``both``.
        judged_negatives: items judged for the query of a pair, and lower than its positives, added
            for each pair of a batch where there are any.
        cached_negatives: random catalogue items added to each batch as vectors, which cost no
            encoding; thousands are cheap.
        remine: epochs after which hard negatives are mined and cached vectors are made anew by the
            towers as they are then; 0 for never.
        accumulate: parts that a batch is encoded in, so that one larger than memory can be trained
            on; more parts are slower and change nothing else.
        anchor: weight of a loss that draws the scores in a batch to those of the untrained towers.
        fgm: length of an adversarial step on the embedded tokens of each text; 0 for none.
        r_drop: weight of the difference between two passes with other dropout; 0 for none.
        held_out: share of the queries kept back for early stopping; 0 for none.
        min_held_out: with fewer held-out queries than this none are kept back: a choice by so few
            would be a coin toss, and each is worth more in training.
        patience: epochs without a better held-out score before training ends.
        mixed_precision: compute dtype policy; ``auto``: ``mixed_bfloat16`` where the device
            multiplies bfloat16 natively, else ``float32``.
        towers: ``both``, or ``query`` alone: items keep their vectors, and an index of them stays
            valid.
        interpolate: try weights between zero-shot and adapted on the held-out queries, and keep the
            best: true for 0, .25, .5, .75 and 1, or a list of shares of the way.
        soup: trainings, each in its own order and with its own dropout, whose weights are
            averaged; not for methods with parts that cannot be merged.
        layer_decay: factor of the learning rate from each layer to the one below; 1 for none.
        distillation: of ``distilled``: weight of the teacher's loss beside that of the pairs.
        pseudo_queries: of ``distilled``: number of queries made from titles.
        rank: of ``lora``, and of ``adalora`` on the average in the end.
        alpha: of both: scale of the update, divided by the rank.
        kernels: of both: ``query_value``, or ``all`` kernels of the layers.
        top_layers: of ``top``: number of layers that are trained.
        bottleneck: of ``adapters``: inner width.
        prefix_length: of ``prefix``: learned keys and values a layer.
        augment: changes of the queries; for all methods but ``linear``.
    """

    epochs: int | None = Field(None, ge=1)
    min_steps: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    temperature: float = Field(0.05, gt=0)
    learn_temperature: bool = False
    symmetric: bool = True
    loss: Literal["softmax", "margin", "graded"] = "softmax"
    margin: float = Field(0.1, ge=0, le=2)
    catalog_negatives: int = Field(0, ge=0)
    hard_negatives: int = Field(0, ge=0, le=30)
    hard_negatives_from: Literal["towers", "lexical", "both"] = "towers"
    judged_negatives: int = Field(0, ge=0)
    cached_negatives: int = Field(0, ge=0)
    remine: int = Field(0, ge=0)
    accumulate: int = Field(1, ge=1)
    anchor: float = Field(0.0, ge=0)
    fgm: float = Field(0.0, ge=0)
    r_drop: float = Field(0.0, ge=0)
    held_out: float = Field(0.1, ge=0, lt=1)
    min_held_out: int = Field(16, ge=1)
    patience: int = Field(2, ge=1)
    mixed_precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    towers: Literal["both", "query"] = "both"
    interpolate: bool | list[Share] = False
    soup: int = Field(1, ge=1)
    layer_decay: float = Field(1.0, gt=0, le=1)
    distillation: float = Field(1.0, ge=0)
    pseudo_queries: int = Field(1500, ge=16)
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    kernels: Literal["query_value", "all"] = "query_value"
    top_layers: int = Field(2, ge=1)
    bottleneck: int = Field(32, ge=1)
    prefix_length: int = Field(16, ge=1)
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _belongs_together(self) -> FitConfig:
        if self.remine and not (self.hard_negatives or self.cached_negatives):
            raise ValueError("remine needs hard_negatives or cached_negatives")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate}, more parts than the batch has pairs "
                f"({self.batch_size})"
            )
        return self

    @property
    def shares(self) -> list[float]:
        """The shares of the way from zero-shot to adapted to try; none for adapted alone."""
        if isinstance(self.interpolate, bool):
            return [0.0, 0.25, 0.5, 0.75, 1.0] if self.interpolate else []
        return self.interpolate


class UpdateConfig(_Section):
    """How a finished run goes on with new pairs; docs/update.md.

    Attributes:
        replay: old pairs that are trained on again, for each new one.
        anchor: weight of a loss that draws the scores in a batch to those of the towers before; in
            place of `FitConfig.anchor`.
        held_out: share of the queries, old and new, that versions are compared on.
        measure: what they are compared by; see `training.evaluation.Measure`.
        max_drop: how much less of it on old queries is put up with.
    """

    replay: float = Field(1.0, ge=0)
    anchor: float = Field(1.0, ge=0)
    held_out: float = Field(0.2, gt=0, lt=1)
    measure: str = "nDCG@10"
    max_drop: float = Field(0.005, ge=0)


class TrainConfig(_Section):
    """All that decides a training run, data aside.

    Attributes:
        method: ``auto`` (chosen by held-out shots), ``zero-shot`` (nothing trained), ``full`` (all
            weights) or one that trains few; docs/methods.md has them all.
        shots: number of positive pairs to draw; all if absent.
        min_grade: lowest grade of a positive pair.
        lexical: weight of the lexical score in the final one, from 0 to 1; ``auto`` to choose it
            from the shots, ``off`` for 0.
        seed: decides the draw, the held-out queries, the order, dropout and a random projection.
        warm_up: ``catalog`` to train on pairs made of the catalogue before the method begins;
            ``auto``: where words do not count and the method ``auto`` finds that it helps.
        strategy: the devices to train on; see `Strategy` and docs/devices.md.
        deterministic: the same bits in every run on the same machine; slower on a GPU.
        encoder: the towers.
        fit: the adaptation.
        update: of a run that goes on from another.
    """

    method: Literal[Method, "auto"] = "auto"
    shots: int | None = Field(None, ge=1)
    min_grade: int = Field(1, ge=1)
    lexical: Literal["auto", "off"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    seed: int = Field(0, ge=0)
    warm_up: Literal["auto", "off", "catalog"] = "auto"
    strategy: Strategy = "auto"
    deterministic: bool = False
    encoder: EncoderConfig = EncoderConfig()
    fit: FitConfig = FitConfig()
    update: UpdateConfig | None = None

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        base: TrainConfig | None = None,
        **overrides: Any,
    ) -> TrainConfig:
        """Reads a TOML or JSON file and puts the command line's options over it.

        Args:
            path: the file; only defaults and overrides if None.
            base: what the file is put over; the defaults if None.
            **overrides: top-level fields, and ``encoder``, ``fit`` and ``update`` as dicts of
                fields; None means not given.

        Raises:
            InputError: the file cannot be read, names an unknown field or has a wrong value.
        """
        values = {} if base is None else base.model_dump()
        for changes in ({} if path is None else read_values(path), overrides):
            for name, value in changes.items():
                if isinstance(value, dict):
                    given = {key: v for key, v in value.items() if v is not None}
                    section = {} if values.get(name) is None else values[name]
                    # A section that is no table is left for validation to complain about.
                    values[name] = {**section, **given} if isinstance(section, dict) else section
                elif value is not None:
                    values[name] = value
        return cls.of(values, "options" if path is None else f"{os.fspath(path)} and options")

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> TrainConfig:
        """Makes a configuration of nested tables.

        Args:
            values: fields, and ``encoder`` / ``fit`` as dicts of fields.
            where: they come from, for messages.

        Raises:
            InputError: an unknown field or a wrong value.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
            raise InputError(f"configuration ({where}): {faults}") from error


def read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a TOML or JSON file as nested tables, unchecked.

    Raises:
        InputError: the file cannot be read, or is no such table.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a configuration: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # both decoders' errors say where
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise InputError(f"{path}: not valid {kind}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a configuration is a table of fields")
    return values
