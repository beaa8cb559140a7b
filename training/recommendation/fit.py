"""From histories to a recommender: user tower, co-occurrence, and how much each part counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from towers.context_lifts import ContextLifts
from towers.errors import InputError
from towers.item_neighbours import ItemNeighbours, word_neighbours
from towers.recommender import (
    REVIEWS_TO_TEXT,
    BlendWeights,
    Recommender,
    popularity_prior,
    recency_matrix,
    user_vectors,
)
from towers.review_sentiment import ReviewSentiment
from training.recommendation.blend import choose_blend
from training.recommendation.choices import Choices, choose_settings, known_items
from training.recommendation.co_occurrence import fit_co_occurrence
from training.recommendation.context_part import ContextPart
from training.recommendation.held_out import HeldOut, hold_out
from training.recommendation.popularity import item_counts
from training.recommendation.review_part import EncodeReviews, ReviewPart, UserReviews
from training.recommendation.user_training import TrainedTower, UserTraining, train_user_tower

Progress = Callable[[int, int], None]
"""Told (steps done, steps in all)."""

PARTS = ("text", "co_occurrence", "words", "popularity", "reviews", "context")

# Without a history to learn from; the size of the weights that office's training users gave.
_PRIOR = BlendWeights(text=8.0, co_occurrence=0.0, words=8.0, popularity=0.2)
# A query says what is wanted now, a history what was: not learned, histories hold no queries.
_QUERY_TO_TEXT = 3.0
# Who is known by nothing gets what is popular, also where that tells nothing of others.
_LEAST_POPULARITY = 1e-3
_MIN_REVIEWERS = 20  # fewer do not tell how much reviews count
# Where nothing else is known: popularity and a lift whole are what is popular in the context.
_MOST_ALONE = 1.0
_CANDIDATES = 5_000


@dataclass(frozen=True)
class RecommenderSettings:
    """Settings of `fit_recommender`.

    Attributes:
        parts: of `PARTS`, those that the score has; the others get no weight. Without reviews by
            enough of the users, theirs is a multiple of the text's; a column of contexts needs as
            many to count at all.
        order: whether the order of a history counts.
        choices: of the parts; held-out cases choose if None.
        folds: parts of the users; where it is not known when events were, each is scored by what
            the others taught, to fit the weights.
        user_tower: of the training of the user tower; its decay is that of `choices`.
    """

    parts: Sequence[str] = PARTS
    order: bool = True
    choices: Choices | None = None
    folds: int = 3
    user_tower: UserTraining = field(default_factory=UserTraining)


@dataclass(frozen=True)
class RecommenderFit:
    """A recommender and how it came about.

    Attributes:
        recommender: the recommender.
        user_tower: how the training of its user tower went.
        choices: settings of the parts.
        cases: held-out cases that chose them and the weights.
        users: users with two items or more, that something could be learned of.
        events: items in all histories.
        log_likelihood: mean log probability of the next item, of users that nothing but the
            weights was fitted on.
        uniform: the same if all items were equally likely.
        reviewers: users whose reviews the weight of the reviews was fitted on; 0 where it was not.
        context: for each column of contexts the users whose value is known in held-out cases, and
            the pseudo-count that suits these best.
    """

    recommender: Recommender
    user_tower: TrainedTower
    choices: Choices
    cases: int
    users: int
    events: int
    log_likelihood: float
    uniform: float
    reviewers: int = 0
    context: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "users": self.users,
            "events": self.events,
            "cases": self.cases,
            "choices": asdict(self.choices),
            "weights": asdict(self.recommender.weights),
            "log_likelihood": self.log_likelihood,
            "log_likelihood_uniform": self.uniform,
            "reviewers": self.reviewers,
            "context": {
                name: facts | self.recommender.facts()["context"][name]
                for name, facts in self.context.items()
            },
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
    times: Sequence[np.ndarray] | None = None,
    reviews: UserReviews | None = None,
    encode_reviews: EncodeReviews | None = None,
    contexts: Mapping[str, np.ndarray] | None = None,
    encoder_fingerprint: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> RecommenderFit:
    """Fits a recommender to histories.

    Every part is fitted without some events, and scores what came next in these: the latest ones
    where times are known, else all of a fold of the users at a time (`hold_out`). These scores
    choose the settings of the parts and their weights, as the parts know what they were fitted on
    too well. Then every part is fitted on everything.

    Args:
        histories: rows of items of each user, int `[events]`, oldest first.
        item_ids: ids of the catalogue, `N`.
        item_texts: texts of the items.
        embeddings: float32 `[N, d]`, of the texts.
        settings: the settings; the defaults if None.
        times: when the events were, datetime64[s] `[events]` of each user, never falling.
        reviews: of the users, in their order.
        encode_reviews: vectors of review texts; needed with `reviews`.
        contexts: columns of the users and of the events, see `training.contexts.Contexts.columns`.
        encoder_fingerprint: of the item tower, kept with the recommender.
        seed: decides held-out cases, users, negatives.
        progress: told about the progress.

    Raises:
        InputError: a part that does not exist.
    """
    settings = settings or RecommenderSettings()
    unknown = [part for part in settings.parts if part not in PARTS]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no part of the score: {', '.join(PARTS)} are")
    report = progress or (lambda done, total: None)
    longest, item_count = settings.user_tower.max_history, len(item_ids)
    histories = [np.asarray(history) for history in histories]
    held_out = hold_out(histories, times, folds=settings.folds, seed=seed)
    words = (
        word_neighbours(item_texts)
        if "words" in settings.parts
        else ItemNeighbours.none(item_count)
    ).matrix()
    choices, near_by_part = settings.choices, list[sp.csr_matrix]()
    if choices is None:
        choices, near_by_part = choose_settings(
            held_out,
            histories,
            embeddings,
            words,
            longest=longest,
            order=settings.order,
            co_occurrence="co_occurrence" in settings.parts,
        )
    tower_settings = replace(settings.user_tower, decay=choices.text_decay)
    if not settings.order:  # a plain mean
        tower_settings = replace(tower_settings, epochs=0)

    def fit_near(histories: Sequence[np.ndarray]) -> ItemNeighbours:
        if "co_occurrence" not in settings.parts:
            return ItemNeighbours.none(item_count)
        return fit_co_occurrence(histories, item_count, strength=choices.strength)

    written = None
    if reviews is not None and "reviews" in settings.parts:
        assert encode_reviews is not None
        asked = np.unique(np.concatenate([np.zeros(0, int), *(part.users for part in held_out)]))
        written = ReviewPart(reviews, asked, encode_reviews, seed=seed)
    context = None
    if contexts and "context" in settings.parts:
        context = ContextPart(contexts, histories, item_count)
        context.choose(held_out, choices)
    parts = [part for part in settings.parts if part not in ("reviews", "context")]
    if written is not None:
        parts.append("reviews")
    if context is not None:
        parts += [context.name(column) for column in context.usable()]
    examples = _Examples(item_count, seed)
    reviewers = 0
    for done, part in enumerate(held_out):
        report(done, len(held_out) + 1)
        trained = train_user_tower(part.histories, embeddings, tower_settings, seed=seed)
        near = near_by_part[done] if near_by_part else fit_near(part.histories).matrix()
        prior = popularity_prior(choices.counts(part.histories, part.times, item_count))
        past = known_items(part, histories, longest)
        recency = recency_matrix(past, choices.decay, item_count)
        scores = {
            "text": user_vectors(trained.tower, embeddings, past) @ embeddings.T,
            "co_occurrence": (recency @ near).toarray(),
            "words": (recency @ words).toarray(),
            "popularity": np.broadcast_to(prior, (len(past), len(prior))),
        }
        if reviews is not None and written is not None:
            known = [
                reviews.known(user, histories[user], place, target)
                for user, place, target in zip(part.users, part.places, part.target, strict=True)
            ]
            reviewers += len(
                {user for user, rows in zip(part.users, known, strict=True) if len(rows)}
            )
            sentiment = written.sentiment(without=np.unique(part.users))
            scores["reviews"] = written.user_vectors(sentiment, known) @ embeddings.T
        if context is not None:
            scores |= context.scores(part)
        examples.add(part, {name: scores[name] for name in parts})
    report(len(held_out), len(held_out) + 1)
    if reviewers < _MIN_REVIEWERS:
        parts, reviewers = [part for part in parts if part != "reviews"], 0
    weights, of_columns, likelihood = examples.weights(parts)
    if "popularity" in settings.parts:
        weights = replace(weights, popularity=max(weights.popularity, _LEAST_POPULARITY))
    if "reviews" in settings.parts and not reviewers:
        weights = replace(weights, reviews=REVIEWS_TO_TEXT * weights.text)
    trained = train_user_tower(histories, embeddings, tower_settings, seed=seed)
    counts = item_counts(histories, item_count)
    taken = np.flatnonzero(counts)
    place = np.full(item_count, -1)
    place[taken] = np.arange(len(taken))
    lifts = ContextLifts.none()
    if context is not None:
        found = _columns_weights(context, of_columns, examples, weights.popularity)
        lifts = context.learned(found).of_items(taken)
    sentiment = ReviewSentiment.unlearned(embeddings.shape[1])
    if written is not None:
        sentiment = written.sentiment()
    report(len(held_out) + 1, len(held_out) + 1)
    recommender = Recommender(
        trained.tower,
        weights,
        [item_ids[row] for row in taken.tolist()],
        fit_near(histories).moved(place, len(taken)),
        counts[taken],
        choices.counts(histories, times, item_count)[taken].astype(np.float32),
        sentiment,
        decay=choices.decay,
        max_history=longest,
        encoder_fingerprint=encoder_fingerprint,
        context=lifts,
    )
    return RecommenderFit(
        recommender,
        trained,
        choices,
        cases=sum(map(len, held_out)),
        users=sum(len(history) > 1 for history in histories),
        events=sum(map(len, histories)),
        log_likelihood=likelihood,
        uniform=-float(np.log(max(item_count, 1))),
        reviewers=reviewers,
        context={} if context is None else context.facts(),
    )


class _Examples:
    """Scores of candidates for the cases, the item that came next last among them."""

    def __init__(self, item_count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        count = min(item_count, _CANDIDATES)
        self._candidates = np.sort(draw.choice(item_count, count, replace=False))
        self._item_count = item_count
        self._parts: dict[str, list[np.ndarray]] = {}
        self._seen: list[np.ndarray] = []

    def add(self, part: HeldOut, scores: Mapping[str, np.ndarray]) -> None:
        """Keeps the scores, float `[cases, items]`, of the candidates and, last, of the target."""
        cases, target = np.arange(len(part)), part.target
        seen = np.zeros((len(part), self._item_count), bool)
        for case, rows in enumerate(part.seen):
            seen[case, rows] = True
        others = seen[:, self._candidates] | (self._candidates == target[:, None])
        self._seen.append(np.column_stack([others, seen[cases, target]]))
        for name, x in scores.items():
            of_candidates = np.column_stack([x[:, self._candidates], x[cases, target]])
            self._parts.setdefault(name, []).append(of_candidates)

    def weights(self, parts: Sequence[str]) -> tuple[BlendWeights, dict[str, float], float]:
        """Weights that suit the targets.

        Returns:
            The weights of the parts, those of the parts that `BlendWeights` does not have, and the
            mean log likelihood of the targets.
        """
        found = {name: value if name in parts else 0.0 for name, value in asdict(_PRIOR).items()}
        found |= {name: 0.0 for name in parts if name not in found}
        likelihood = 0.0
        if self._seen:
            fitted, likelihood = self.choose(parts)
            found |= fitted
        others = {name: found.pop(name) for name in parts if name not in asdict(_PRIOR)}
        found["query"] = _QUERY_TO_TEXT * found["text"]
        return BlendWeights(**found), others, likelihood

    def choose(self, parts: Sequence[str]) -> tuple[dict[str, float], float]:
        """The weights of some parts as if there were no others, and the mean log likelihood."""
        scores = [np.concatenate(self._parts[part]) for part in parts]
        seen = np.concatenate(self._seen)
        target = np.full(len(seen), seen.shape[1] - 1)
        fitted, likelihood = choose_blend(scores, target, seen)
        return dict(zip(parts, fitted.tolist(), strict=True)), likelihood


def _columns_weights(
    part: ContextPart, beside: Mapping[str, float], examples: _Examples, popularity: float
) -> dict[str, tuple[float, float]]:
    """Weights of the columns of contexts, beside a history and alone.

    Who has taken nothing is known by contexts and by what is popular. A part that tells little
    beside a history may be all there is to go by then: so how a column counts beside popularity is
    asked once more, of the same cases, as if nothing had been taken.

    Args:
        part: the columns.
        beside: weights of the parts of columns, with all other parts.
        examples: the cases.
        popularity: weight of popularity.
    """
    alone = dict.fromkeys(beside, 0.0)
    if beside and popularity:
        fitted, _ = examples.choose(["popularity", *beside])
        to_popularity = max(fitted.pop("popularity"), 1e-12)
        alone = {
            name: popularity * min(weight / to_popularity, _MOST_ALONE)
            for name, weight in fitted.items()
        }
    return {
        column: (beside.get(part.name(column), 0.0), alone.get(part.name(column), 0.0))
        for column in part.values
    }
