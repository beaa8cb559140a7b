"""From histories to a recommender: user tower, co-occurrence, and how much each part counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from towers.errors import InputError
from towers.item_neighbours import ItemNeighbours, word_neighbours
from towers.recommender import (
    REVIEWS_TO_TEXT,
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
from training.recommendation.review_part import EncodeReviews, ReviewPart, UserReviews
from training.recommendation.user_training import TrainedTower, UserTraining, train_user_tower

Progress = Callable[[int, int], None]
"""Told (steps done, steps in all)."""

PARTS = ("text", "co_occurrence", "words", "popularity", "reviews")

# Without a history to learn from; the size of the weights that office's training users gave.
_PRIOR = BlendWeights(text=8.0, co_occurrence=0.0, words=8.0, popularity=0.2)
# A query says what is wanted now, a history what was: not learned, histories hold no queries.
_QUERY_TO_TEXT = 3.0
_MAX_BLEND_USERS = 2_000
_MIN_REVIEWERS = 20  # fewer do not tell how much reviews count
_CANDIDATES = 5_000


@dataclass(frozen=True)
class RecommenderSettings:
    """Settings of `fit_recommender`.

    Attributes:
        parts: of `PARTS`, those that the score has; the others get no weight. Without reviews by
            enough of the users, theirs is a multiple of the text's.
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
        reviewers: users whose reviews the weight of the reviews was fitted on; 0 where it was not.
    """

    recommender: Recommender
    user_tower: TrainedTower
    users: int
    events: int
    log_likelihood: float
    uniform: float
    reviewers: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "users": self.users,
            "events": self.events,
            "weights": asdict(self.recommender.weights),
            "log_likelihood": self.log_likelihood,
            "log_likelihood_uniform": self.uniform,
            "reviewers": self.reviewers,
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
    reviews: UserReviews | None = None,
    encode_reviews: EncodeReviews | None = None,
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
        reviews: of the users, in their order.
        encode_reviews: vectors of review texts; needed with `reviews`.
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
    users = np.array([user for user, history in enumerate(histories) if len(history) > 1], int)
    usable = [np.asarray(histories[user]) for user in users]
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

    asked = [fold[: _MAX_BLEND_USERS // len(folds)] for fold in folds]
    written = None
    if reviews is not None and "reviews" in settings.parts:
        assert encode_reviews is not None
        numbers = users[np.concatenate([np.zeros(0, int), *asked])]
        written = ReviewPart(reviews, numbers, encode_reviews, seed=seed)
    parts = [part for part in settings.parts if part != "reviews" or written is not None]
    examples = _Examples(len(item_ids), longest, seed)
    reviewers = 0
    for done, (fold, some) in enumerate(zip(folds, asked, strict=True)):
        report(done, len(folds) + 1)
        others = [usable[user] for user in np.setdiff1d(order, fold)]
        trained, near = fit(others)
        prior = popularity_prior(item_counts(others, len(item_ids)))
        past, target, at = examples.draw([usable[user] for user in some])
        recency = recency_matrix(past, decay, len(item_ids))
        scores = {
            "text": user_vectors(trained.tower, embeddings, past) @ embeddings.T,
            "co_occurrence": (recency @ near.matrix()).toarray(),
            "words": (recency @ words.matrix()).toarray(),
            "popularity": np.broadcast_to(prior, (len(past), len(prior))),
        }
        if reviews is not None and written is not None:
            known = [
                reviews.known(users[some[case]], usable[some[case]], place) for case, place in at
            ]
            reviewers += len({case for (case, _), rows in zip(at, known, strict=True) if len(rows)})
            sentiment = written.sentiment(without=users[fold])
            scores["reviews"] = written.user_vectors(sentiment, known) @ embeddings.T
        examples.add(past, target, {part: scores[part] for part in parts})
    report(len(folds), len(folds) + 1)
    if reviewers < _MIN_REVIEWERS:
        parts, reviewers = [part for part in parts if part != "reviews"], 0
    weights, likelihood = examples.weights(parts)
    if "reviews" in settings.parts and not reviewers:
        weights = replace(weights, reviews=REVIEWS_TO_TEXT * weights.text)
    trained, near = fit(usable)
    counts = item_counts(histories, len(item_ids))
    taken = np.flatnonzero(counts)
    place = np.full(len(item_ids), -1)
    place[taken] = np.arange(len(taken))
    report(len(folds) + 1, len(folds) + 1)
    recommender = Recommender(
        trained.tower,
        weights,
        [item_ids[row] for row in taken.tolist()],
        near.moved(place, len(taken)),
        counts[taken],
        decay=decay,
        max_history=longest,
        encoder_fingerprint=encoder_fingerprint,
        sentiment=None if written is None else written.sentiment(),
    )
    events = sum(map(len, histories))
    uniform = -float(np.log(max(len(item_ids), 1)))
    return RecommenderFit(recommender, trained, len(usable), events, likelihood, uniform, reviewers)


class _Examples:
    """Histories cut short, the items that came next, and the scores of candidates for them."""

    def __init__(self, item_count: int, longest: int, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        count = min(item_count, _CANDIDATES)
        self._candidates = np.sort(self._draw.choice(item_count, count, replace=False))
        self._item_count, self._longest = item_count, longest
        self._parts: dict[str, list[np.ndarray]] = {}
        self._seen: list[np.ndarray] = []

    def draw(
        self, histories: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], np.ndarray, list[tuple[int, int]]]:
        """For each user the last item after all before it, and an earlier one drawn at random.

        Returns:
            What is known, the items that came next, and the user and the place of each of these.
        """
        past, target, at = [], [], []
        for user, history in enumerate(histories):
            for place in {len(history) - 1, int(self._draw.integers(1, len(history)))}:
                past.append(newest(history[:place], self._longest))
                target.append(history[place])
                at.append((user, place))
        return past, np.array(target), at

    def add(
        self, past: Sequence[np.ndarray], target: np.ndarray, parts: Mapping[str, np.ndarray]
    ) -> None:
        """Keeps the scores, float `[cases, items]`, of the candidates and, last, of the target."""
        cases = np.arange(len(target))
        seen = np.zeros((len(target), self._item_count), bool)
        for case, rows in enumerate(past):
            seen[case, rows] = True
        others = seen[:, self._candidates] | (self._candidates == target[:, None])
        self._seen.append(np.column_stack([others, seen[cases, target]]))
        for name, x in parts.items():
            of_candidates = np.column_stack([x[:, self._candidates], x[cases, target]])
            self._parts.setdefault(name, []).append(of_candidates)

    def weights(self, parts: Sequence[str]) -> tuple[BlendWeights, float]:
        """The weights of the parts and the mean log likelihood of the targets."""
        prior = {name: value if name in parts else 0.0 for name, value in asdict(_PRIOR).items()}
        likelihood = 0.0
        if self._seen:
            scores = [np.concatenate(self._parts[part]) for part in parts]
            seen = np.concatenate(self._seen)
            target = np.full(len(seen), seen.shape[1] - 1)
            fitted, likelihood = choose_blend(scores, target, seen)
            prior |= dict(zip(parts, fitted.tolist(), strict=True))
        return BlendWeights(**prior | {"query": _QUERY_TO_TEXT * prior["text"]}), likelihood
