"""A finished run goes on with new interactions, past a gate, to a new run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from towers.errors import InputError
from towers.retriever import Retriever
from training.augmentation import Augmenter
from training.catalog import Catalog
from training.config import Method, TrainConfig, UpdateConfig
from training.contexts import Contexts
from training.continuation import Material, go_on, held_out_rows
from training.contrast import require_contrast
from training.histories import Histories
from training.interactions import Interactions
from training.judged_ranking import JudgedRanking, encode_items, require_per_query
from training.lexical_weight import LexicalChoice, LexicalScorer, choose_lexical_weight
from training.methods import require_suitable
from training.reviews import Reviews
from training.run_folder import RunFolder
from training.stages import Stages, stage
from training.statistics import compare
from training.train import AlsoFit, LexicalIndexer, lexical_number, render_items

RunItemEncoder = Callable[[Path, Retriever, Sequence[str]], np.ndarray]
"""From a run's folder, its towers and item texts to their vectors, float32 ``[items, d]``."""

METHODS: tuple[Method, ...] = ("full", "lora", "adalora", "bitfit", "top")
"""Methods that leave towers another update can go on from."""


class UpdateRefused(Exception):
    """The new version does worse on the old evaluation than is allowed; nothing was written.

    Attributes:
        metrics: what was measured, as ``metrics.json`` would have held it.
    """

    def __init__(self, message: str, metrics: dict[str, Any]) -> None:
        super().__init__(message)
        self.metrics = metrics


def read_update_config(parent: RunFolder, path: str | None = None, **overrides: Any) -> TrainConfig:
    """The configuration of an update: the parent's, with a file and options put over it.

    A method that cannot be gone on with (``auto`` among them) is taken for ``full``; a learning
    rate that was given to another method is forgotten.

    Args:
        parent: the run to go on from.
        path: a TOML or JSON file of the fields of `TrainConfig`.
        **overrides: see `TrainConfig.read`.

    Raises:
        InputError: the file cannot be read, or a field is unknown or wrong.
    """
    before = parent.config
    base = before.model_copy(
        update={
            "method": before.method if before.method in METHODS else "full",
            "shots": None,
            "warm_up": "off",
            "strategy": "auto",
            "deterministic": False,
            "update": before.update or UpdateConfig(),
        }
    )
    config = TrainConfig.read(path, base=base, **overrides)
    inherited = config.fit.learning_rate == before.fit.learning_rate
    if config.method != before.method and inherited:
        fit = config.fit.model_copy(update={"learning_rate": None})
        config = config.model_copy(update={"fit": fit})
    return config


