"""Recommendations from histories: office (users' last items), online_retail (the last 30 days).

Tables: all methods on office; on online_retail by what a user took before; on MovieLens, of which
nobody had chosen anything (its `ml-latest-small` goes into the data folder); items that nothing
trained on knows; users known by 0, 1, 3 and 5 items; less of what is popular anyway; groups of
users. Settings of the baselines are chosen on users, or on a month, held out of training.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from reporting import arguments, report

from towers import ItemTemplate, Retriever
from towers.encoding import fast_dtype
from training.catalog import Catalog
from training.contexts import Contexts, timestamp_columns
from training.histories import Histories
from training.recommendation.baselines import (
    Blend,
    Ease,
    Fallback,
    ItemNeighbours,
    Popularity,
    RecentText,
)
from training.recommendation.choices import Choices
from training.recommendation.debiasing import Reranked, trade_off
from training.recommendation.evaluation import (
    Estimate,
    RecommendationEvaluation,
    evaluate_recommendations,
    recommend,
)
from training.recommendation.fit import RecommenderSettings, fit_recommender
from training.recommendation.measures import ndcg, recall
from training.recommendation.popularity import item_counts
from training.recommendation.scorer import Scorer
from training.recommendation.splits import (
    Cases,
    cold_items,
    last_days,
    leave_last_out,
    temporal_split,
    without_items,
)
from training.statistics import compare
from training.train import render_items
from training.user_columns import UserColumns

SHRINKAGES = (0.0, 5.0, 10.0, 20.0, 50.0, 100.0)
L2 = (10.0, 20.0, 50.0, 200.0, 500.0)
DECAYS = (0.5, 0.7, 0.9)
WEIGHTS = (0.1, 0.2, 0.3, 0.5)
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, text only": {"parts": ("text",)},
    "ours, co-occurrence only": {"parts": ("co_occurrence",)},
    "ours, text and co-occurrence": {"parts": ("text", "co_occurrence")},
    "ours, without order": {"order": False},
}
COLD_SHARE = 0.2
BEHAVIOURS = (0, 1, 3, 5)
STRENGTHS = (-0.5, -0.25, 0.0, 0.1, 0.25, 0.5, 1.0)
CONTEXTS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "ours, country": ("country",),
    "ours, country, month, weekday and hour": ("country", "month", "weekday", "hour"),
}
BANDS = {"0": (0, 0), "1-5": (1, 5), "0-5": (0, 5), "6-20": (6, 20), "over 20": (21, sys.maxsize)}

METHODS = ("popularity", "item-kNN", "EASE", "text, the latest most", "text + kNN", *OURS)

Fit = Callable[[Histories, int], Scorer]
"""Makes a scorer from training histories and a seed."""


@dataclass(frozen=True)
class Task:
    """One data set, split.

    Attributes:
        name: of the data set.
        train: to be fitted on.
        cases: the test.
        validation: a part of `train` to be fitted on, and its cases, to choose settings.
        texts: of the items, of all columns that the usual template has.
        vectors: of the items, by the columns their text is from; the last ones are of `texts`.
        k: length of the lists.
    """

    name: str
    train: Histories
    cases: Cases
    validation: tuple[Histories, Cases]
    texts: list[str]
    vectors: dict[str, np.ndarray]
    k: int

    def evaluate(self, scorer: Scorer, **groups: list[str | None]) -> RecommendationEvaluation:
        """Evaluates on the test, with groups of its users by any columns."""
        train = self.train.sequences()
        return evaluate_recommendations(
            scorer,
            self.cases,
            item_counts(train, len(self.train.catalog)),
            trained_users=sum(len(items) > 0 for items in train),
            cutoffs=(self.k,),
            items=self.vectors["title"],
            groups=groups,
        )


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="of what is drawn and trained")
    parser.add_argument("--vectors", type=Path, help="folder to keep vectors of items in")
    parser.add_argument("--only", choices=list(TABLES), nargs="+", default=list(TABLES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="rows; all if absent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.vectors or Path(temporary)
        tasks = {
            make: make(options.data, folder) for make in {TABLES[name][1] for name in options.only}
        }
    compared = {TABLES[name][1] for name in options.only if not name.startswith("contexts")}
    fits = {
        make: methods(task, options.methods) if make in compared else {}
        for make, task in tasks.items()
    }
    for name in options.only:
        title, make, rows = TABLES[name]
        report(
            f"recommendation-{name}",
            title,
            [_noted(row) for row in rows(tasks[make], fits[make], options.seeds)],
            seeds=options.seeds,
        )


def office(data: Path, vectors: Path) -> Task:
    """Amazon office supplies, split by user: the last item of each test user is to be found."""
    catalog = Catalog.read(data / "office" / "catalog.jsonl.gz")
    train = Histories.read(data / "office" / "train_sequences.jsonl.gz", catalog)
    test = Histories.read(data / "office" / "test_sequences.jsonl.gz", catalog)
    held_out = np.random.default_rng(0).random(len(train)) < 0.2
    validation = train.select_users(~held_out), leave_last_out(train.select_users(held_out))
    titles, texts = _texts(catalog, ["title"]), _texts(catalog, catalog.table.column_names)
    known = {
        "title": _vectors(vectors / "office-titles.npy", titles),
        "title, brand, description": _vectors(vectors / "office-texts.npy", texts),
    }
    return Task("office", train, leave_last_out(test), validation, texts, known, k=10)


def online_retail(data: Path, vectors: Path) -> Task:
    """Purchases of an online shop, split by time: what users took first in the last 30 days."""
    catalog = Catalog.read(data / "online_retail" / "catalog.parquet")
    everything = Histories.read(data / "online_retail" / "purchases.parquet", catalog)
    past, cases = temporal_split(everything, last_days(everything, 30))
    earlier, month = temporal_split(past, last_days(past, 30))
    texts = _texts(catalog, ["title"])
    known = {"title": _vectors(vectors / "online_retail-titles.npy", texts)}
    validation = earlier, month.with_new_targets()
    return Task("online_retail", past, cases.with_new_targets(), validation, texts, known, k=20)


def movielens(data: Path, vectors: Path) -> Task:
    """Films that users rated 4 or better: the last one of a quarter of the users is to be found.

    Harper & Konstan 2015, "The MovieLens Datasets"; `ml-latest-small` of GroupLens.
    """
    source, folder = data / "ml-latest-small", vectors / "movielens"
    folder.mkdir(parents=True, exist_ok=True)
    films = pacsv.read_csv(source / "movies.csv")
    films = films.rename_columns(["item_id", "title", "genres"])
    pq.write_table(films, folder / "catalog.parquet")
    catalog = Catalog.read(folder / "catalog.parquet")
    ratings = pacsv.read_csv(source / "ratings.csv")
    ratings = ratings.rename_columns(["user_id", "item_id", "rating", "timestamp"])
    liked = ratings.filter(pc.greater_equal(ratings["rating"], 4)).drop_columns("rating")
    pq.write_table(liked, folder / "histories.parquet")
    users = Histories.read(folder / "histories.parquet", catalog)
    part = np.random.default_rng(0).random(len(users))
    train, held_out = users.select_users(part < 0.75), part[part < 0.75] < 0.15
    validation = train.select_users(~held_out), leave_last_out(train.select_users(held_out))
    texts = render_items(ItemTemplate("{title}[. {genres}]"), catalog)
    known = {"title": _vectors(vectors / "movielens-texts.npy", texts)}
    cases = leave_last_out(users.select_users(part >= 0.75))
    return Task("movielens", train, cases, validation, texts, known, k=10)


def _texts(catalog: Catalog, columns: Sequence[str]) -> list[str]:
    return render_items(ItemTemplate.for_columns(columns), catalog)


def _vectors(path: Path, texts: list[str]) -> np.ndarray:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, Retriever.from_preset().encode_items(texts, dtype=fast_dtype()))
    return np.load(path)


def methods(task: Task, wanted: Sequence[str] | None = None) -> dict[str, Fit]:
    """The methods, all if None; the baselines with the settings that are best on validation."""
    train, cases = task.validation
    histories, n_items = train.sequences(), len(train.catalog)

    def best(name: str, scorers: Mapping[Any, Callable[[], Scorer]]) -> Any:
        scores = {}
        for setting, make in scorers.items():
            rows = recommend(make(), cases.histories, task.k)
            scores[setting] = ndcg(rows, cases.targets, task.k).mean()
        setting = max(scores, key=lambda setting: scores[setting])
        shown = {"task": task.name, "method": name, "setting": setting}
        _noted(shown | {"nDCG on validation": scores[setting]})
        return setting

    shrinkage = best(
        "item-kNN",
        {one: partial(ItemNeighbours, histories, n_items, shrinkage=one) for one in SHRINKAGES},
    )
    # Inverting a matrix for each is most of the time that all the others take together.
    strengths = L2 if wanted is None or "EASE" in wanted else L2[:1]
    l2 = best("EASE", {l2: partial(Ease, histories, n_items, l2=l2) for l2 in strengths})
    text, decay = best(
        "text",
        {
            (name, decay): partial(RecentText, items, decay=decay)
            for name, items in task.vectors.items()
            for decay in DECAYS
        },
    )
    items = task.vectors[text]
    nearest = ItemNeighbours(histories, n_items, shrinkage=shrinkage)
    blend_decay, weight = best(
        "text + kNN",
        {
            (d, w): partial(Blend, (RecentText(items, decay=d), 1 - w), (nearest, w))
            for d in DECAYS
            for w in WEIGHTS
        },
    )

    def ours(settings: Mapping[str, Any]) -> Fit:
        ids, texts = train.catalog.item_ids.tolist(), task.texts
        embeddings = list(task.vectors.values())[-1]

        def fit(train: Histories, seed: int) -> Scorer:
            fitted = fit_recommender(
                train.sequences(),
                ids,
                texts,
                embeddings,
                RecommenderSettings(**settings),
                times=train.times(),
                seed=seed,
            )
            return fitted.recommender.over(ids, texts, embeddings)

        return fit

    def baseline(make: Callable[[Sequence[np.ndarray]], Scorer]) -> Fit:
        def fit(train: Histories, seed: int) -> Scorer:
            histories = train.sequences()
            return Fallback(make(histories), Popularity(histories, n_items))

        return fit

    def neighbour(histories: Sequence[np.ndarray]) -> Scorer:
        return ItemNeighbours(histories, n_items, shrinkage=shrinkage)

    found: dict[str, Fit] = {
        "popularity": baseline(lambda histories: Popularity(histories, n_items)),
        "item-kNN": baseline(neighbour),
        "EASE": baseline(lambda histories: Ease(histories, n_items, l2=l2)),
        "text, the latest most": baseline(lambda _: RecentText(items, decay=decay)),
        "text + kNN": baseline(
            lambda histories: Blend(
                (RecentText(items, decay=blend_decay), 1 - weight), (neighbour(histories), weight)
            )
        ),
        **{name: ours(settings) for name, settings in OURS.items()},
    }
    return {
        name: _once(fit, task.train)
        for name, fit in found.items()
        if wanted is None or name in wanted
    }


def _once(fit: Fit, train: Histories) -> Fit:
    """Fits to a task's own training histories once for all tables."""
    known: dict[int, Scorer] = {}

    def fitted(histories: Histories, seed: int) -> Scorer:
        if histories is not train:
            return fit(histories, seed)
        if seed not in known:
            known[seed] = fit(histories, seed)
        return known[seed]

    return fitted


