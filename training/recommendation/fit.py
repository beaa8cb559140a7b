"""From histories to a recommender: user tower, co-occurrence, and how much each part counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from towers.errors import InputError
from towers.item_neighbours import ItemNeighbours, word_neighbours
from towers.recommender import (
    BlendWeights,
    Recommender,
    newest,
    popularity_prior,
    recency_matrix,
    user_vectors,
)
from training.recommendation.blend import choose_blend
from training.recommendation.co_occurrence import fit_co_occurrence
from training.recommendation.popularity import item_counts
from training.recommendation.user_training import TrainedTower, UserTraining, train_user_tower

Progress = Callable[[int, int], None]
"""Told (steps done, steps in all)."""

PARTS = ("text", "co_occurrence", "words", "popularity")

# Without a history to learn from; the size of the weights that office's training users gave.
_PRIOR = BlendWeights(text=8.0, co_occurrence=0.0, words=8.0, popularity=0.2)
# A query says what is wanted now, a history what was: not learned, histories hold no queries.
_QUERY_TO_TEXT = 3.0
_MAX_BLEND_USERS = 2_000
_CANDIDATES = 5_000


@dataclass(frozen=True)
class RecommenderSettings:
    """Settings of `fit_recommender`.

    Attributes:
        parts: of `PARTS`, those that the score has; the others get no weight.
        decay: see `towers.Recommender`; 1 where `order` is false.
        order: whether the order of a history counts.
        strength: see `fit_co_occurrence`.
        folds: parts of the users; each is scored by what the others taught, to fit the weights.
        user_tower: of the training of the user tower.
    """

    parts: Sequence[str] = PARTS
    decay: float = 0.7
    order: bool = True
    strength: float = 20.0
    folds: int = 3
    user_tower: UserTraining = field(default_factory=UserTraining)


@dataclass(frozen=True)
class RecommenderFit:
    """A recommender and how it came about.

    Attributes:
        recommender: the recommender.
        user_tower: how the training of its user tower went.
        users: users with two items or more, that something could be learned of.
        events: items in all histories.
        log_likelihood: mean log probability of the next item, of users that nothing but the
            weights was fitted on.
        uniform: the same if all items were equally likely.
    """

    recommender: Recommender
    user_tower: TrainedTower
    users: int
    events: int
    log_likelihood: float
    uniform: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "users": self.users,
            "events": self.events,
            "weights": asdict(self.recommender.weights),
            "log_likelihood": self.log_likelihood,
            "log_likelihood_uniform": self.uniform,
            "user_tower": {
                "held_out_rr": self.user_tower.held_out,
                "best_epoch": self.user_tower.best_epoch,
            },
        }


def fit_recommender(
    histories: Sequence[np.ndarray],
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    embeddings: np.ndarray,
    settings: RecommenderSettings | None = None,
    *,
    encoder_fingerprint: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> RecommenderFit:
    """Fits a recommender to histories.

    Every part is fitted on all users but a fold, and scores the users of that fold; the weights of
    the parts come from these scores, as the parts know their own users too well. Then every part is
    fitted on all users.

    Args:
        histories: rows of items of each user, int `[events]`, oldest first.
        item_ids: ids of the catalogue, `N`.
        item_texts: texts of the items.
        embeddings: float32 `[N, d]`, of the texts.
        settings: the settings; the defaults if None.
        encoder_fingerprint: of the item tower, kept with the recommender.
        seed: decides folds, held-out users, negatives.
        progress: told about the progress.

    Raises:
        InputError: a part that does not exist.
    """
    settings = settings or RecommenderSettings()
    unknown = [part for part in settings.parts if part not in PARTS]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no part of the score: {', '.join(PARTS)} are")
    report = progress or (lambda done, total: None)
    longest = settings.user_tower.max_history
    usable = [np.asarray(history) for history in histories if len(history) > 1]
    decay = settings.decay if settings.order else 1.0
    tower_settings = settings.user_tower
    if not settings.order:  # a plain mean
        tower_settings = replace(tower_settings, decay=1.0, epochs=0)
    order = np.random.default_rng(seed).permutation(len(usable))
    folds = [order[start :: settings.folds] for start in range(settings.folds)]
    folds = folds if len(usable) >= 4 * settings.folds else []
    words = (
        word_neighbours(item_texts)
        if "words" in settings.parts
        else ItemNeighbours.none(len(item_ids))
    )

    def fit(users: Sequence[np.ndarray]) -> tuple[TrainedTower, ItemNeighbours]:
        trained = train_user_tower(users, embeddings, tower_settings, seed=seed)
        if "co_occurrence" not in settings.parts:
            return trained, ItemNeighbours.none(len(item_ids))
        return trained, fit_co_occurrence(users, len(item_ids), strength=settings.strength)

    examples = _Examples(len(item_ids), longest, seed)
    for done, fold in enumerate(folds):
        report(done, len(folds) + 1)
        others = [usable[user] for user in np.setdiff1d(order, fold)]
        trained, near = fit(others)
        prior = popularity_prior(item_counts(others, len(item_ids)))
        held_out = [usable[user] for user in fold[: _MAX_BLEND_USERS // len(folds)]]
        past, target = examples.draw(held_out)
        recency = recency_matrix(past, decay, len(item_ids))
        scores = {
            "text": user_vectors(trained.tower, embeddings, past) @ embeddings.T,
            "co_occurrence": (recency @ near.matrix()).toarray(),
            "words": (recency @ words.matrix()).toarray(),
            "popularity": np.broadcast_to(prior, (len(past), len(prior))),
        }
        examples.add(past, target, [scores[part] for part in settings.parts])
    report(len(folds), len(folds) + 1)
    weights, likelihood = examples.weights(settings.parts)
    trained, near = fit(usable)
    counts = item_counts(histories, len(item_ids))
    known = np.flatnonzero(counts)
    place = np.full(len(item_ids), -1)
    place[known] = np.arange(len(known))
    report(len(folds) + 1, len(folds) + 1)
    recommender = Recommender(
        trained.tower,
        weights,
        [item_ids[row] for row in known.tolist()],
        near.moved(place, len(known)),
        counts[known],
        decay=decay,
        max_history=longest,
        encoder_fingerprint=encoder_fingerprint,
    )
    events = sum(map(len, histories))
    uniform = -float(np.log(max(len(item_ids), 1)))
    return RecommenderFit(recommender, trained, len(usable), events, likelihood, uniform)


class _Examples:
    """Histories cut short, the items that came next, and the scores of candidates for them."""

    def __init__(self, item_count: int, longest: int, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        count = min(item_count, _CANDIDATES)
        self._candidates = np.sort(self._draw.choice(item_count, count, replace=False))
        self._item_count, self._longest = item_count, longest
        self._parts: list[list[np.ndarray]] = []
        self._seen: list[np.ndarray] = []

    def draw(self, histories: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """For each user the last item after all before it, and an earlier one drawn at random."""
        past, target = [], []
        for history in histories:
            for place in {len(history) - 1, int(self._draw.integers(1, len(history)))}:
                past.append(newest(history[:place], self._longest))
                target.append(history[place])
        return past, np.array(target)

    def add(
        self, past: Sequence[np.ndarray], target: np.ndarray, parts: Sequence[np.ndarray]
    ) -> None:
        """Keeps the scores, float `[cases, items]`, of the candidates and, last, of the target."""
        cases = np.arange(len(target))
        seen = np.zeros((len(target), self._item_count), bool)
        for case, rows in enumerate(past):
            seen[case, rows] = True
        others = seen[:, self._candidates] | (self._candidates == target[:, None])
        self._seen.append(np.column_stack([others, seen[cases, target]]))
        self._parts.append(
            [np.column_stack([x[:, self._candidates], x[cases, target]]) for x in parts]
        )

    def weights(self, parts: Sequence[str]) -> tuple[BlendWeights, float]:
        """The weights of the parts and the mean log likelihood of the targets."""
        prior = {name: value if name in parts else 0.0 for name, value in asdict(_PRIOR).items()}
        likelihood = 0.0
        if self._seen:
            scores = [np.concatenate(scores) for scores in zip(*self._parts, strict=True)]
            seen = np.concatenate(self._seen)
            target = np.full(len(seen), seen.shape[1] - 1)
            fitted, likelihood = choose_blend(scores, target, seen)
            prior |= dict(zip(parts, fitted.tolist(), strict=True))
        return BlendWeights(**prior | {"query": _QUERY_TO_TEXT * prior["text"]}), likelihood
