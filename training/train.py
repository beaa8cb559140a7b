"""A training run from configuration and data to a finished run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from towers.encoding import Progress
from towers.item_text import ItemTemplate
from towers.retriever import Retriever, TextSettings
from training.catalog import Catalog
from training.config import EncoderConfig, TrainConfig
from training.fit import adapt
from training.interactions import Interactions
from training.lexical_weight import LexicalChoice, LexicalScorer, choose_lexical_weight
from training.methods import require_suitable
from training.run_folder import RunFolder
from training.shots import draw_shots

LexicalIndexer = Callable[[ItemTemplate, Catalog], LexicalScorer]
"""Makes the lexical score of a catalogue, of which it reads the columns of the item text."""


def train(
    config: TrainConfig,
    catalog: Catalog,
    interactions: Interactions,
    output: Path,
    *,
    lexical: LexicalIndexer | None = None,
    progress: Progress | None = None,
    lexical_progress: Progress | None = None,
) -> dict[str, Any]:
    """Draws shots, adapts towers, chooses the lexical weight and writes a run folder.

    Args:
        config: all settings.
        catalog: the items.
        interactions: judged pairs.
        output: the run folder; an interrupted run of the same inputs is taken up.
        lexical: the lexical score that the weight ``auto`` is chosen for; without one it is 0.
        progress: told (steps done, steps in all) while training.
        lexical_progress: told (items done, items in all) while the weight is chosen.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: the data hold no positive pair or too few for the shots asked for, the item
            text names a column the catalogue lacks, the encoder cannot be loaded or has fewer
            positions or layers than asked for, the folder is taken, or training diverged.
    """
    interactions.require_positives(config.min_grade)
    shots = interactions.positives(config.min_grade)
    if config.shots is not None:
        shots = draw_shots(interactions, config.shots, seed=config.seed, min_grade=config.min_grade)
    template = _template(config.encoder, catalog)
    texts = render_items(template, catalog)
    retriever = build_retriever(config, template)  # before the folder is made: it may be refused
    require_suitable(retriever.model, config.method, config.fit)
    run = RunFolder.open(output, config, catalog, interactions)
    metrics: dict[str, Any] = {
        "method": config.method,
        "items": len(catalog),
        "shots": len(shots),
        "shot_queries": len(shots.queries),
        "lexical": {},
        "fit": None,
    }
    adapted: Retriever | None = None
    if config.method != "zero-shot":
        names = set(shots.queries)
        known = [row for row, query in enumerate(interactions.queries) if query in names]
        # With a draw of shots, judgements that were not drawn are not known either.
        judgements = shots if config.shots is not None else interactions.select_queries(known)
        result = adapt(
            retriever,
            shots,
            texts,
            config.fit,
            method=config.method,
            folder=output,
            judgements=judgements,
            seed=config.seed,
            progress=progress,
        )
        adapted, metrics["fit"] = result.retriever, result.as_dict()
    if config.lexical == "auto" and lexical is not None:
        choice = choose_lexical_weight(
            retriever,
            shots,
            texts,
            lexical(template, catalog),
            adapted=adapted,
            seed=config.seed,
            progress=lexical_progress,
        )
    else:
        weight = 0.0 if isinstance(config.lexical, str) else config.lexical
        choice = LexicalChoice(weight, "not chosen from the shots")
    metrics["lexical"] = choice.as_dict()
    run.finish(adapted or retriever, shots, metrics)
    return metrics


def build_retriever(config: TrainConfig, template: ItemTemplate) -> Retriever:
    """Zero-shot towers as configured; the seed decides a random projection."""
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


def render_items(template: ItemTemplate, catalog: Catalog) -> list[str]:
    """The item text of every catalogue row.

    Raises:
        InputError: the template names a column the catalogue lacks.
    """
    return template.render({name: catalog.column(name) for name in template.columns})


def _template(encoder: EncoderConfig, catalog: Catalog) -> ItemTemplate:
    if encoder.item_template is not None:
        return ItemTemplate(encoder.item_template)
    return ItemTemplate.for_columns(catalog.table.column_names)
