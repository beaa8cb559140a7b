"""The training loop all gradient methods share: Keras's `fit`, with checkpoints and a way back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from towers.encoding import Progress
from towers.errors import InputError
from towers.retriever import Retriever
from training.checkpoints import Checkpoints
from training.config import FitConfig
from training.held_out import CandidatePool
from training.negatives import CatalogNegatives, Remine
from training.optimizer import adamw


class Batches(Protocol):
    """Batches of an epoch, in an order that depends on the epoch's number."""

    epoch: int

    def plan(self, epoch: int) -> list[np.ndarray]:
        """What the batches of an epoch are made of; equally many in all epochs."""
        ...

    def dataset(self) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """Batches of the epoch that `epoch` says when iteration begins."""
        ...


class EpochOrder(keras.callbacks.Callback):
    """Tells the batches which epoch begins, so that its order depends on nothing else."""

    def __init__(self, batches: Batches) -> None:
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


def train_epochs(
    retriever: Retriever,
    batches: Batches,
    config: FitConfig,
    *,
    folder: Path,
    name: str = "",
    pool: CandidatePool | None = None,
    negatives: CatalogNegatives | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Checkpoints:
    """Trains a retriever's model in place, and leaves it with the best weights.

    A run that was killed goes on after its last whole epoch.

    Args:
        retriever: holds the model.
        batches: what it is trained on.
        config: epochs, learning rate, its schedule, patience.
        folder: for checkpoints and TensorBoard's event files.
        name: of a folder inside the folders of these, for a run of several parts.
        pool: held-out queries that decide which weights are best; the last ones if None.
        negatives: found anew where the configuration says so.
        progress: told (steps done, steps in all).
        callbacks: further Keras callbacks.

    Returns:
        Losses and held-out scores of the epochs.

    Raises:
        InputError: training ends in weights that are not finite.
    """
    model = retriever.model
    checkpoints = Checkpoints(
        folder / "checkpoints" / name,
        retriever,
        pool,
        patience=config.patience,
        keep_every=config.remine,
    )
    own: list[keras.callbacks.Callback] = [
        EpochOrder(batches),
        checkpoints,
        keras.callbacks.TensorBoard(str(folder / "tensorboard" / name), write_graph=False),
    ]
    if progress is not None:
        own.append(StepProgress(progress))
    if negatives is not None and config.remine:
        items = config.towers == "both"
        own.append(Remine(negatives, checkpoints, config.remine, items=items))
    assert config.epochs is not None
    steps = config.epochs * len(batches.plan(0))
    # On a GPU Keras would let XLA compile each width of a batch anew, for a few steps each.
    model.compile(optimizer=adamw(config, steps, model), jit_compile=False)
    done = checkpoints.resume()
    if not checkpoints.is_over:
        model.fit(
            batches.dataset(),
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
    return checkpoints
