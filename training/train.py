"""A training run from configuration and data to a finished run folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from towers.attributes import learn_attributes
from towers.encoding import Progress
from towers.errors import InputError
from towers.interpolation import interpolate
from towers.item_text import ItemTemplate, text_of
from towers.retriever import Retriever, TextSettings
from training.augmentation import Augmenter
from training.auto import choose_method
from training.catalog import IMAGE, Catalog, render_items
from training.checkpoints import Checkpoints
from training.config import EncoderConfig, Method, TrainConfig
from training.contexts import Contexts
from training.contrast import require_contrast
from training.fit import adapt, hold_out
from training.fusion import choose_fusion
from training.held_out import CandidatePool
from training.histories import Histories
from training.interactions import Interactions
from training.lexical_weight import LexicalChoice, LexicalScorer, choose_lexical_weight
from training.methods import require_gradient, require_suitable
from training.reviews import Reviews
from training.run_folder import RunFolder
from training.shots import draw_shots
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
    progress: Progress | None = None,
    lexical_progress: Progress | None = None,
    choice_progress: Progress | None = None,
    warm_up_progress: Progress | None = None,
    fusion_progress: Progress | None = None,
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
        progress: told (steps done, steps in all) while training.
        lexical_progress: told (items done, items in all) while the weight is chosen.
        choice_progress: told (steps done, steps in all) while the method is chosen.
        warm_up_progress: told (steps done, steps in all) while the towers warm up.
        fusion_progress: told (items done, items in all) while the use of attributes is judged.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: the data hold no positive pair or too few for the shots asked for, the item
            text names a column the catalogue lacks, the encoder cannot be loaded or has fewer
            positions or layers than asked for, the folder is taken, or training diverged.
    """
    interactions.require_positives(config.min_grade)
    interactions = interactions.with_one_spelling()
    shots = interactions.positives(config.min_grade)
    if config.shots is not None:
        shots = draw_shots(interactions, config.shots, seed=config.seed, min_grade=config.min_grade)
    template = item_template(config.encoder, catalog)
    items = render_items(template, catalog)
    attributes = learn_attributes(template, items) if template.attributes else ()
    texts = [text_of(item) for item in items]
    retriever = build_retriever(config, template)  # before the folder is made: it may be refused
    method: Method = "full" if config.method == "auto" else config.method
    require_suitable(retriever.model, method, config.fit)
    if config.method not in ("auto", "zero-shot"):
        require_contrast(shots, texts, config.fit)
    require_gradient(method, config.fit)
    Augmenter.from_config(config.fit.augment, [])  # its sources may be refused too
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
    metrics: dict[str, Any] = {
        "method": config.method,
        "items": len(catalog),
        "shots": len(shots),
        "shot_queries": len(shots.queries),
        "warm_up": None,
        "choice": None,
        "lexical": {},
        "fit": None,
    }
    adapted: Retriever | None = None
    held_out: Interactions | None = None
    scorer = None if lexical is None else lexical(template, catalog)
    # With a draw of shots, judgements that were not drawn are not known either.
    judgements = shots
    if config.shots is None:
        judgements = interactions.of_queries(shots.queries)
    titles = [title or "" for title in catalog.column(template.columns[0])]
    weight = None if config.lexical == "auto" else lexical_number(config.lexical)
    untrained, asked = retriever, None
    if config.warm_up == "catalog":
        asked = hold_out(shots, judgements, config.fit, config.seed)[1]

    @functools.cache
    def warmed_up() -> tuple[Retriever, Checkpoints]:
        return warm_up(
            untrained,
            texts,
            config.fit,
            titles=titles,
            folder=output,
            pool=None if asked is None else CandidatePool(asked, texts, seed=config.seed),
            seed=config.seed,
            progress=warm_up_progress,
        )

    if config.warm_up == "catalog":
        retriever, record = warmed_up()
        metrics["warm_up"] = record.as_dict()
    plain, starts = retriever, None
    if attributes:
        fused = choose_fusion(
            plain,
            attributes,
            shots,
            items,
            config.fit,
            judgements=judgements,
            lexical=scorer,
            weight=weight,
            seed=config.seed,
            progress=fusion_progress,
        )
        metrics["attributes"] = fused.as_dict()
        retriever = plain.with_fusion(fused.fusion)
        if fused.fusion is not None:
            texts, starts = items, [plain.with_fusion(fusion) for fusion in fused.of_folds]
    fit, share = config.fit, 1.0
    lexical_choice: LexicalChoice | None = None
    if config.method == "auto":
        # Words say most of what it teaches; attributes were judged by the towers as they came.
        may_warm_up = config.warm_up == "auto" and weight == 0.0 and starts is None
        choice = choose_method(
            retriever,
            shots,
            texts,
            fit,
            folder=output / "checkpoints" / "auto",
            judgements=judgements,
            titles=titles,
            lexical=scorer,
            weight=weight,
            seed=config.seed,
            starts=starts,
            warm=(lambda: warmed_up()[0]) if may_warm_up else None,
            progress=choice_progress,
        )
        if choice.warm_up:
            adapted = retriever = warmed_up()[0]
            metrics["warm_up"] = warmed_up()[1].as_dict()
        metrics |= {"method": choice.method, "choice": choice.as_dict()}
        method, share = choice.method, choice.share
        # The choice was made; what was held out for it is trained on now.
        fit = fit.model_copy(update={"held_out": 0.0, "interpolate": False})
        lexical_choice = LexicalChoice(
            choice.lexical_weight, f"chosen with the method, on {choice.queries} held-out queries"
        )
    if method != "zero-shot":
        result = adapt(
            retriever,
            shots,
            texts,
            fit,
            method=method,
            folder=output,
            judgements=judgements,
            titles=titles,
            lexical=scorer,
            seed=config.seed,
            progress=progress,
        )
        if share < 1:
            result = replace(
                result, retriever=interpolate(retriever, result.retriever, share), share=share
            )
        adapted, metrics["fit"] = result.retriever, result.as_dict()
        if method != "linear":  # which is cross-validated, and trained on all pairs
            held_out = hold_out(shots, judgements, fit, config.seed)[1]
    if weight is not None or scorer is None:
        lexical_choice = LexicalChoice(weight or 0.0, "not chosen from the shots")
    elif lexical_choice is None or not metrics["choice"]["queries"]:
        lexical_choice = choose_lexical_weight(
            plain,
            shots,
            texts,
            scorer,
            adapted=adapted or (retriever if starts else None),
            seed=config.seed,
            progress=lexical_progress,
        )
    metrics["lexical"] = lexical_choice.as_dict()
    if also is not None:
        metrics |= also(adapted or retriever)
    run.finish(adapted or retriever, shots, metrics, held_out=held_out)
    return metrics


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
