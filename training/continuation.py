"""Trained towers go on with new pairs: what they learn from, and how far they go.

Neural networks that are trained on new data alone forget the old ("catastrophic interference",
McCloskey and Cohen 1989). Three things are set against that: old pairs are trained on again
(rehearsal: Robins 1995), the scores in a batch are drawn to those of the towers before
(distillation: Li and Hoiem 2016, "Learning without Forgetting", https://arxiv.org/abs/1606.09282),
and queries that nothing is trained on say how much of the way from the old weights to the new is
worth going (Ilharco et al. 2022, "Patching open-vocabulary models by interpolating weights",
https://arxiv.org/abs/2208.05592).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from towers.errors import InputError
from towers.interpolation import interpolate
from towers.retriever import Retriever
from training.config import FitConfig, Method, UpdateConfig
from training.fit import FitResult, adapt
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.judged_ranking import JudgedRanking, Vectors
from training.lexical_weight import CANDIDATES, LexicalScorer
from training.shots import draw_shots, split_by_query
from training.stages import Stages, stage

_SHARES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Material:
    """What an update learns from, and what versions are compared on. No query is in both.

    Attributes:
        old: positive pairs that were trained on before.
        new: positive pairs that came in since.
        held_out: judged pairs of queries that no version from now on is trained on.
        is_old: bool ``[queries of held_out]``; false where the query came in with the new pairs.
    """

    old: Interactions
    new: Interactions
    held_out: Interactions
    is_old: np.ndarray

    @classmethod
    def of(
        cls,
        old: Interactions,
        old_held_out: Interactions | None,
        new: Interactions,
        *,
        share: float,
        least: int,
        unseen: bool = False,
        min_grade: int = 1,
        seed: int = 0,
    ) -> Material:
        """Splits by query.

        Where both judge a pair the new judgement counts.

        Args:
            old: judgements that are known.
            old_held_out: judgements of old queries that were never trained on; they are not now.
            new: judgements that came in since. Queries are held out of those that are not among
                the old ones, where there are enough.
            share: of the queries that are held out.
            least: queries that are held out at least, if any.
            unseen: whether the towers never were trained on `old`: then queries of them may be held
                out, too, where there are ``2 * least`` or more and `old_held_out` has fewer than
                `least`.
            min_grade: lowest grade of a positive pair.
            seed: decides which are held out.
        """
        held = old.select_rows(np.zeros(len(old), bool)) if old_held_out is None else old_held_out
        old = old.without_queries(held.queries).without_pairs(new)
        old = old.of_queries(old.positives(min_grade).queries)
        count = len(old.queries)
        if unseen and len(held.queries) < least and count >= 2 * least:
            old, drawn = split_by_query(old, max(share, least / count), seed=seed)
            held = held.followed_by(drawn)
        names = set(held.queries)
        held = held.followed_by(new.of_queries(names))
        new = new.without_queries(names)
        fresh = new.positives(min_grade).without_queries(old.queries)
        if round(share * len(fresh.queries)) >= least:
            asked = set(split_by_query(fresh, share, seed=seed)[1].queries)
            held = held.followed_by(new.of_queries(asked))
            new = new.without_queries(asked)
        return cls(
            old.positives(min_grade),
            new.positives(min_grade),
            held,
            np.array([query in names for query in held.queries], bool),
        )

    def pairs(self, replay: float, *, seed: int, min_grade: int = 1) -> tuple[Interactions, int]:
        """The pairs to train on: all new ones, and some old ones; and how many are old.

        Args:
            replay: old pairs for each new one, as far as there are so many.
            seed: decides which.
            min_grade: lowest grade of a positive pair.

        Raises:
            InputError: no new pair is left to be trained on.
        """
        if not len(self.new):
            raise InputError(
                f"{self.new.path}: no new pair to learn from: all its queries are among those that "
                "versions are compared on, or without a positive"
            )
        count = min(round(replay * len(self.new)), len(self.old))
        if not count:
            return self.new, 0
        replayed = draw_shots(self.old, count, seed=seed, min_grade=min_grade)
        return replayed.followed_by(self.new), count


@dataclass(frozen=True)
class Step:
    """A place on the way from the towers before to those after training.

    Attributes:
        share: of the way.
        old: mean of the measure over old held-out queries; None where there are none.
        new: over new ones, likewise.
    """

    share: float
    old: float | None
    new: float | None


@dataclass(frozen=True)
class Continuation:
    """Towers that went on.

    Attributes:
        retriever: the towers.
        fit: how training went; its towers are those at the end of the way.
        share: of that way that was gone.
        steps: the places that were looked at; none without held-out queries.
        vectors: of the held-out queries and what they are ranked among, by the towers before and
            by `retriever`; empty without held-out queries.
    """

    retriever: Retriever
    fit: FitResult
    share: float
    steps: list[Step]
    vectors: tuple[Vectors, ...] = ()


def go_on(
    retriever: Retriever,
    pairs: Interactions,
    material: Material,
    item_texts: Sequence[str],
    ranking: JudgedRanking | None,
    fit: FitConfig,
    settings: UpdateConfig,
    *,
    method: Method = "full",
    folder: Path,
    lexical: LexicalScorer | None = None,
    weight: float = 0.0,
    seed: int = 0,
    progress: Stages | None = None,
) -> Continuation:
    """Trains towers further, and goes as far towards the result as old queries allow.

    Of the towers before, after, and half way, those are taken that do best on the new held-out
    queries, among those that do not lose more than allowed on the old ones. If even half way loses
    more, that is taken where least is lost, for a gate to refuse.

    Args:
        retriever: the towers to go on from; left as they are.
        pairs: to be trained on; see `Material.pairs`.
        material: where they come from.
        item_texts: item text of every catalogue row.
        ranking: of the held-out queries; None where there are none, and the whole way is gone.
        fit: the recipe; its held-out share, shares to try and anchor are not used.
        settings: of the update.
        method: what is trained.
        folder: for checkpoints and TensorBoard's event files.
        lexical: the lexical score, for hard negatives from it.
        weight: of the lexical score where versions are compared.
        seed: decides the order and dropout.
        progress: told (stage, steps or places looked at, in all), of ``Training`` and
            ``Comparing versions``.

    Raises:
        InputError: as `training.fit.adapt`.
    """
    recipe = fit.model_copy(
        update={"held_out": 0.0, "interpolate": False, "anchor": settings.anchor}
    )
    result = adapt(
        retriever,
        pairs,
        item_texts,
        recipe,
        method=method,
        folder=folder,
        lexical=lexical,
        seed=seed,
        progress=stage(progress, "Training"),
    )
    if ranking is None:
        return Continuation(result.retriever, result, 1.0, [])
    steps, places = list[Step](), list[tuple[Retriever, Vectors]]()
    for share in _SHARES:
        towers = {0.0: retriever, 1.0: result.retriever}.get(share)
        towers = towers or interpolate(retriever, result.retriever, share)
        places.append((towers, ranking.encode(towers)))
        values = ranking.values(places[-1][1], weight)
        old, new = values[material.is_old], values[~material.is_old]
        steps.append(Step(share, _mean(old), _mean(new)))
        if progress is not None:
            progress("Comparing versions", len(steps), len(_SHARES))
    chosen = choose_step(steps, settings.max_drop)
    towers, vectors = places[chosen]
    return Continuation(towers, result, steps[chosen].share, steps, (places[0][1], vectors))


def choose_step(steps: Sequence[Step], max_drop: float) -> int:
    """The number of the step to take; see `go_on`.

    Args:
        steps: the first is where it began; they differ in `share`, which rises.
        max_drop: how much less on the old queries is allowed.
    """
    start = steps[0]
    ahead = range(1, len(steps))

    def drop(number: int) -> float:
        old = steps[number].old
        return 0.0 if old is None or start.old is None else start.old - old

    allowed = [number for number in ahead if drop(number) <= max_drop]
    if not allowed:
        return min(ahead, key=drop)
    if start.new is None:
        return allowed[-1]
    return max([0, *allowed], key=lambda number: steps[number].new or 0.0)


def held_out_rows(held_out: Interactions, item_texts: Sequence[str], seed: int) -> np.ndarray:
    """Catalogue rows that held-out queries are ranked among: 5,000, all judged ones with them."""
    return CandidatePool(held_out, item_texts, size=CANDIDATES, seed=seed).rows


def _mean(values: np.ndarray) -> float | None:
    """Mean over the queries that count; None where none does."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
