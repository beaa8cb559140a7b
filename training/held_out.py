"""Retrieval quality on held-out queries after every epoch, and the weights that did best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from towers.retriever import Retriever
from training.evaluation import evaluate
from training.interactions import Interactions
from training.search import Run, top_k

MEASURE = "nDCG@10"


class CandidatePool:
    """Held-out queries with the candidates they are ranked against.

    The whole catalogue would cost more to encode than the epoch cost to train. The pool holds
    every judged item of the held-out queries and random ones up to its size.

    Args:
        interactions: judged pairs of the held-out queries.
        item_texts: item text of every catalogue row.
        size: number of candidates, at least; judged items are never left out.
        seed: decides the random candidates.
    """

    def __init__(
        self, interactions: Interactions, item_texts: list[str], *, size: int = 1000, seed: int = 0
    ) -> None:
        self.interactions = interactions
        judged = np.unique(interactions.item_row)
        others = np.setdiff1d(np.arange(len(item_texts)), judged)
        drawn = np.random.default_rng(seed).permutation(others)[: max(0, size - len(judged))]
        self.rows = np.sort(np.concatenate([judged, drawn]))
        self.texts = [item_texts[row] for row in self.rows]

    def score(self, retriever: Retriever) -> float:
        """Mean nDCG@10 of the held-out queries with the towers as they are."""
        queries = retriever.encode_queries(self.interactions.queries)
        items = retriever.encode_items(self.texts)
        scores, found = top_k(queries, items, 10)
        run = Run(self.interactions.queries, self.rows[found], scores)
        result = evaluate(run, self.interactions, self.interactions.catalog, measures=[MEASURE])
        return result.means[MEASURE]


class KeepBest(keras.callbacks.Callback):
    """Scores the towers before training and after every epoch; the best weights win.

    Epoch 0, the towers as they came, takes part: training that does no good is undone. The state is
    kept in a folder, so that a run which is taken up again goes on as if nothing had happened.

    Args:
        pool: held-out queries and candidates.
        retriever: holds the model being trained.
        folder: where ``best.weights.h5`` and ``held_out.json`` go.
        patience: epochs without a better score before training is stopped.
    """

    def __init__(
        self, pool: CandidatePool, retriever: Retriever, folder: Path, *, patience: int = 2
    ) -> None:
        super().__init__()
        self.pool, self.retriever, self.folder, self.patience = pool, retriever, folder, patience
        self.scores: list[float] = []
        self._state = folder / "held_out.json"
        self._weights = folder / "best.weights.h5"

    @property
    def best_epoch(self) -> int:
        """Epochs of training behind the best weights; 0 for none."""
        return int(np.argmax(self.scores))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Scores the untrained towers, or takes up the state of an interrupted run."""
        if self._state.exists():
            self.scores = json.loads(self._state.read_text("utf-8"))
        else:
            self._note(self.pool.score(self.retriever))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Scores the towers and stops training that no longer helps."""
        del self.scores[epoch + 1 :]  # an epoch that was scored, then interrupted and done again
        self._note(self.pool.score(self.retriever))
        if logs is not None:
            logs[f"held_out_{MEASURE}"] = self.scores[-1]
        if epoch + 1 - self.best_epoch >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the best weights back."""
        self.retriever.model.load_weights(self._weights)

    def _note(self, score: float) -> None:
        if not self.scores or score > max(self.scores):
            partial = self.folder / "partial.weights.h5"
            self.retriever.model.save_weights(partial)
            partial.replace(self._weights)
        self.scores.append(score)
        self._state.write_text(json.dumps(self.scores), "utf-8")