def _seeds(method: str, seeds: int) -> range:
    """A baseline is the same with every seed."""
    return range(seeds if method.startswith("ours") else 1)


def _all_methods(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    for method, fit in fits.items():
        found = [task.evaluate(fit(task.train, seed)) for seed in _seeds(method, seeds)]
        row = {"method": method}
        for name in (f"R@{task.k}", f"nDCG@{task.k}"):
            row[name] = _mean([one.per_user[name] for one in found])
        row["by seed"] = ", ".join(f"{one.per_user[f'R@{task.k}'].mean():.4f}" for one in found)
        for name in (f"R@{task.k} tail", f"Popularity@{task.k}", f"Diversity@{task.k}"):
            row[name] = _mean([one.per_user[name] for one in found], interval=False)
        for name in (f"Coverage@{task.k}", f"Gini@{task.k}"):
            row[name] = f"{np.mean([one.catalog[name] for one in found]):.3f}"
        yield row


def _by_history(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """Users by the orders, and by the items, that are known of them."""
    past = dict(zip(task.train.users, range(len(task.train)), strict=True))
    times = task.train.times()
    assert times is not None
    orders = np.array([len(np.unique(times[past[user]])) for user in task.cases.users])
    values: dict[str, np.ndarray] = {}
    for method, fit in fits.items():
        measured = [
            task.evaluate(fit(task.train, seed)).per_user[f"R@{task.k}"]
            for seed in _seeds(method, seeds)
        ]
        values[method] = np.mean(measured, axis=0)
        _noted({"method": method, "R": values[method].mean()})
    for unit, numbers in (("orders", orders), ("items", task.cases.lengths)):
        for band, (least, most) in BANDS.items():
            chosen = (numbers >= least) & (numbers <= most)
            for method, found in values.items():
                row = {"known": f"{band} {unit}", "users": int(chosen.sum()), "method": method}
                row[f"R@{task.k}"] = _mean([found[chosen]])
                for other in ("item-kNN", "EASE"):
                    against = compare(found[chosen], values[other][chosen])
                    row[f"minus {other}"] = f"{against.difference:+.4f} (p {against.p_t:.2g})"
                yield row


def _cold_items(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """Targets among a fifth of the items, of which nothing trained on has ever seen one."""
    for method, fit in fits.items():
        found, ranked = [], []
        for seed in range(seeds):
            cold = cold_items(len(task.train.catalog), COLD_SHARE, seed=seed)
            scorer = fit(without_items(task.train, cold), seed)
            cases = task.cases.with_targets_among(cold)
            rows = recommend(scorer, cases.histories, task.k)
            found.append(recall(rows, cases.targets, task.k))
            ranked.append(ndcg(rows, cases.targets, task.k))
        yield {
            "method": method,
            "users": sum(map(len, found)),
            f"R@{task.k}": _mean([np.concatenate(found)]),
            f"nDCG@{task.k}": _mean([np.concatenate(ranked)]),
        }


def _cold_users(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """The same users known by their latest items alone."""
    cases = task.cases.select(task.cases.lengths >= max(BEHAVIOURS))
    for method, fit in fits.items():
        row = {"method": method, "users": len(cases)}
        scorers = [fit(task.train, seed) for seed in _seeds(method, seeds)]
        for known in BEHAVIOURS:
            few = cases.latest(known)
            rows = [recommend(scorer, few.histories, task.k) for scorer in scorers]
            row[f"R@{task.k}, {known} items"] = _mean(
                [recall(one, few.targets, task.k) for one in rows]
            )
        yield row


def _debiasing(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """The best baseline and ours, re-ranked by the popularity of items."""
    train = task.train.sequences()
    counts = item_counts(train, len(task.train.catalog))
    for method in ("item-kNN", "text + kNN", "ours"):
        if method in fits:
            scorer = fits[method](task.train, 0)
            curve = trade_off(
                partial(Reranked, scorer, counts),
                STRENGTHS,
                task.cases,
                counts,
                trained_users=len(train),
                k=task.k,
                items=task.vectors["title"],
            )
            yield from ({"method": method} | point for point in curve)


def _contexts(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """Where and when: the context is that of the first event of a user in the test period."""
    yield from _in_context(task, task.train, task.cases, seeds)


def _contexts_before(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """The same a month earlier, to choose by."""
    yield from _in_context(task, *task.validation, seeds)


def _in_context(task: Task, train: Histories, cases: Cases, seeds: int) -> Iterator[dict[str, Any]]:
    names = sorted(set().union(*CONTEXTS.values()))
    further = [name for name in names if name not in timestamp_columns(names)]
    everything = Histories.read(train.path, train.catalog, columns=further)
    number = {user: row for row, user in enumerate(everything.users)}
    asked = Contexts.of(everything, names=names)
    lengths = dict(zip(train.users, np.diff(train.offsets).tolist(), strict=True))
    moments = [asked.at(number[user], lengths[user]) for user in cases.users]
    known = np.concatenate(
        [np.arange(length) < lengths[user] for user, length in _lengths(everything)]
    )
    of_train = Contexts.of(everything.select_events(known), names=names)
    texts, embeddings = task.texts, list(task.vectors.values())[-1]
    ids = train.catalog.item_ids.tolist()
    kinds = {
        "all": (cases, np.ones(len(cases), bool)),
        "new": (cases, cases.lengths == 0),
        "all, their histories hidden": (cases.latest(0), np.ones(len(cases), bool)),
    }
    base: dict[tuple[str, int], np.ndarray] = {}
    choices: dict[int, Choices] = {}  # the same whatever the context, and the most of the work
    for method, columns in CONTEXTS.items():
        values: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
        gains: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
        for seed in range(seeds):
            fitted = fit_recommender(
                train.sequences(),
                ids,
                texts,
                embeddings,
                RecommenderSettings(choices=choices.get(seed)),
                times=train.times(),
                contexts={name: of_train.columns[name] for name in columns},
                seed=seed,
            )
            _noted({"method": method, "seed": seed} | fitted.as_dict())
            choices[seed] = fitted.choices
            shop = fitted.recommender.over(ids, texts, embeddings)
            for kind, (asking, chosen) in kinds.items():
                rows = recommend(
                    shop, asking.histories, task.k, known={"contexts": moments} if columns else None
                )
                values[kind].append(recall(rows, asking.targets, task.k)[chosen])
                gains[kind].append(ndcg(rows, asking.targets, task.k)[chosen])
                base.setdefault((kind, seed), values[kind][-1])
        for kind in kinds:
            found = np.mean(values[kind], axis=0)
            against = compare(found, np.mean([base[kind, seed] for seed in range(seeds)], axis=0))
            yield {
                "method": method,
                "users": f"{kind} ({len(found)})",
                f"R@{task.k}": _mean(values[kind]),
                f"nDCG@{task.k}": _mean(gains[kind]),
                "minus ours": f"{against.difference:+.4f} (p {against.p_t:.2g})",
            }


def _lengths(histories: Histories) -> Iterator[tuple[str, int]]:
    return zip(histories.users, np.diff(histories.offsets).tolist(), strict=True)


def _deciles(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """Recall of targets by their popularity in training."""
    for method, fit in fits.items():
        found = task.evaluate(fit(task.train, 0))
        for place in ("tail", *(f"decile {d}" for d in range(1, 11))):
            if estimate := found.estimate(f"R@{task.k} {place}"):
                yield {
                    "method": method,
                    "targets": place,
                    "users": estimate.users,
                    f"R@{task.k}": _shown(estimate),
                }


def _groups(task: Task, fits: Mapping[str, Fit], seeds: int) -> Iterator[dict[str, Any]]:
    """Recall by the country of users, of groups of at least ten."""
    country = UserColumns.read(task.train.path, ["country"]).of("country", task.cases.users)
    for method, fit in fits.items():
        found = task.evaluate(fit(task.train, 0), country=country)
        for group, estimate in found.by_group("country", f"R@{task.k}").items():
            if estimate.users >= 10:
                facts = {"method": method, "country": group, "users": estimate.users}
                yield facts | {f"R@{task.k}": _shown(estimate)}


def _mean(values: Sequence[np.ndarray], *, interval: bool = True) -> str:
    """The mean over seeds and users, with the interval over users."""
    estimate = Estimate.of(np.mean(values, axis=0))
    if estimate is None:
        return ""
    return _shown(estimate) if interval else f"{estimate.mean:.3f}"


def _shown(estimate: Estimate) -> str:
    low, high = estimate.interval_95
    return f"{estimate.mean:.4f} [{low:.3f}, {high:.3f}]"


def _noted(row: dict[str, Any]) -> dict[str, Any]:
    print(row, file=sys.stderr, flush=True)
    return row


Rows = Callable[[Task, Mapping[str, Fit], int], Iterator[dict[str, Any]]]
TABLES: dict[str, tuple[str, Callable[[Path, Path], Task], Rows]] = {
    "office": ("office: the last item of 941 test users", office, _all_methods),
    "deciles": ("office: by the popularity of the target in training", office, _deciles),
    "cold-items": ("office: targets that nothing trained on knows", office, _cold_items),
    "cold-users": ("office: users known by few items", office, _cold_users),
    "debiasing": ("office: re-ranked by popularity", office, _debiasing),
    "online_retail": ("online_retail: new items of the last 30 days", online_retail, _all_methods),
    "countries": ("online_retail: by the country of users", online_retail, _groups),
    "movielens": ("MovieLens: the last film of a quarter of the users", movielens, _all_methods),
    "contexts": ("online_retail: where and when", online_retail, _contexts),
    "contexts-before": (
        "online_retail: where and when, a month earlier",
        online_retail,
        _contexts_before,
    ),
    "online_retail-users": (
        "online_retail: by what is known of a user",
        online_retail,
        _by_history,
    ),
}


if __name__ == "__main__":
    main()
