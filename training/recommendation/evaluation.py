"""Evaluation of a recommender: right or not, for whom, and what it does to the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from towers.errors import InputError
from training import metrics
from training.evaluation import bootstrap_interval
from training.recommendation import measures
from training.recommendation.popularity import long_tail, popularity_deciles
from training.recommendation.scorer import Scorer
from training.recommendation.splits import Cases

USERS_AT_A_TIME = 256
CUTOFFS = (10, 20)

Known = Mapping[str, Sequence[Any] | np.ndarray]
"""Further arguments of a scorer, such as `contexts` and `review_vectors` of
`towers.recommender.CatalogRecommender`, with a value for each user."""


@dataclass(frozen=True)
class Estimate:
    """The mean of a measure over users.

    Attributes:
        mean: of the values.
        interval_95: bootstrap interval over users, see `training.evaluation.bootstrap_interval`.
        users: number of values.
    """

    mean: float
    interval_95: tuple[float, float]
    users: int

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate | None:
        """Estimates from floating ``[U]``, NaN left out; None where nothing is left."""
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        return cls(float(values.mean()), bootstrap_interval(values), len(values))

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {"mean": self.mean, "interval_95": list(self.interval_95), "users": self.users}


@dataclass(frozen=True)
class RecommendationEvaluation:
    """The result of `evaluate_recommendations`.

    Attributes:
        users: user ids of the cases.
        rows: int64 ``[users, deepest cutoff]``, what was recommended, best first, -1 for nothing.
        per_user: float64 ``[users]`` of each measure, NaN where it says nothing of a user.
        catalog: measures of all lists together: ``Coverage@k`` and ``Gini@k``. They have no
            interval: a resample of users shows fewer items than the users themselves.
        groups: for each column the group of each user, None without one.
    """

    users: list[str] = field(repr=False)
    rows: np.ndarray = field(repr=False)
    per_user: dict[str, np.ndarray] = field(repr=False)
    catalog: dict[str, float]
    groups: Mapping[str, Sequence[str | None]] = field(repr=False)

    def estimate(self, measure: str) -> Estimate | None:
        """The mean of one measure over the users it says something of; None if there are none."""
        return Estimate.of(self.per_user[measure])

    def by_group(self, column: str, measure: str) -> dict[str, Estimate]:
        """The mean of a measure in each group of users, the largest group first.

        Users without a value, and groups of which the measure says nothing, are left out.
        """
        group_of = np.array([*self.groups[column], None], object)[:-1]
        found = {}
        for group in sorted({group for group in group_of if group is not None}):
            if estimate := Estimate.of(self.per_user[measure][group_of == group]):
                found[group] = estimate
        return dict(sorted(found.items(), key=lambda item: -item[1].users))

    def as_dict(self) -> dict[str, Any]:
        """Everything but what is of single users, ready for `json.dumps`."""
        accuracy = [name for name in self.per_user if name.startswith(("R@", "nDCG@"))]
        return {
            "users": len(self.users),
            "measures": {
                name: estimate.as_dict() if (estimate := self.estimate(name)) else None
                for name in self.per_user
            },
            "catalog": self.catalog,
            "groups": {
                column: {
                    name: {g: e.as_dict() for g, e in self.by_group(column, name).items()}
                    for name in accuracy
                }
                for column in self.groups
            },
        }


def recommend(
    scorer: Scorer,
    histories: Sequence[np.ndarray],
    k: int,
    *,
    known: Known | None = None,
    exclude_seen: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Takes the items with the best scores for each user.

    Which of several items with the same score comes first is drawn, once for all users: catalogues
    tend to be in an order that says something, such as by first sale, and a baseline that gives
    half of the items 0 shall not profit from it.

    Args:
        scorer: see `Scorer`.
        histories: for each user rows of the catalogue.
        k: items wanted.
        known: what else is known of the users, by the scorer's argument: a value for each user.
        exclude_seen: leave out the items of the user's history.
        seed: decides between equal scores.

    Returns:
        int64 ``[users, min(k, items)]``, -1 where all other items have been seen.

    Raises:
        InputError: `k` is below 1, or the scorer's answer has a wrong shape or is not finite.
    """
    if k < 1:
        raise InputError(f"k is {k}, expected 1 or more")
    ask: Callable[..., np.ndarray] = scorer
    found, draw = [], np.zeros(0, np.int64)
    for first in range(0, len(histories), USERS_AT_A_TIME):
        part = histories[first : first + USERS_AT_A_TIME]
        end = first + USERS_AT_A_TIME
        further = {name: values[first:end] for name, values in (known or {}).items()}
        # A copy: seen items are taken out of it.
        scores = np.array(ask(part, **further), np.float32)
        if scores.ndim != 2 or len(scores) != len(part):
            raise InputError(
                f"scores have shape {list(scores.shape)}, expected [{len(part)}, items]"
            )
        if not np.isfinite(scores).all():
            raise InputError(
                f"the scores of user {first + int(np.argmin(np.isfinite(scores).all(axis=1)))}"
                " are not finite"
            )
        if exclude_seen:
            for user, history in enumerate(part):
                scores[user, history] = -np.inf
        if not len(draw):
            draw = np.random.default_rng(seed).permutation(scores.shape[1])
        found += [_best(row, min(k, len(row)), draw) for row in scores]
    return np.stack(found) if found else np.zeros((0, k), np.int64)


