"""Few-shot adaptation: a retriever and a few positive pairs in, a better retriever out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from towers.encoding import Progress, part_of
from towers.errors import InputError
from towers.interpolation import interpolate, soup
from towers.retriever import Retriever
from training.augmentation import Augmenter
from training.batches import PairBatches
from training.config import FitConfig, Method
from training.contrast import require_contrast
from training.distillation import distil
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer, choose_lexical_weight
from training.linear import fit_linear
from training.loop import train_epochs
from training.methods import finished, require_suitable, trainable_copy, with_schedule
from training.negatives import CatalogNegatives, judged_below, text_ids
from training.pair_vectors import PairVectors, encode_pairs
from training.shots import split_by_query


@dataclass(frozen=True)
class FitResult:
    """What `adapt` did.

    Attributes:
        retriever: the adapted towers, in float32.
        losses: mean training loss of each epoch.
        held_out: score before training and after each epoch, or, of several trainings, before them
            and of their mean; empty where nothing was held out.
        best_epoch: epochs of training behind the weights, at most; 0 means that zero-shot did best.
        soup: trainings whose weights were averaged.
        share: how much of the way from zero-shot to adapted was kept.
        interpolation: (share, held-out score) of what was tried in between.
        pairs: pairs trained on.
        held_out_queries: queries kept back.
        trained_parameters: number of weights that the optimizer may change.
        learning_rate: peak learning rate; None where no optimizer was used.
        seconds: wall-clock time of training, scoring of held-out queries included, since the run
            was last taken up.
    """

    retriever: Retriever
    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    best_epoch: int = 0
    soup: int = 1
    share: float = 1.0
    interpolation: list[tuple[float, float]] = field(default_factory=list)
    pairs: int = 0
    held_out_queries: int = 0
    trained_parameters: int = 0
    learning_rate: float | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything but the towers, ready for `json.dumps`; a loss that is not finite is None."""
        values = {name: value for name, value in vars(self).items() if name != "retriever"}
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]  # JSON has no NaN
        return {**values, "losses": losses, "interpolation": list(map(list, self.interpolation))}


