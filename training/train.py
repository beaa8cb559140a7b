"""A training run from configuration and data to a finished run folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from towers.attributes import Attribute, learn_attributes
from towers.errors import InputError
from towers.interpolation import interpolate
from towers.item_text import ItemTemplate, text_of
from towers.retriever import Retriever, TextSettings
from training.augmentation import Augmenter
from training.auto import Choice, choose_method
from training.catalog import IMAGE, Catalog, render_items
from training.checkpoints import Checkpoints
from training.config import EncoderConfig, FitConfig, Method, TrainConfig
from training.contexts import Contexts
from training.contrast import require_contrast
from training.fit import FitResult, adapt, hold_out
from training.fusion import FusionChoice, choose_fusion
from training.held_out import CandidatePool
from training.histories import Histories
from training.interactions import Interactions
from training.lexical_weight import LexicalChoice, LexicalScorer, choose_lexical_weight
from training.methods import require_gradient, require_suitable
from training.reviews import Reviews
from training.run_folder import RunFolder
from training.shots import draw_shots
from training.stages import Stages, stage
from training.warm_up import warm_up

LexicalIndexer = Callable[[ItemTemplate, Catalog], LexicalScorer]
"""Makes the lexical score of a catalogue, of which it reads the columns of the item text."""

KnownVectors = Callable[[Retriever, Sequence[str]], np.ndarray | None]
"""Finds what `towers.Retriever.encode_base` made of item texts before; None where it finds none."""

AlsoFit = Callable[[Retriever], dict[str, Any]]
"""Fits more to the trained towers, writes it into the run's folder, and says what was measured."""


