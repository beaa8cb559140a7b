"""The choice of method: what the shots themselves say about each, on queries it did not see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from towers.encoding import Progress, part_of
from towers.errors import InputError
from towers.interpolation import interpolate
from towers.retriever import Retriever
from training.config import FitConfig, Method
from training.fit import adapt
from training.folds import HeldOutFolds
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer

_SHARES = (0.5, 1.0)
# Before any evidence: what training was worth on validation queries of three shops, and how much
# that differed; docs/auto.md. The spread is that of one query's gain, known as from ten of them.
_PRIOR_GAIN = 0.01  # from 32 queries on; nothing at 8 or fewer
_PRIOR_SPREAD = 0.03
# Less is not worth the risk, unless the towers alone gain by more than this many standard errors.
LEAST_GAIN = 0.005
_CERTAIN = 2.0
# With fewer, hardly anything but the prior would decide on a warm-up, which takes minutes.
_WARM_UP_QUERIES = 16
_QUERY_SPREAD = 0.25
_QUERY_SPREAD_COUNT = 10


@dataclass(frozen=True)
class Trial:
    """How one candidate did on the queries held out of its training.

    Attributes:
        method: what was trained.
        share: of the way from the start to adapted.
        lexical_weight: the weight that its vectors go best with.
        ndcg: mean nDCG@10 of the fused score.
        gain: mean over queries of the difference from zero-shot.
        error: standard error of `gain`.
        expected: gain to be expected on other queries: `gain`, drawn to what is known of the method
            from elsewhere the more, the fewer queries there are.
        alone: the same of the towers without words.
        alone_error: standard error of the mean gain of the towers without words.
        warm_up: whether it started from towers that had been trained on the catalogue.
    """

    method: Method
    share: float
    lexical_weight: float
    ndcg: float
    gain: float = 0.0
    error: float = 0.0
    expected: float = 0.0
    alone: float = 0.0
    alone_error: float = 0.0
    warm_up: bool = False

    @property
    def is_untrained(self) -> bool:
        """Whether it is the towers as they came."""
        return self.method == "zero-shot" and not self.warm_up

    @property
    def is_worth_it(self) -> bool:
        """Whether more is to be expected than of zero-shot towers."""
        least = 0.0 if self.alone > _CERTAIN * self.alone_error else LEAST_GAIN
        return self.expected > least


@dataclass(frozen=True)
class Choice:
    """A method, and why.

    Attributes:
        method: the chosen one.
        share: of the way from the start to adapted.
        lexical_weight: of the lexical score in the final one.
        reason: one line for people.
        queries: number of held-out queries behind the choice.
        trials: all candidates, zero-shot first.
        warm_up: whether to start from towers that were trained on the catalogue.
    """

    method: Method
    share: float
    lexical_weight: float
    reason: str
    queries: int
    trials: list[Trial]
    warm_up: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)


def choose_method(
    retriever: Retriever,
    pairs: Interactions,
    item_texts: Sequence[str],
    config: FitConfig,
    *,
    folder: Path,
    judgements: Interactions | None = None,
    titles: Sequence[str] | None = None,
    lexical: LexicalScorer | None = None,
    weight: float | None = None,
    seed: int = 0,
    starts: Sequence[Retriever] | None = None,
    warm: Callable[[], Retriever] | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Chooses between zero-shot, linear, full and half of full, by held-out shot queries.

    Towers that were trained on the catalogue, and full from there, are candidates too where `warm`
    makes them and there are 16 queries or more (docs/auto.md has what they are worth).

    Each candidate is trained without some of the queries and ranks these among 5,000 items, words
    and towers together: all queries in turn, in two folds, or one quarter where there are 128
    queries or more. Words are weighed anew for each candidate. Where they do not count at all,
    `distilled` is a candidate too.

    A few queries are a poor witness. Their mean gain is combined with what is known from other
    catalogues, as two normal distributions are (a shrinkage estimate: Efron & Morris 1975), and the
    candidate with the highest expected gain is taken: zero-shot where none is above .005, or above
    0 where the towers alone gain by more than two standard errors.

    Args:
        retriever: the towers before training.
        pairs: positive pairs.
        item_texts: item text of every catalogue row.
        config: the recipe; its shares to try and its held-out share are not used.
        folder: for the checkpoints of the candidates.
        judgements: all judgements known of the queries of `pairs`; `pairs` if None.
        titles: see `training.fit.adapt`.
        lexical: the lexical score; None for the towers alone.
        weight: of the lexical score, if it is not to be chosen.
        seed: decides folds, random items and training.
        starts: for each fold the towers to start from there, which have not seen its queries;
            `retriever` if None.
        warm: makes towers that were trained on the catalogue alone, or raises `InputError`.
        progress: told (steps done, steps in all).

    Raises:
        InputError: as `training.fit.adapt`.
    """
    held_out = HeldOutFolds(
        pairs,
        item_texts,
        config,
        judgements=judgements,
        lexical=lexical,
        weight=weight,
        seed=seed,
    )
    folds = held_out.folds
    methods: list[Method] = ["linear", "full"]
    if lexical is not None and weight == 0.0:
        methods.append("distilled")
    config = config.model_copy(update={"held_out": 0.0, "interpolate": False})

    plans: list[tuple[bool, Sequence[Retriever], list[Method]]]
    if starts:
        starts = [held_out.knowing(start) for start in starts]
    else:
        retriever = held_out.knowing(retriever)
        starts = [retriever] * len(folds)
    plans = [(False, starts, methods)]
    if warm is not None and folds and len(pairs.queries) >= _WARM_UP_QUERIES:
        with suppress(InputError):  # the catalogue has too few words to learn from
            plans.append((True, [held_out.knowing(warm())] * len(folds), ["full"]))

    cosines: dict[tuple[bool, Method, float], list[np.ndarray]] = {(False, "zero-shot", 0.0): []}
    trainings, done = len(folds) * sum(len(methods) for *_, methods in plans), itertools.count()
    for number in range(len(folds)):
        train, known = held_out.training_part(number)
        for warm_up, towers, methods in plans:
            start = towers[number]
            cosine = held_out.cosine(start, number)
            cosines.setdefault((warm_up, "zero-shot", 0.0), []).append(cosine)
            for method in methods:
                result = adapt(
                    start,
                    train,
                    item_texts,
                    config,
                    method=method,
                    folder=folder / f"{'warm-' if warm_up else ''}{method}-{number}",
                    judgements=known,
                    titles=titles,
                    lexical=lexical,
                    seed=seed,
                    progress=part_of(progress, next(done), trainings),
                )
                for share in _SHARES if method == "full" and not warm_up else (1.0,):
                    adapted = result.retriever
                    if share < 1.0:
                        adapted = interpolate(start, adapted, share)
                    cosine = held_out.cosine(adapted, number)
                    cosines.setdefault((warm_up, method, share), []).append(cosine)

    if not folds:
        cosines[False, "zero-shot", 0.0].append(held_out.cosine(retriever, None))
    trials = list[Trial]()
    untrained = held_out.ndcg(cosines[False, "zero-shot", 0.0])
    for (warm_up, method, share), parts in cosines.items():
        chosen, ndcg, alone = held_out.ndcg(parts)
        trial = Trial(method, share, chosen, float(ndcg.mean()), warm_up=warm_up)
        if not trial.is_untrained:
            trial = _compared(trial, ndcg - untrained[1], alone - untrained[2])
        trials.append(trial)
    worth = [trial for trial in trials if trial.is_worth_it]
    best = max(worth, key=lambda trial: (trial.expected, trial.alone), default=trials[0])
    return Choice(
        best.method,
        best.share,
        best.lexical_weight,
        _reason(best, trials, len(held_out.queries)),
        len(held_out.queries) if folds else 0,
        trials,
        best.warm_up,
    )


