"""Going on with new topics: what is learned, and what is forgotten.

The queries of homedepot fall into 16 topics by k-means over zero-shot vectors. Each seed calls
half of the topics old and half new. Towers are trained on pairs of the old ones, and go on with
pairs of the new ones. Validation queries of both say what each way of going on is worth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from reporting import HOMEDEPOT_TEXT, arguments, homedepot, judgements, report
from sklearn.cluster import KMeans

from towers import Retriever, TextSettings
from towers.cli.lexical import lexical_scorer
from training.catalog import Catalog
from training.config import FitConfig, UpdateConfig
from training.continuation import Material, go_on
from training.fit import adapt
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.judged_ranking import JudgedRanking
from training.shots import draw_shots

LEXICAL_WEIGHT = 0.5
_TOPICS = 16
_TRAINING_QUERIES = 1_000

UPDATES = {
    "update": UpdateConfig(),
    "update, no anchor": UpdateConfig(anchor=0.0),
    "update, no replay": UpdateConfig(replay=0.0),
    "update, a quarter as many old pairs": UpdateConfig(replay=0.25),
    "update, neither": UpdateConfig(anchor=0.0, replay=0.0),
}
"""By name."""


@dataclass(frozen=True)
class Case:
    """One draw of topics and pairs.

    Attributes:
        texts: item text of each row of the pool.
        old: pairs trained on first.
        new: pairs that come in later.
        judged: an evaluation of the old topics, for updates to be compared on.
        asked: validation queries of both.
        is_old: bool ``[queries of asked]``.
        seed: decides all of it.
    """

    texts: list[str]
    old: Interactions
    new: Interactions
    judged: Interactions
    asked: JudgedRanking
    is_old: np.ndarray
    seed: int

    def trained(self, start: Retriever, pairs: Interactions, folder: Path) -> Retriever:
        """Towers trained on pairs as `towers train --method full` does."""
        config = FitConfig(held_out=0.0)
        return adapt(start, pairs, self.texts, config, folder=folder, seed=self.seed).retriever

    def updated(self, start: Retriever, settings: UpdateConfig, folder: Path) -> Retriever:
        """Towers that go on with the new pairs as `towers update` does."""
        fit = FitConfig()
        material = Material.of(
            self.old,
            self.judged,
            self.new,
            share=settings.held_out,
            least=fit.min_held_out,
            seed=self.seed,
        )
        pairs, _ = material.pairs(settings.replay, seed=self.seed)
        pool = CandidatePool(material.held_out, self.texts, seed=self.seed)
        continued = go_on(
            start,
            pairs,
            material,
            self.texts,
            JudgedRanking(material.held_out, self.texts, rows=pool.rows),
            fit,
            settings,
            folder=folder,
            seed=self.seed,
        )
        print(continued.share, continued.steps, file=sys.stderr, flush=True)
        return continued.retriever


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--pairs", type=int, default=128, help="of each half")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--queries", type=int, default=150, help="of each half")
    parser.add_argument("--judged", type=int, default=60, help="old queries of the evaluation")
    parser.add_argument("--pool", type=int, default=2_500)
    parser.add_argument("--updates", nargs="*", choices=list(UPDATES), default=["update"])
    options = parser.parse_args()
    whole, _ = homedepot(options.data)
    zero_shot = Retriever.from_preset(text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))
    rng = np.random.default_rng(0)
    train = judgements(options.data, "homedepot", "train", whole)
    valid = judgements(options.data, "homedepot", "valid", whole)
    train = train.select_queries(rng.permutation(len(train.queries))[:_TRAINING_QUERIES])
    topics = KMeans(_TOPICS, n_init=1, random_state=0).fit(zero_shot.encode_queries(train.queries))
    topic_of = [topics.labels_, topics.predict(zero_shot.encode_queries(valid.queries))]

    results: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        case = _case(whole, [train, valid], topic_of, options, seed)
        for name, retriever, seconds in _ways(zero_shot, case, options.updates):
            found = {"training, s": seconds}
            vectors = case.asked.encode(retriever)
            for shown, weight in (("", 0.0), (", with words", LEXICAL_WEIGHT)):
                values = case.asked.values(vectors, weight)
                for half, chosen in (("old", case.is_old), ("new", ~case.is_old)):
                    found[half + shown] = float(np.nanmean(values[chosen]))
            results.setdefault(name, []).append(found)
            print(name, seed, found, file=sys.stderr, flush=True)
            report(
                "update",
                f"homedepot valid, nDCG@10 among {len(case.texts):,} items",
                [{"": name, **_shown(found)} for name, found in results.items()],
                seeds=options.seeds,
                pairs=options.pairs,
                queries=options.queries,
                lexical_weight=LEXICAL_WEIGHT,
            )


def _ways(
    zero_shot: Retriever, case: Case, updates: list[str]
) -> Iterator[tuple[str, Retriever, float]]:
    """Ways of going on: name, towers, seconds."""
    yield "zero-shot", zero_shot, 0.0
    first, seconds = _timed(partial(case.trained, zero_shot, case.old))
    yield "(a) trained on the old pairs", first, seconds
    yield "(b) and on the new ones", *_timed(partial(case.trained, first, case.new))
    for name in updates:
        yield f"(c) {name}", *_timed(partial(case.updated, first, UPDATES[name]))
    both = case.old.followed_by(case.new)
    yield "(d) anew on all pairs", *_timed(partial(case.trained, zero_shot, both))


def _case(
    whole: Catalog,
    parts: list[Interactions],
    topic_of: list[np.ndarray],
    options: argparse.Namespace,
    seed: int,
) -> Case:
    rng = np.random.default_rng([seed, 5])
    old_topics = rng.permutation(_TOPICS)[: _TOPICS // 2]

    def half(part: int, old: bool) -> Interactions:
        chosen = np.isin(topic_of[part], old_topics) == old
        return parts[part].select_queries(chosen)

    def some(queries: Interactions, count: int) -> Interactions:
        return queries.select_queries(rng.permutation(len(queries.queries))[:count])

    judged = some(half(0, True), options.judged)
    old = draw_shots(half(0, True).without_queries(judged.queries), options.pairs, seed=seed)
    new = draw_shots(half(0, False), options.pairs, seed=seed)
    asked_old, asked_new = (some(half(1, is_old), options.queries) for is_old in (True, False))
    asked = asked_old.followed_by(asked_new)
    needed = np.unique(np.concatenate([part.item_row for part in (old, new, judged, asked)]))
    others = rng.permutation(np.setdiff1d(np.arange(len(whole)), needed))
    rows = np.sort(np.concatenate([needed, others[: max(0, options.pool - len(needed))]]))
    catalog = Catalog(whole.table.take(rows), whole.path, whole.sha256)
    texts = [title or "" for title in catalog.column("title")]

    def pooled(part: Interactions) -> Interactions:
        item_row = np.searchsorted(rows, part.item_row).astype(np.int32)
        return replace(part, item_row=item_row, catalog=catalog)

    lexical = lexical_scorer(HOMEDEPOT_TEXT, catalog)
    return Case(
        texts,
        pooled(old),
        pooled(new),
        pooled(judged),
        JudgedRanking(pooled(asked), texts, lexical=lexical),
        np.array([query in asked_old.queries for query in asked.queries], bool),
        seed,
    )


def _timed(train: Callable[[Path], Retriever]) -> tuple[Retriever, float]:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        return train(Path(folder)), time.perf_counter() - start


def _shown(found: list[dict[str, float]]) -> dict[str, str]:
    shown = {}
    for name in found[0]:
        values = [one[name] for one in found]
        digits = 0 if name.endswith(", s") else 4
        each = ", ".join(f"{value:.{digits}f}" for value in values)
        shown[name] = f"{np.mean(values):.{digits}f} ({each})"
    return shown


if __name__ == "__main__":
    main()