def train(
    config: TrainConfig,
    catalog: Catalog,
    interactions: Interactions,
    output: Path,
    *,
    lexical: LexicalIndexer | None = None,
    known_vectors: KnownVectors | None = None,
    histories: Histories | None = None,
    reviews: Reviews | None = None,
    contexts: Contexts | None = None,
    also: AlsoFit | None = None,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Draws shots, chooses a method, adapts towers, weighs words and writes a run folder.

    Args:
        config: all settings.
        catalog: the items.
        interactions: judged pairs.
        output: the run folder; an interrupted run of the same inputs is taken up.
        lexical: the lexical score that the weight ``auto`` is chosen for; without one it is 0.
        known_vectors: saves encoding items anew with the untrained towers.
        histories: what `also` learns from, for the run to be known by.
        reviews: likewise.
        contexts: likewise.
        also: makes what else belongs to the run of the trained towers, ahead of its end.
        progress: told (stage, steps or items done, in all). The stages are ``Warming up``,
            ``Judging the attributes``, ``Choosing the method``, ``Training`` and ``Choosing the
            lexical weight``, those of them that there are.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: the data hold no positive pair or too few for the shots asked for, the item
            text names a column the catalogue lacks, the encoder cannot be loaded or has fewer
            positions or layers than asked for, the folder is taken, or training diverged.
    """
    interactions.require_positives(config.min_grade)
    interactions = interactions.with_one_spelling()
    shots, judgements = _drawn(config, interactions)
    template = item_template(config.encoder, catalog)
    items = render_items(template, catalog)
    attributes = learn_attributes(template, items) if template.attributes else ()
    texts = [text_of(item) for item in items]
    # All that may be refused is, before the folder is made.
    retriever = build_retriever(config, template)
    _require_trainable(retriever, shots, texts, config)
    run = RunFolder.open(
        output,
        config,
        catalog,
        interactions,
        histories,
        further={"reviews": reviews, "contexts": contexts},
    )
    if known_vectors is not None and (known := known_vectors(retriever, texts)) is not None:
        retriever = retriever.knowing(texts, known)
    steps = _Steps(
        config,
        retriever,
        shots,
        judgements,
        items,
        titles=[title or "" for title in catalog.column(template.columns[0])],
        lexical=None if lexical is None else lexical(template, catalog),
        folder=output,
        progress=progress,
    )
    trained = steps.trained(attributes)
    metrics: dict[str, Any] = {
        "method": config.method,
        "items": len(catalog),
        "shots": len(shots),
        "shot_queries": len(shots.queries),
        **trained.metrics,
    }
    if also is not None:
        metrics |= also(trained.retriever)
    run.finish(trained.retriever, shots, metrics, held_out=trained.held_out)
    return metrics


def _drawn(config: TrainConfig, interactions: Interactions) -> tuple[Interactions, Interactions]:
    """The positive pairs to train on, and all judgements that may be known of their queries."""
    if config.shots is None:
        shots = interactions.positives(config.min_grade)
        return shots, interactions.of_queries(shots.queries)
    # With a draw of shots, judgements that were not drawn are not known either.
    shots = draw_shots(interactions, config.shots, seed=config.seed, min_grade=config.min_grade)
    return shots, shots


def _require_trainable(
    retriever: Retriever, shots: Interactions, texts: Sequence[str], config: TrainConfig
) -> None:
    """Raises `InputError` where the towers or the pairs do not suit what is configured."""
    method: Method = "full" if config.method == "auto" else config.method
    require_suitable(retriever.model, method, config.fit)
    if config.method not in ("auto", "zero-shot"):
        require_contrast(shots, texts, config.fit)
    require_gradient(method, config.fit)
    Augmenter.from_config(config.fit.augment, [])  # its sources may be refused too


@dataclass(frozen=True)
class _Trained:
    """What came of the steps.

    Attributes:
        retriever: the towers, as they came where nothing was trained.
        metrics: what the steps measured: ``warm_up``, ``attributes``, ``choice``, ``fit``,
            ``lexical``, and the ``method`` that was chosen.
        held_out: judgements of the queries that training kept back; None where it kept none.
    """

    retriever: Retriever
    metrics: dict[str, Any]
    held_out: Interactions | None


class _Steps:
    """The steps of a training, each of which may be left out: docs/methods.md.

    Args:
        config: all settings.
        untrained: the towers as they came.
        shots: positive pairs.
        judgements: all judgements known of their queries.
        items: every catalogue row, rendered with its attributes.
        titles: what queries can be made from, of every catalogue row.
        lexical: the lexical score; None for the towers alone.
        folder: for checkpoints and events.
        progress: see `train`.
    """

    def __init__(
        self,
        config: TrainConfig,
        untrained: Retriever,
        shots: Interactions,
        judgements: Interactions,
        items: Sequence[str],
        *,
        titles: Sequence[str],
        lexical: LexicalScorer | None,
        folder: Path,
        progress: Stages | None,
    ) -> None:
        self.config, self.untrained = config, untrained
        self.shots, self.judgements = shots, judgements
        self.items, self.texts = items, [text_of(item) for item in items]
        self.titles, self.lexical = titles, lexical
        self.weight = None if config.lexical == "auto" else lexical_number(config.lexical)
        self.folder, self.progress = folder, progress

    def trained(self, attributes: Sequence[Attribute]) -> _Trained:
        """Takes all steps that are configured, one after the other."""
        config, fit = self.config, self.config.fit
        metrics: dict[str, Any] = {"warm_up": None, "choice": None, "lexical": {}, "fit": None}
        plain = self.untrained
        if config.warm_up == "catalog":
            plain, record = self.warmed_up
            metrics["warm_up"] = record.as_dict()
        retriever, starts = plain, None
        if attributes:
            fused = self.fused(plain, attributes)
            metrics["attributes"] = fused.as_dict()
            retriever = plain.with_fusion(fused.fusion)
            if fused.fusion is not None:
                self.texts = list(self.items)
                starts = [plain.with_fusion(fusion) for fusion in fused.of_folds]
        method, share = config.method, 1.0
        words: LexicalChoice | None = None
        adapted: Retriever | None = None
        if method == "auto":
            choice = self.chosen(retriever, starts)
            if choice.warm_up:
                retriever, record = self.warmed_up
                adapted, metrics["warm_up"] = retriever, record.as_dict()
            method, share = choice.method, choice.share
            metrics |= {"method": method, "choice": choice.as_dict()}
            # The choice was made; what was held out for it is trained on now.
            fit = fit.model_copy(update={"held_out": 0.0, "interpolate": False})
            if choice.queries:
                reason = f"chosen with the method, on {choice.queries} held-out queries"
                words = LexicalChoice(choice.lexical_weight, reason)
        held_out: Interactions | None = None
        if method != "zero-shot":
            result = self.adapted(retriever, method, fit, share)
            adapted, metrics["fit"] = result.retriever, result.as_dict()
            if method != "linear":  # which is cross-validated, and trained on all pairs
                held_out = hold_out(self.shots, self.judgements, fit, config.seed)[1]
        words = self.weighed(plain, adapted or (retriever if starts else None), words)
        metrics["lexical"] = words.as_dict()
        return _Trained(adapted or retriever, metrics, held_out)

    @functools.cached_property
    def warmed_up(self) -> tuple[Retriever, Checkpoints]:
        """The towers trained on the catalogue alone, and how that went."""
        config, asked = self.config, None
        if config.warm_up == "catalog":
            asked = hold_out(self.shots, self.judgements, config.fit, config.seed)[1]
        return warm_up(
            self.untrained,
            self.texts,
            config.fit,
            titles=self.titles,
            folder=self.folder,
            pool=None if asked is None else CandidatePool(asked, self.texts, seed=config.seed),
            seed=config.seed,
            progress=stage(self.progress, "Warming up"),
        )

    def fused(self, plain: Retriever, attributes: Sequence[Attribute]) -> FusionChoice:
        """What attributes say beside the text, if other queries gain from it."""
        return choose_fusion(
            plain,
            attributes,
            self.shots,
            self.items,
            self.config.fit,
            judgements=self.judgements,
            lexical=self.lexical,
            weight=self.weight,
            seed=self.config.seed,
            progress=stage(self.progress, "Judging the attributes"),
        )

    def chosen(self, retriever: Retriever, starts: Sequence[Retriever] | None) -> Choice:
        """The method that the shots speak for."""
        # Words say most of what it teaches; attributes were judged by the towers as they came.
        may_warm_up = self.config.warm_up == "auto" and self.weight == 0.0 and starts is None
        return choose_method(
            retriever,
            self.shots,
            self.texts,
            self.config.fit,
            folder=self.folder / "checkpoints" / "auto",
            judgements=self.judgements,
            titles=self.titles,
            lexical=self.lexical,
            weight=self.weight,
            seed=self.config.seed,
            starts=starts,
            warm=(lambda: self.warmed_up[0]) if may_warm_up else None,
            progress=stage(self.progress, "Choosing the method"),
        )

    def adapted(
        self, retriever: Retriever, method: Method, fit: FitConfig, share: float
    ) -> FitResult:
        """Towers adapted to the shots, or part of the way there."""
        result = adapt(
            retriever,
            self.shots,
            self.texts,
            fit,
            method=method,
            folder=self.folder,
            judgements=self.judgements,
            titles=self.titles,
            lexical=self.lexical,
            seed=self.config.seed,
            progress=stage(self.progress, "Training"),
        )
        if share == 1.0:
            return result
        between = interpolate(retriever, result.retriever, share)
        return replace(result, retriever=between, share=share)

    def weighed(
        self, plain: Retriever, adapted: Retriever | None, chosen: LexicalChoice | None
    ) -> LexicalChoice:
        """The weight of the words: the configured one, that of the method, or that of the shots."""
        if self.weight is not None or self.lexical is None:
            return LexicalChoice(self.weight or 0.0, "not chosen from the shots")
        if chosen is not None:
            return chosen
        return choose_lexical_weight(
            plain,
            self.shots,
            self.texts,
            self.lexical,
            adapted=adapted,
            seed=self.config.seed,
            progress=stage(self.progress, "Choosing the lexical weight"),
        )


def lexical_number(weight: float | str) -> float:
    """A weight as a number; ``off`` is 0."""
    return 0.0 if isinstance(weight, str) else weight


def build_retriever(config: TrainConfig, template: ItemTemplate) -> Retriever:
    """Zero-shot towers as configured; the seed decides a random projection.

    Raises:
        InputError: the configuration is an update's, or the encoder cannot be loaded.
    """
    if config.update is not None:
        raise InputError(
            "the configuration has a table [update]: it goes on from another run, by `towers "
            "update`; leave the table out to train anew"
        )
    keras.utils.set_random_seed(config.seed)
    encoder = config.encoder
    return Retriever.from_preset(
        encoder.preset,
        text=TextSettings(
            template.pattern,
            encoder.query_max_length,
            encoder.item_max_length,
            encoder.query_prefix,
        ),
        pooling=encoder.pooling,
        projection_dim=encoder.projection_dim,
        shared=encoder.shared,
    )


def item_template(encoder: EncoderConfig, catalog: Catalog) -> ItemTemplate:
    """The configured item text, or that of the catalogue's columns, and configured attributes."""
    if encoder.item_template is not None:
        template = ItemTemplate(encoder.item_template)
    else:
        template = ItemTemplate.for_columns(catalog.table.column_names)
    return template.with_attributes(
        numeric=encoder.numeric,
        categorical=encoder.categorical,
        vectors=[IMAGE] if encoder.image else [],
    )