def expected_gain(differences: np.ndarray, prior_gain: float | None = None) -> tuple[float, float]:
    """The gain to be expected from some queries' differences, and the standard error of their mean.

    The differences are taken for a sample of a normal distribution. Its mean has a normal prior,
    with mean 0 at 8 queries, rising with their logarithm to .01 at 32, and standard deviation .03.
    Its spread is known before to be .25, as from ten queries.

    Args:
        differences: ``[queries]``, at least one.
        prior_gain: the prior's mean, in place of the one above.
    """
    n = len(differences)
    mean = float(differences.mean())
    scatter = float(((differences - mean) ** 2).sum())
    prior = _QUERY_SPREAD_COUNT * _QUERY_SPREAD**2
    variance = (scatter + prior) / (n - 1 + _QUERY_SPREAD_COUNT)
    evidence, belief = n / variance, 1 / _PRIOR_SPREAD**2
    before = prior_gain
    if before is None:
        before = _PRIOR_GAIN * min(max(math.log(n / 8) / math.log(4), 0.0), 1.0)
    expected = (evidence * mean + belief * before) / (evidence + belief)
    return expected, math.sqrt(variance / n)


def _compared(trial: Trial, differences: np.ndarray, alone: np.ndarray) -> Trial:
    """A trial with its gains: `differences` from zero-shot with words, `alone` without them."""
    expected, error = expected_gain(differences)
    expected_alone, alone_error = expected_gain(alone)
    return replace(
        trial,
        gain=float(differences.mean()),
        error=error,
        expected=expected,
        alone=expected_alone,
        alone_error=alone_error,
    )


def _reason(best: Trial, trials: list[Trial], queries: int) -> str:
    if len(trials) == 1:
        return "too few queries to try anything on: four or more are needed, of different items"
    by_name = "; ".join(
        f"{_name(trial)} {trial.ndcg:.3f}"
        + ("" if trial.is_untrained else f" ({trial.gain:+.3f} ± {trial.error:.3f})")
        for trial in trials
    )
    return f"nDCG@10 on {queries} queries held out of training: {by_name}"


def _name(trial: Trial) -> str:
    if trial.warm_up:
        return "warm-up" if trial.method == "zero-shot" else f"{trial.method} after warm-up"
    return trial.method if trial.share in (0.0, 1.0) else f"{trial.method} x {trial.share:g}"
