"""Contrastive training on pairs of the catalogue, alone or before the shots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras

from towers.encoding import Progress
from towers.retriever import Retriever
from training.batches import PairBatches
from training.catalog_pairs import make_catalog_pairs
from training.checkpoints import Checkpoints
from training.config import FitConfig
from training.held_out import CandidatePool
from training.loop import train_epochs
from training.methods import EPOCHS, finished, trainable_copy

LEARNING_RATE = 2e-5
"""Peak rate: the towers know the language already, and these pairs say less than real ones."""


def warm_up(
    retriever: Retriever,
    item_texts: Sequence[str],
    config: FitConfig,
    *,
    titles: Sequence[str] | None = None,
    folder: Path,
    pool: CandidatePool | None = None,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Retriever, Checkpoints]:
    """Trains all weights on pairs made of the catalogue, with in-batch negatives.

    References:
        - Izacard et al. 2022, "Contriever", TMLR (crops)
        - Gao & Callan 2022, "coCondenser", ACL (contrastive training on the corpus before labels)

    Args:
        retriever: the towers to start from; left as it is.
        item_texts: item text of every catalogue row.
        config: the recipe: ``pseudo_queries`` pairs; of the losses the in-batch softmax alone, and
            not its learning rate, which is that of a method.
        titles: of every catalogue row; the item texts if None.
        folder: for checkpoints and TensorBoard's event files.
        pool: held-out queries that decide which weights are best; the last ones if None.
        learning_rate: peak of the schedule.
        seed: decides pairs, order and dropout.
        progress: told (steps done, steps in all).

    Returns:
        The towers in float32, and losses and held-out scores by epoch.

    Raises:
        InputError: the catalogue has too few words to learn from, or training diverged.
    """
    plain = {"loss": "softmax", "anchor": 0.0, "fgm": 0.0, "r_drop": 0.0, "accumulate": 1}
    own = {"learning_rate": learning_rate, "epochs": config.epochs or EPOCHS}
    config = config.model_copy(update={**plain, **own})
    keras.utils.set_random_seed(seed)
    pairs = make_catalog_pairs(
        item_texts if titles is None else titles, item_texts, config.pseudo_queries, seed=seed
    )
    batches = PairBatches(
        retriever,
        pairs,
        pairs.item_texts,
        batch_size=config.batch_size,
        seed=seed,
        min_steps=config.min_steps,
    )
    model = trainable_copy(retriever.model, "full", config)
    student = Retriever(model, retriever.tokenizer, retriever.text)
    checkpoints = train_epochs(
        student, batches, config, folder=folder, name="warm-up", pool=pool, progress=progress
    )
    return Retriever(finished(model), retriever.tokenizer, retriever.text), checkpoints
