"""Few-shot training of the user tower on frozen item embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from towers.recommender import newest, padded_rows, user_vectors
from towers.user_tower import UserTower
from training.recommendation.ranks import next_ranks

_HELD_OUT = 0.1
_MIN_HELD_OUT = 20
_MAX_HELD_OUT = 500
_MAX_EXAMPLES = 50_000  # an epoch


@dataclass(frozen=True)
class UserTraining:
    """Settings of the user tower and its training.

    Attributes:
        decay: see `UserTower`.
        epochs: passes over the histories, at most; 0 keeps the untrained tower.
        patience: epochs without a gain on held-out users before training ends.
        batch_size: examples a batch.
        negatives: items of the catalogue that join the negatives of a batch.
        learning_rate: of AdamW.
        weight_decay: of AdamW; pulls the tower towards the untrained one.
        temperature: see `UserTower`.
        max_history: newest items that are looked at.
    """

    decay: float = 0.6
    epochs: int = 4
    patience: int = 1
    batch_size: int = 128
    negatives: int = 512
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    temperature: float = 0.05
    max_history: int = 50


@dataclass(frozen=True)
class TrainedTower:
    """A user tower and how its training went.

    Attributes:
        tower: the best of all epochs, the untrained one included.
        held_out: mean reciprocal rank of the last item of held-out users, before training and
            after each epoch.
        best_epoch: 0 if training did not help.
    """

    tower: UserTower
    held_out: list[float]
    best_epoch: int


def train_user_tower(
    histories: Sequence[np.ndarray],
    embeddings: np.ndarray,
    settings: UserTraining,
    *,
    seed: int = 0,
) -> TrainedTower:
    """Trains a user tower to find each next item of the histories.

    A tenth of the users is held out: their last items decide when to stop, and whether the trained
    tower is better than the untrained one at all.

    Args:
        histories: rows of items, oldest first.
        embeddings: float32 `[items, d]`.
        settings: of the training.
        seed: decides held-out users, order and negatives.
    """
    keras.utils.set_random_seed(seed)
    tower = UserTower(
        embeddings.shape[1],
        decay=settings.decay,
        temperature=settings.temperature,
    )
    usable = [history for history in histories if len(history) > 1]
    order = np.random.default_rng(seed).permutation(len(usable))
    count = min(max(_MIN_HELD_OUT, round(_HELD_OUT * len(usable))), _MAX_HELD_OUT)
    if settings.epochs == 0 or len(usable) < 2 * count:
        return TrainedTower(tower, [], 0)
    held_out = [usable[user] for user in order[:count]]
    batches = NextItemBatches([usable[user] for user in order[count:]], embeddings, settings, seed)

    if not len(batches):
        return TrainedTower(tower, [], 0)

    def quality() -> float:
        past = [newest(history[:-1], settings.max_history) for history in held_out]
        scores = user_vectors(tower, embeddings, past) @ embeddings.T
        last = np.array([history[-1] for history in held_out])
        return float(np.nanmean(1.0 / (1.0 + next_ranks(scores, past, last))))

    tower.compile(
        optimizer=keras.optimizers.AdamW(
            settings.learning_rate, weight_decay=settings.weight_decay
        ),
        jit_compile=False,
    )
    scores = [quality()]
    best, best_weights = 0, tower.get_weights()
    for epoch in range(1, settings.epochs + 1):
        tower.fit(batches, verbose=0)
        scores.append(quality())
        if scores[-1] > scores[best]:
            best, best_weights = epoch, tower.get_weights()
        elif epoch - best >= settings.patience:
            break
    tower.set_weights(best_weights)
    return TrainedTower(tower, scores, best)


class NextItemBatches(keras.utils.PyDataset):
    """Batches of (history so far, next item), shuffled anew for each epoch; see `UserTower`.

    Args:
        histories: rows of items, oldest first, two at least.
        embeddings: float32 `[items, d]`.
        settings: batch size, negatives and longest history.
        seed: decides order and negatives.
    """

    def __init__(
        self,
        histories: Sequence[np.ndarray],
        embeddings: np.ndarray,
        settings: UserTraining,
        seed: int,
    ) -> None:
        super().__init__()
        self._histories = histories
        self._embeddings = embeddings
        self._settings = settings
        self._draw = np.random.default_rng(seed)
        self._examples = np.array(
            [
                (user, place)
                for user, history in enumerate(histories)
                for place in range(max(1, len(history) - settings.max_history), len(history))
                if history[place] not in history[:place]  # what was seen is not offered
            ]
            or np.zeros((0, 2), np.int64)
        )
        self._size = min(settings.batch_size, len(self._examples))  # all batches are of one size
        self._width = min(settings.max_history, max(map(len, histories), default=2) - 1)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self._order) // max(1, self._size)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray]]:
        rows = self._order[index * self._size : (index + 1) * self._size]
        past, item = [], []
        for user, place in self._examples[rows]:
            history = self._histories[user]
            past.append(newest(history[:place], self._width))
            item.append(history[place])
        seen = padded_rows(past)  # [B, h]
        seen = np.pad(seen, [(0, 0), (0, self._width - seen.shape[1])], constant_values=-1)
        items = np.array(item)
        drawn = min(self._settings.negatives, len(self._embeddings))
        negatives = self._draw.choice(len(self._embeddings), drawn, replace=False)
        candidates = np.concatenate([items, negatives])
        ignored = (candidates == items[:, None]) | (
            seen[:, :, None] == candidates[None, None, :]
        ).any(axis=1)
        np.fill_diagonal(ignored, False)
        return (
            {
                "history": self._embeddings[np.maximum(seen, 0)],
                "known": seen >= 0,
                "item": self._embeddings[items],
                "negatives": self._embeddings[negatives],
                "ignored": ignored,
            },
        )

    def on_epoch_end(self) -> None:
        """Shuffles."""
        self._order = self._draw.permutation(len(self._examples))[:_MAX_EXAMPLES]