def _best(scores: np.ndarray, k: int, draw: np.ndarray) -> np.ndarray:
    """Rows of the `k` best scores, -1 for one of -inf; of equal scores the one drawn first."""
    rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # k, and ties of the last
    rows = rows[np.lexsort((draw[rows], -scores[rows]))[:k]]
    return np.where(np.isfinite(scores[rows]), rows, -1)


def evaluate_recommendations(
    scorer: Scorer,
    cases: Cases,
    counts: np.ndarray,
    *,
    trained_users: int,
    cutoffs: Sequence[int] = CUTOFFS,
    items: np.ndarray | None = None,
    groups: Mapping[str, Sequence[str | None]] | None = None,
    known: Known | None = None,
    exclude_seen: bool = True,
    seed: int = 0,
) -> RecommendationEvaluation:
    """Evaluates recommendations over the full catalogue.

    For each cutoff ``k``, a value a user: ``R@k`` and ``nDCG@k``; ``R@k tail``, over targets in the
    long tail; ``R@k decile d``, over targets in a tenth of the catalogue by popularity, 10 the most
    popular (`training.recommendation.popularity`); and of what is recommended, right or not,
    ``Popularity@k``, ``Novelty@k`` and ``Diversity@k`` (`training.recommendation.measures`).

    Args:
        scorer: see `Scorer`.
        cases: users, known histories and targets, see `training.recommendation.splits`.
        counts: int ``[items]``, how many users took each item in what was trained on.
        trained_users: users behind the counts.
        cutoffs: lengths of the lists.
        items: floating ``[items, d]``, unit vectors of the items, for diversity; left out if None.
        groups: for any column of users, the group of each user of `cases`.
        known: see `recommend`.
        exclude_seen: recommend nothing that is in the user's history. A target that is there can
            then not be found; `Cases.with_new_targets` leaves such targets out.
        seed: decides between items of equal score.

    Returns:
        Values, intervals, lists.

    Raises:
        InputError: there are no cases, a column of groups has another number of users, a cutoff is
            below 1, or the scorer's answer is not right.
    """
    if not len(cases):
        raise InputError("no users to recommend to")
    for column, group_of in (groups or {}).items():
        if len(group_of) != len(cases):
            raise InputError(f"{column!r} has {len(group_of)} users, the cases {len(cases)}")
    if not cutoffs or min(cutoffs) < 1:
        raise InputError(f"cutoffs are {list(cutoffs)}, expected numbers of 1 or more")
    rows = recommend(
        scorer, cases.histories, max(cutoffs), known=known, exclude_seen=exclude_seen, seed=seed
    )
    decile, tail = popularity_deciles(counts), long_tail(counts)
    kinds = {"tail": tail} | {f"decile {d}": decile == d for d in range(1, 11)}
    per_user, catalog = {}, {}
    for k in cutoffs:
        per_user[f"R@{k}"] = measures.recall(rows, cases.targets, k)
        per_user[f"nDCG@{k}"] = measures.ndcg(rows, cases.targets, k)
        for kind, chosen in kinds.items():
            targets = [target[chosen[target]] for target in cases.targets]
            having = np.array([len(target) > 0 for target in targets])
            found = measures.recall(rows, targets, k)
            per_user[f"R@{k} {kind}"] = np.where(having, found, np.nan)
        shown = rows[:, :k]
        per_user[f"Popularity@{k}"] = measures.average_popularity(shown, counts)
        per_user[f"Novelty@{k}"] = measures.novelty(shown, counts, trained_users)
        if items is not None:
            per_user[f"Diversity@{k}"] = measures.intra_list_diversity(shown, items)
        catalog[f"Coverage@{k}"] = metrics.coverage(rows, len(counts), k)
        catalog[f"Gini@{k}"] = measures.gini(shown, len(counts))
    return RecommendationEvaluation(cases.users, rows, per_user, catalog, groups or {})
