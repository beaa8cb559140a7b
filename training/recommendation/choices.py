"""Settings of the parts of a recommender, each by what it finds alone on held-out cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from towers.recommender import newest, popularity_prior, recency_matrix
from training.recommendation.co_occurrence import fit_co_occurrence
from training.recommendation.held_out import HeldOut
from training.recommendation.popularity import item_counts, recent_counts
from training.recommendation.ranks import next_ranks

Option = TypeVar("Option")

_DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
_STRENGTHS = (20.0, 100.0, 500.0)
_SHARES_OF_TIME = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # half-lives, of the time that is known
_CUTOFF = 10
_CASES_AT_A_TIME = 256


@dataclass(frozen=True)
class Choices:
    """Settings of the parts.

    Attributes:
        decay: share of its weight that a past item keeps with each newer one, for co-occurrence
            and words.
        text_decay: the same for the mean vector that the user tower starts from.
        strength: see `fit_co_occurrence`.
        half_life: of popularity, in days; None where an event counts the same however long ago.
    """

    decay: float = 0.7
    text_decay: float = 0.6
    strength: float = 20.0
    half_life: float | None = None

    def counts(
        self, histories: Sequence[np.ndarray], times: Sequence[np.ndarray] | None, item_count: int
    ) -> np.ndarray:
        """How popular items are, float or int ``[items]``; see `recent_counts`."""
        if times is None or self.half_life is None:
            return item_counts(histories, item_count)
        seconds = np.timedelta64(max(1, round(86_400 * self.half_life)), "s")
        return recent_counts(histories, times, item_count, seconds)


def choose_settings(
    held_out: Sequence[HeldOut],
    histories: Sequence[np.ndarray],
    embeddings: np.ndarray,
    words: sp.csr_matrix,
    *,
    longest: int,
    order: bool = True,
    co_occurrence: bool = True,
) -> tuple[Choices, list[sp.csr_matrix]]:
    """Chooses each setting by the nDCG@10 of its part alone; the defaults without cases.

    Args:
        held_out: what to fit on, and to ask.
        histories: of all users, rows of items, int ``[events]``, oldest first.
        embeddings: float32 ``[items, d]``.
        words: neighbours by words, ``[items, items]``; without co-occurrence they choose `decay`.
        longest: newest items of a history that are looked at.
        order: whether older items may count less.
        co_occurrence: whether it is part of the score.

    Returns:
        The choices and, for each of `held_out`, the co-occurrence fitted with their strength,
        ``[items, items]``; empty where it is no part of the score.
    """
    if not held_out:
        return Choices() if order else Choices(decay=1.0, text_decay=1.0), []
    items = len(embeddings)
    decays = _DECAYS if order else (1.0,)
    by_text: dict[float, float] = {}
    by_others: dict[tuple[float, float], float] = {}
    by_time: dict[float | None, float] = {}
    half_lives = _half_lives(held_out)
    fitted: list[dict[float, sp.csr_matrix]] = []
    for part in held_out:
        past = known_items(part, histories, longest)
        recency = {decay: recency_matrix(past, decay, items) for decay in decays}

        for decay, weights in recency.items():
            means = weights @ embeddings
            _add(by_text, decay, quality(part, means, embeddings.T))
        near = {Choices.strength: words}
        if co_occurrence:
            near = {
                strength: fit_co_occurrence(part.histories, items, strength=strength).matrix()
                for strength in _STRENGTHS
            }
            fitted.append(near)
        for strength, matrix in near.items():
            for decay, weights in recency.items():
                _add(by_others, (strength, decay), quality(part, weights, matrix))
        for half_life in half_lives:
            counts = Choices(half_life=half_life).counts(part.histories, part.times, items)
            prior = popularity_prior(counts)
            everyone = np.ones((len(part), 1), np.float32)
            _add(by_time, half_life, quality(part, everyone, prior[None]))
    strength, decay = _best(by_others)
    choices = Choices(decay, _best(by_text), strength, _best(by_time))
    return choices, [near[strength] for near in fitted]


def known_items(part: HeldOut, histories: Sequence[np.ndarray], longest: int) -> list[np.ndarray]:
    """The newest known items of each case, rows of the catalogue."""
    return [
        newest(histories[user][:place], longest)
        for user, place in zip(part.users, part.places, strict=True)
    ]


def _half_lives(held_out: Sequence[HeldOut]) -> list[float | None]:
    """Half-lives to try, in days; that of events that never age first."""
    times = [when for part in held_out for when in part.times or () if len(when)]
    if not times:
        return [None]
    span = max(when[-1] for when in times) - min(when[0] for when in times)
    days = float(span / np.timedelta64(1, "D"))
    return [None, *(share * days for share in reversed(_SHARES_OF_TIME) if share * days > 0)]


def quality(part: HeldOut, users: Any, items: Any) -> float:
    """Sum over cases of nDCG@10 by the scores ``users @ items``, dense or sparse."""
    total = 0.0
    for start in range(0, len(part), _CASES_AT_A_TIME):
        of = slice(start, start + _CASES_AT_A_TIME)
        scores = users[of] @ items  # [cases, items]
        scores = scores.toarray() if sp.issparse(scores) else scores
        ranks = next_ranks(scores, part.seen[of], part.target[of])
        found = ranks < _CUTOFF  # false where the target was seen before
        total += float((1 / np.log2(ranks[found] + 2)).sum())
    return total


def _add(qualities: dict[Option, float], option: Option, quality: float) -> None:
    qualities[option] = qualities.get(option, 0.0) + quality


def _best(qualities: Mapping[Option, float]) -> Option:
    """The best option, the first of equals."""
    return max(qualities, key=lambda option: qualities[option])