def adapt(
    retriever: Retriever,
    pairs: Interactions,
    item_texts: Sequence[str],
    config: FitConfig | None = None,
    *,
    method: Method = "full",
    folder: Path,
    judgements: Interactions | None = None,
    titles: Sequence[str] | None = None,
    lexical: LexicalScorer | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> FitResult:
    """Adapts towers to positive pairs, by gradient descent with in-batch negatives or linearly.

    A share of the queries is kept back where there are enough of them. The towers are scored on
    these before training and after each epoch, and the best weights are kept, the untrained ones
    included. A run that was killed goes on after its last whole epoch when called again with the
    same arguments. With ``config.soup`` trainings the mean of their weights is taken, if that does
    better on these queries than the towers as they came.

    Args:
        retriever: the towers to start from; left as it is.
        pairs: positive pairs.
        item_texts: item text of every catalogue row.
        config: the recipe.
        method: what is trained; see docs/methods.md.
        folder: for checkpoints and TensorBoard's event files.
        judgements: all judgements known of the queries of `pairs`; the held-out score ranks by
            their grades. `pairs` if None.
        titles: for ``distilled``: what queries are made from, of every catalogue row; the item
            texts if None.
        lexical: the lexical score: for ``distilled``, and for hard negatives from it, which need
            it.
        seed: decides the split, the order and dropout.
        progress: told (steps done, steps in all); before that, where training asks for vectors of
            the catalogue, (items encoded, items in all).
        callbacks: further Keras callbacks.

    Raises:
        InputError: there is no positive pair, all pairs have the same item and nothing else is to
            be told from it, the towers do not suit the method, the lexical score
            is needed and not there, or the learning rate is so high that training ends in weights
            that are not finite.
    """
    config = config or FitConfig()
    pairs.require_positives()
    require_suitable(retriever.model, method, config)
    if method == "zero-shot":
        return FitResult(retriever)
    require_contrast(pairs, item_texts, config)
    if method == "linear":
        return _adapt_linearly(
            retriever, pairs, item_texts, config, judgements or pairs, seed, progress
        )
    if method == "distilled" and lexical is None:
        raise InputError("method distilled needs the lexical score of the catalogue")
    start = time.perf_counter()
    train, held_out = hold_out(pairs, judgements or pairs, config, seed)
    pool = CandidatePool(held_out, item_texts, seed=seed) if held_out is not None else None
    trainings = [
        _train(
            retriever,
            train,
            item_texts,
            config,
            method=method,
            pair_count=len(pairs),
            folder=folder,
            name=f"soup-{number}" if number else "",
            pool=pool,
            judgements=judgements,
            titles=titles,
            lexical=lexical,
            seed=seed + number,
            progress=part_of(progress, number, config.soup),
            callbacks=callbacks,
        )
        for number in range(config.soup)
    ]
    result = _together(retriever, trainings, pool)
    if pool is not None and config.shares and result.best_epoch:
        adapted, share, interpolation = _interpolated(
            retriever, result.retriever, config.shares, pool
        )
        result = replace(result, retriever=adapted, share=share, interpolation=interpolation)
    return replace(
        result,
        pairs=len(train),
        held_out_queries=len(held_out.queries) if held_out is not None else 0,
        seconds=time.perf_counter() - start,
    )


def _train(
    zero_shot: Retriever,
    train: Interactions,
    item_texts: Sequence[str],
    given: FitConfig,
    *,
    method: Method,
    pair_count: int,
    folder: Path,
    name: str,
    pool: CandidatePool | None,
    judgements: Interactions | None,
    titles: Sequence[str] | None,
    lexical: LexicalScorer | None,
    seed: int,
    progress: Progress | None,
    callbacks: Sequence[keras.callbacks.Callback],
) -> FitResult:
    """One training by gradient descent, of the pairs that are not held out.

    Args:
        pair_count: of the pairs, those held out included: the schedule is for so many.
        name: of the training's folder inside those of checkpoints and events.
    """
    config = with_schedule(given, method, pair_count)
    keras.utils.set_random_seed(seed)
    first: Method = "full" if method == "distilled" else method
    model = trainable_copy(zero_shot.model, first, config)
    retriever = Retriever(model, zero_shot.tokenizer, zero_shot.text)
    negatives, anchor = _from_catalog(
        retriever, train, item_texts, config, lexical, judgements, progress
    )
    batches = PairBatches(
        retriever,
        train,
        item_texts,
        batch_size=config.batch_size,
        seed=seed,
        catalog_negatives=config.catalog_negatives,
        min_steps=config.min_steps,
        negatives=negatives,
        anchor=anchor,
        grades=config.loss == "graded",
        augmentation=Augmenter.from_config(config.augment, train.queries),
    )
    checkpoints = train_epochs(
        retriever,
        batches,
        config,
        folder=folder,
        name=name,
        pool=pool,
        negatives=negatives,
        progress=progress,
        callbacks=callbacks,
    )
    adapted = Retriever(finished(model), retriever.tokenizer, retriever.text)
    losses, scores, best_epoch = checkpoints.losses, checkpoints.scores, checkpoints.best_epoch
    if method == "distilled":
        assert lexical is not None  # seen to by `adapt`
        weight = choose_lexical_weight(
            zero_shot, train, item_texts, lexical, adapted=adapted, seed=seed
        ).weight
        adapted, second = distil(
            adapted,
            train,
            item_texts,
            given,
            titles=item_texts if titles is None else titles,
            lexical=lexical,
            lexical_weight=weight,
            folder=folder,
            name=f"{name}distillation",
            pool=pool,
            seed=seed,
            progress=progress,
        )
        best_epoch = len(losses) + second.best_epoch if second.best_epoch else best_epoch
        losses, scores = losses + second.losses, scores + second.scores[1:]
    return FitResult(
        retriever=adapted,
        losses=losses,
        held_out=scores,
        best_epoch=best_epoch,
        trained_parameters=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        learning_rate=config.learning_rate,
    )


def _together(
    zero_shot: Retriever, trainings: Sequence[FitResult], pool: CandidatePool | None
) -> FitResult:
    """One training, or the mean of several: zero-shot where that does no better."""
    first = trainings[0]
    if len(trainings) == 1:
        return first
    # As far as all of them went: each stops when it no longer gets better.
    epochs = zip(*(training.losses for training in trainings), strict=False)
    mean = replace(
        first,
        retriever=soup([training.retriever for training in trainings]),
        losses=[float(np.mean(of_epoch)) for of_epoch in epochs],
        best_epoch=max(training.best_epoch for training in trainings),
        soup=len(trainings),
    )
    if pool is None:
        return mean
    before, after = first.held_out[0], pool.score(mean.retriever)
    mean = replace(mean, held_out=[before, after])
    return mean if after > before else replace(mean, retriever=zero_shot, best_epoch=0)


def _from_catalog(
    retriever: Retriever,
    pairs: Interactions,
    item_texts: Sequence[str],
    config: FitConfig,
    lexical: LexicalScorer | None,
    known: Interactions | None,
    progress: Progress | None,
) -> tuple[CatalogNegatives | None, PairVectors | None]:
    """Negatives from the catalogue, and the vectors to be anchored to, where they are wanted."""
    below = np.zeros(0, np.int64)
    if config.judged_negatives and known is not None:
        judged = judged_below(pairs, known, text_ids(item_texts))
        below = np.concatenate([below, *judged.values()])
    everything = config.hard_negatives or config.cached_negatives or config.catalog_negatives
    extra = config.hard_negatives or config.cached_negatives or len(below)
    if not (extra or config.anchor):
        return None, None
    source = config.hard_negatives_from
    if config.hard_negatives and source != "towers" and lexical is None:
        raise InputError(
            f'hard_negatives_from = "{source}" needs the lexical score of the catalogue'
        )
    rows = None if everything else np.concatenate([pairs.item_row, below])
    vectors = encode_pairs(retriever, pairs.queries, item_texts, rows, progress=progress)
    negatives = None
    if extra:
        negatives = CatalogNegatives(
            pairs,
            item_texts,
            vectors,
            hard=config.hard_negatives,
            source=source,
            judged=config.judged_negatives,
            cached=config.cached_negatives,
            lexical=lexical,
            known=known,
        )
    return negatives, vectors if config.anchor else None


def _interpolated(
    zero_shot: Retriever, adapted: Retriever, shares: Sequence[float], pool: CandidatePool
) -> tuple[Retriever, float, list[tuple[float, float]]]:
    """The best of some retrievers on the way, its share of the way, and all scores."""
    scores = [
        (share, pool.score(interpolate(zero_shot, adapted, share))) for share in sorted(shares)
    ]
    best = max(scores, key=lambda scored: scored[1])[0]  # of equal ones the nearest to zero-shot
    return interpolate(zero_shot, adapted, best), best, scores


def _adapt_linearly(
    retriever: Retriever,
    pairs: Interactions,
    item_texts: Sequence[str],
    config: FitConfig,
    judgements: Interactions,
    seed: int,
    progress: Progress | None,
) -> FitResult:
    """Fits a linear map; its scores are cross-validated over all queries."""
    start = time.perf_counter()
    shared = config.towers == "both"
    fit = fit_linear(
        retriever, pairs, judgements, item_texts, shared=shared, seed=seed, progress=progress
    )
    changed = math.isfinite(fit.strength)
    return FitResult(
        retriever=retriever.with_map(fit.kernel, items=shared) if changed else retriever,
        held_out=[fit.scores[math.inf], fit.scores[fit.strength]],
        best_epoch=int(changed),
        pairs=len(pairs),
        held_out_queries=len(pairs.queries),
        trained_parameters=fit.kernel.size,
        seconds=time.perf_counter() - start,
    )


def hold_out(
    pairs: Interactions, judgements: Interactions, config: FitConfig, seed: int
) -> tuple[Interactions, Interactions | None]:
    """Pairs to train on, and the judgements of the queries kept back, if any."""
    if round(config.held_out * len(pairs.queries)) < config.min_held_out:
        return pairs, None
    train, kept = split_by_query(pairs, config.held_out, seed=seed)
    return train, judgements.of_queries(kept.queries)
