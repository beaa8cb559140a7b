"""What training keeps on disk: the best weights, and all that a killed run needs to go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from towers.retriever import Retriever
from training.atomic_file import atomic_file
from training.held_out import MEASURE, CandidatePool


class Checkpoints(keras.callbacks.Callback):
    """Scores the towers and saves the state of training, before it and after every epoch.

    The towers as they came take part: training that does no good is undone. Call `resume` before
    `fit`, and `restore_best` after it.

    Keras's `BackupAndRestore` is not enough for going on exactly: it leaves out the states of the
    random generators (dropout), and a kill between its two files leaves weights of one epoch with
    the number of another. Here ``state.json`` is replaced as a whole, and names the weights it
    belongs to.

    Args:
        folder: where ``state.json`` and ``epoch-N.weights.h5`` go.
        retriever: holds the model being trained.
        pool: held-out queries and candidates; if None, the last weights are the best ones.
        patience: epochs without a better score before training is stopped.
        keep_every: the weights of the last epoch whose number is a multiple of it are kept too;
            none if 0.
    """

    def __init__(
        self,
        folder: Path,
        retriever: Retriever,
        pool: CandidatePool | None,
        *,
        patience: int,
        keep_every: int = 0,
    ) -> None:
        super().__init__()
        self.keep_every = keep_every
        self.folder, self.retriever, self.pool, self.patience = folder, retriever, pool, patience
        self.losses: list[float] = []
        self.scores: list[float] = []

    @property
    def best_epoch(self) -> int:
        """Epochs of training behind the best weights; 0 for none."""
        return int(np.argmax(self.scores)) if self.scores else len(self.losses)

    @property
    def is_over(self) -> bool:
        """Whether the score has not become better for `patience` epochs."""
        return self.pool is not None and len(self.losses) - self.best_epoch >= self.patience

    def as_dict(self) -> dict[str, Any]:
        """Losses, held-out scores and the best epoch, ready for `json.dumps`."""
        return {"losses": self.losses, "held_out": self.scores, "best_epoch": self.best_epoch}

    def resume(self) -> int:
        """Takes up the state of an interrupted run, or begins one.

        The model must have been compiled.

        Returns:
            Number of finished epochs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        model = self.retriever.model
        model.optimizer.build(model.trainable_variables)  # before its state is saved or loaded
        path = self.folder / "state.json"
        if path.is_file():
            state = json.loads(path.read_text("utf-8"))
            self.losses, self.scores = state["losses"], state["scores"]
            model.load_weights(self._weights(len(self.losses)))
            for variable, value in zip(self._hidden_state(), state["hidden"], strict=True):
                variable.assign(np.array(value, variable.dtype))
        elif self.pool is not None:
            self.scores = [self.pool.score(self.retriever)]
            self._save()
        return len(self.losses)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Scores, saves, and stops training that no longer helps."""
        logs = {} if logs is None else logs
        self.losses.append(float(logs["loss"]))
        if self.pool is not None:
            self.scores.append(self.pool.score(self.retriever))
            logs[f"held_out_{MEASURE}"] = self.scores[-1]
        self._save()
        self.model.stop_training = self.model.stop_training or self.is_over

    def restore_best(self) -> None:
        """Puts the best weights back."""
        if self.best_epoch != len(self.losses):
            self.retriever.model.load_weights(self._weights(self.best_epoch))

    @contextmanager
    def towers_of(self, epoch: int) -> Iterator[Retriever]:
        """The towers as they were after an epoch that was kept; for the start of an epoch."""
        now, model = len(self.losses), self.retriever.model
        if epoch != now:
            model.load_weights(self._weights(epoch))
        yield self.retriever
        if epoch != now:
            model.load_weights(self._weights(now))

    def _save(self) -> None:
        epoch = len(self.losses)
        self.retriever.model.save_weights(self._weights(epoch))  # the optimizer's state included
        hidden = [keras.ops.convert_to_numpy(state).tolist() for state in self._hidden_state()]
        state = {"losses": self.losses, "scores": self.scores, "hidden": hidden}
        with atomic_file(self.folder / "state.json") as partial:
            partial.write_text(json.dumps(state), "utf-8")
        kept = {epoch, self.best_epoch}
        if self.keep_every:
            kept.add(epoch - epoch % self.keep_every)
        for path in self.folder.glob("epoch-*.weights.h5"):
            if path not in map(self._weights, kept):
                path.unlink()

    def _weights(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}.weights.h5"

    def _hidden_state(self) -> list[Any]:
        """Variables that are not weights: states of random generators and metrics."""
        weights = {id(weight) for weight in self.retriever.model.weights}
        variables = self.retriever.model.variables
        return [variable for variable in variables if id(variable) not in weights]