def update(
    parent: RunFolder,
    config: TrainConfig,
    catalog: Catalog,
    interactions: Interactions,
    output: Path,
    *,
    replay: Interactions | None = None,
    judgements: Interactions | None = None,
    lexical: LexicalIndexer | None = None,
    histories: Histories | None = None,
    reviews: Reviews | None = None,
    contexts: Contexts | None = None,
    also: AlsoFit | None = None,
    encode: RunItemEncoder | None = None,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Goes on from a run with new interactions and writes another run, unless it is worse.

    The towers begin as the run left them and learn from the new pairs, and as many old ones as
    configured; the run remembers them. Of the way to where that leads, as much is gone as is good
    for queries that neither version was trained on. The lexical weight is chosen anew. Then the
    gate: on `judgements`, ranked over the whole catalogue, or on old queries that the run held out,
    ranked among 5,000 items, the new version must not be worse than the old one by more than
    ``config.update.max_drop``.

    Args:
        parent: the run to go on from; left as it is.
        config: all settings; see `read_update_config`.
        catalog: the items as they are now.
        interactions: judged pairs that came in since.
        output: the new run's folder; an interrupted update of the same inputs is taken up.
        replay: old judged pairs, in place of those that the run remembers.
        judgements: the old evaluation. Its queries are not trained on, by later updates neither.
        lexical: the lexical score; without one words do not count.
        histories: what `also` learns from, for the run to be known by.
        reviews: likewise.
        contexts: likewise.
        also: makes what else belongs to the run of the towers, once they have passed the gate.
        encode: encodes the whole catalogue, where `judgements` are ranked; the towers do it anew
            if None.
        progress: told (stage, steps, versions or items done, in all), of ``Training``,
            ``Comparing versions`` and ``Choosing the lexical weight``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        UpdateRefused: the gate; nothing is left in `output`.
        InputError: the settings are not those of an update, there is nothing to learn from or
            nothing to compare versions on, the catalogue lacks a column of the item text, the
            towers cannot be trained further, the folder is taken, or training diverged.
    """
    settings = _require_update(parent, config)
    method = config.method
    assert method != "auto"
    retriever = parent.load_retriever()
    require_suitable(retriever.model, method, config.fit)
    Augmenter.from_config(config.fit.augment, [])  # its sources may be refused too
    template = retriever.template
    texts = render_items(template, catalog)
    material = _material(parent, config, settings, catalog, interactions, replay, judgements)
    # The order of a draw depends on its seed: every week's pairs draw others of the old ones.
    draw = config.seed + int(interactions.sha256[:8], 16)
    pairs, replayed = material.pairs(settings.replay, seed=draw, min_grade=config.min_grade)
    require_contrast(pairs, texts, config.fit)

    run = RunFolder.open(
        output,
        config,
        catalog,
        interactions,
        histories,
        further={
            "replay": replay,
            "judgements": judgements,
            "reviews": reviews,
            "contexts": contexts,
        },
        parent={
            "path": str(parent.path),
            "id": parent.run_id,
            "fingerprint": retriever.fingerprint(),
        },
    )
    scorer = None if lexical is None else lexical(template, catalog)
    weight_before = 0.0 if scorer is None else parent.lexical_weight

    def ranking(judged: Interactions, rows: np.ndarray | None) -> JudgedRanking:
        return JudgedRanking(
            judged,
            texts,
            rows=rows,
            measure=settings.measure,
            min_grade=config.min_grade,
            lexical=scorer,
        )

    held_out: JudgedRanking | None = None
    if len(material.held_out):
        held_out = ranking(material.held_out, held_out_rows(material.held_out, texts, config.seed))
    continued = go_on(
        retriever,
        pairs,
        material,
        texts,
        held_out,
        config.fit,
        settings,
        method=method,
        folder=output,
        lexical=scorer,
        weight=weight_before,
        seed=config.seed,
        progress=progress,
    )
    updated = continued.retriever
    choice = _lexical_choice(config, retriever, updated, material, pairs, texts, scorer, progress)

    weights = weight_before, choice.weight
    compared: dict[str, dict[str, Any]] = {}
    if held_out is not None:
        values = [
            held_out.values(vectors, weight)
            for vectors, weight in zip(continued.vectors, weights, strict=True)
        ]
        for name, chosen in (("old", material.is_old), ("new", ~material.is_old)):
            if not np.isnan(values[0][chosen]).all():
                compared[name] = _comparison(*(of_all[chosen] for of_all in values))
    if judgements is None:
        gate = compared["old"]
    else:
        whole = ranking(judgements, None)
        encode = encode or (lambda folder, towers, item_texts: encode_items(towers, item_texts))
        before = after = whole.encode(retriever, partial(encode, parent.path))
        if updated is not retriever:
            after = whole.encode(updated, partial(encode, output))
        gate = _comparison(whole.values(before, weights[0]), whole.values(after, weights[1]))
    passed = gate["difference"] >= -settings.max_drop
    metrics: dict[str, Any] = {
        "method": config.method,
        "items": len(catalog),
        "shots": len(pairs),
        "shot_queries": len(pairs.queries),
        "warm_up": None,
        "choice": None,
        "lexical": choice.as_dict(),
        "fit": continued.fit.as_dict(),
        "update": {
            "parent": {"path": str(parent.path), "id": parent.run_id},
            "new_pairs": len(material.new),
            "replayed_pairs": replayed,
            "remembered_pairs": len(material.old),
            "lost_pairs": material.old.unknown_items.rows,
            "share": continued.share,
            "steps": [asdict(step) for step in continued.steps],
            "measure": settings.measure,
            "lexical_weight_before": weight_before,
            "held_out": compared,
            "gate": {
                "on": (
                    "old queries that were held out"
                    if judgements is None
                    else f"queries of {judgements.path}"
                ),
                **gate,
                "max_drop": settings.max_drop,
                "passed": passed,
            },
        },
    }
    if not passed:
        run.discard()
        raise UpdateRefused(_refusal(metrics["update"], parent, output), metrics)
    if also is not None:
        metrics |= also(updated)
    run.finish(
        updated,
        material.old.followed_by(material.new),
        metrics,
        held_out=material.held_out if len(material.held_out) else None,
    )
    return metrics


def _require_update(parent: RunFolder, config: TrainConfig) -> UpdateConfig:
    if config.update is None:
        raise InputError("the configuration is not an update's: it has no table [update]")
    if config.encoder != parent.config.encoder:
        raise InputError("an update keeps the towers of its run: leave [encoder] out")
    if config.method not in METHODS:
        raise InputError(
            f"an update goes on by {', '.join(METHODS)}, not by {config.method}: another update "
            "could not go on from what that leaves"
        )
    if config.shots is not None or config.warm_up == "catalog":
        raise InputError("an update learns from all new pairs: leave shots and warm_up out")
    if config.strategy != "auto" or config.deterministic:
        raise InputError("an update trains on one device: leave strategy and deterministic out")
    require_per_query(config.update.measure)
    return config.update


def _material(
    parent: RunFolder,
    config: TrainConfig,
    settings: UpdateConfig,
    catalog: Catalog,
    interactions: Interactions,
    replay: Interactions | None,
    judgements: Interactions | None,
) -> Material:
    """What is learned from and compared on; refused where nothing could be compared."""
    interactions.require_positives(config.min_grade)
    interactions = interactions.with_one_spelling()
    old, held_out = parent.shots(catalog), parent.held_out(catalog)
    if replay is not None:
        old = replay
    if old is None:
        old = interactions.select_rows(np.zeros(len(interactions), bool))
    if judgements is not None:
        judgements.require_positives(config.min_grade)
        held_out = judgements if held_out is None else held_out.followed_by(judgements)
    least = config.fit.min_held_out
    material = Material.of(
        old,
        held_out,
        interactions,
        share=settings.held_out,
        least=least,
        unseen=not parent.is_fitted,
        min_grade=config.min_grade,
        seed=config.seed,
    )
    asked = material.held_out.select_queries(material.is_old).positives(config.min_grade)
    if judgements is None and len(asked.queries) < least:
        raise InputError(
            f"{parent.path} knows {len(asked.queries)} old queries that it was not trained on, too "
            "few to tell whether a new version forgets anything: give --judgements, an evaluation "
            "with other queries than those of training"
        )
    return material


def _lexical_choice(
    config: TrainConfig,
    before: Retriever,
    after: Retriever,
    material: Material,
    pairs: Interactions,
    texts: Sequence[str],
    scorer: LexicalScorer | None,
    progress: Stages | None,
) -> LexicalChoice:
    """The weight of the lexical score, from old and new queries that nothing was trained on."""
    if config.lexical != "auto" or scorer is None:
        weight = 0.0 if config.lexical == "auto" else lexical_number(config.lexical)
        return LexicalChoice(weight, "not chosen from the shots")
    held_out = material.held_out.positives(config.min_grade)
    asked = len(held_out) > 0
    return choose_lexical_weight(
        after if asked else before,
        held_out if asked else pairs,
        texts,
        scorer,
        # Towers find pairs that they were trained on too well: then those before have a say, too.
        adapted=None if asked else after,
        seed=config.seed,
        progress=stage(progress, "Choosing the lexical weight"),
    )


def _comparison(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Means of two versions' values, and the mean of their differences query by query."""
    counts = ~np.isnan(before)
    before, after = before[counts], after[counts]
    paired = compare(after, before)
    return {
        "queries": len(before),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "difference": paired.difference,
        "interval_95": None if paired.interval_95 is None else list(paired.interval_95),
    }


def _refusal(update: dict[str, Any], parent: RunFolder, output: Path) -> str:
    gate = update["gate"]
    spread = ""
    if gate["interval_95"] is not None:
        low, high = gate["interval_95"]
        spread = f", 95% interval {low:+.4f} to {high:+.4f}"
    return (
        f"{update['measure']} on {gate['queries']} {gate['on']} would go from "
        f"{gate['before']:.4f} to {gate['after']:.4f} ({gate['difference']:+.4f}{spread}); a drop "
        f"of {gate['max_drop']:g} is allowed (--max-drop). {output} was not written, and "
        f"{parent.path} stays as it is"
    )
