"""Few-shot adaptation: a retriever and a few positive pairs in, a better retriever out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from towers.encoding import Progress
from towers.errors import InputError
from towers.losses import InBatchSoftmax
from towers.retriever import Retriever
from towers.two_tower import TwoTower
from training.batches import PairBatches
from training.checkpoints import Checkpoints
from training.config import FitConfig
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.shots import split_by_query

# Parts of variable paths that AdamW's decay leaves alone (Devlin et al. 2019, BERT's own recipe).
_NO_DECAY = ("bias", "norm", "gamma", "beta", "log_temperature")


@dataclass(frozen=True)
class FitResult:
    """What `adapt` did.

    Attributes:
        retriever: the adapted towers, in float32.
        losses: mean training loss of each epoch.
        held_out: score before training and after each epoch; empty where nothing was held out.
        best_epoch: epochs of training behind the weights; 0 means that zero-shot did best.
        pairs: pairs trained on.
        held_out_queries: queries kept back.
        trained_parameters: number of weights that the optimizer may change.
        seconds: wall-clock time of training, scoring of held-out queries included, since the run
            was last taken up.
    """

    retriever: Retriever
    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    best_epoch: int = 0
    pairs: int = 0
    held_out_queries: int = 0
    trained_parameters: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything but the towers, ready for `json.dumps`; a loss that is not finite is None."""
        values = {name: value for name, value in vars(self).items() if name != "retriever"}
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]  # JSON has no NaN
        return {**values, "losses": losses}


class EpochOrder(keras.callbacks.Callback):
    """Tells the batches which epoch begins, so that its order depends on nothing else."""

    def __init__(self, batches: PairBatches) -> None:
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the epoch."""
        self.batches.epoch = epoch


class StepProgress(keras.callbacks.Callback):
    """Passes Keras's count of steps on as (steps done, steps in all)."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress, self.epoch = progress, 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports."""
        steps = self.params["steps"]
        self.progress(self.epoch * steps + batch + 1, self.params["epochs"] * steps)


def adamw(config: FitConfig, steps: int) -> keras.optimizers.Optimizer:
    """AdamW as BERT is fine-tuned with it.

    Linear warm-up, cosine decay to zero, no weight decay on biases and norms, clipped gradients.

    Args:
        config: learning rate, warm-up share, decay and clipping.
        steps: number of steps in all.
    """
    warmup = min(round(config.warmup * steps), steps - 1)
    schedule: Any = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate,
        decay_steps=steps - warmup,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm
    )
    optimizer.exclude_from_weight_decay(var_names=list(_NO_DECAY))
    return optimizer


def adapt(
    retriever: Retriever,
    pairs: Interactions,
    item_texts: Sequence[str],
    config: FitConfig | None = None,
    *,
    folder: Path,
    judgements: Interactions | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> FitResult:
    """Fine-tunes all weights of the towers on positive pairs with in-batch negatives.

    A share of the queries is kept back where there are enough of them. The towers are scored on
    these before training and after each epoch, and the best weights are kept, the untrained ones
    included. A run that was killed goes on after its last whole epoch when called again with the
    same arguments.

    Args:
        retriever: the towers to start from; left as it is.
        pairs: positive pairs.
        item_texts: item text of every catalogue row.
        config: the recipe.
        folder: for checkpoints and TensorBoard's event files.
        judgements: all judgements known of the queries of `pairs`; the held-out score ranks by
            their grades. `pairs` if None.
        seed: decides the split, the order and dropout.
        progress: told (steps done, steps in all).
        callbacks: further Keras callbacks.

    Raises:
        InputError: there is no positive pair, or the learning rate is so high that training ends
            in weights that are not finite.
    """
    config = config or FitConfig()
    pairs.require_positives()
    keras.utils.set_random_seed(seed)
    model = _trainable_copy(retriever.model, config)
    retriever = Retriever(model, retriever.tokenizer, retriever.text)

    train, held_out = _hold_out(pairs, judgements or pairs, config, seed)
    batches = PairBatches(
        retriever,
        train,
        item_texts,
        batch_size=config.batch_size,
        seed=seed,
        catalog_negatives=config.catalog_negatives,
    )
    pool = CandidatePool(held_out, item_texts, seed=seed) if held_out is not None else None
    checkpoints = Checkpoints(folder / "checkpoints", retriever, pool, patience=config.patience)
    own: list[keras.callbacks.Callback] = [
        EpochOrder(batches),
        checkpoints,
        keras.callbacks.TensorBoard(str(folder / "tensorboard"), write_graph=False),
    ]
    if progress is not None:
        own.append(StepProgress(progress))

    dataset = batches.dataset()
    model.compile(optimizer=adamw(config, config.epochs * int(dataset.cardinality())))
    start = time.perf_counter()
    done = checkpoints.resume()
    if not checkpoints.is_over:
        model.fit(
            dataset,
            epochs=config.epochs,
            initial_epoch=done,
            callbacks=[*own, *callbacks],
            shuffle=False,  # the batches come shuffled
            verbose=0,
        )
    checkpoints.restore_best()
    if not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise InputError(
            f"training diverged with learning rate {config.learning_rate:g}: choose a lower one"
        )
    return FitResult(
        retriever=retriever.as_float32(),
        losses=checkpoints.losses,
        held_out=checkpoints.scores,
        best_epoch=checkpoints.best_epoch,
        pairs=len(train),
        held_out_queries=len(held_out.queries) if held_out is not None else 0,
        trained_parameters=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        seconds=time.perf_counter() - start,
    )


def _trainable_copy(model: TwoTower, config: FitConfig) -> TwoTower:
    copy = TwoTower.from_config(
        {
            **model.get_config(),
            "loss": keras.saving.serialize_keras_object(InBatchSoftmax(symmetric=config.symmetric)),
            "temperature": config.temperature,
            "learn_temperature": config.learn_temperature,
        }
    )
    copy.query_tower.set_weights(model.query_tower.get_weights())
    copy.item_tower.set_weights(model.item_tower.get_weights())
    return copy.with_dtype(config.mixed_precision)


def _hold_out(
    pairs: Interactions, judgements: Interactions, config: FitConfig, seed: int
) -> tuple[Interactions, Interactions | None]:
    """Pairs to train on, and the judgements of the queries kept back, if any."""
    if round(config.held_out * len(pairs.queries)) < config.min_held_out:
        return pairs, None
    train, kept = split_by_query(pairs, config.held_out, seed=seed)
    names = set(kept.queries)
    rows = [row for row, query in enumerate(judgements.queries) if query in names]
    return train, judgements.select_queries(rows)
