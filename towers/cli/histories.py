"""Histories on the command line: what `train`, `evaluate` and `export` do with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from towers.cli.output import say
from towers.errors import InputError

if TYPE_CHECKING:
    from towers.recommender import CatalogRecommender, Recommender
    from towers.retriever import Retriever
    from training.catalog import Catalog
    from training.contexts import Contexts
    from training.histories import Histories
    from training.reviews import Reviews

FOLDER = "recommender"
_CUTOFF = 10
_GROUPS_SHOWN = 5


def histories_option(help_text: str) -> Callable[..., Any]:
    """The option --histories."""
    return click.option("--histories", type=click.Path(), help=help_text)


def discount_option() -> Callable[..., Any]:
    """The option --popularity-discount."""
    return click.option(
        "--popularity-discount",
        type=click.FloatRange(min=0.0),
        default=0.0,
        show_default=True,
        help="Recommend less of what is popular anyway: this many times the logarithm of how often "
        "an item was taken comes off its score; docs/recommendations.md.",
    )


def contexts_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --users, --user-columns and --context."""
    for option in (
        click.option(
            "--context",
            callback=_names,
            help="Columns of the histories that say where and when, as in device,season; season, "
            "month, weekday and hour are told by the timestamp; docs/recommendations.md.",
        ),
        click.option(
            "--user-columns", callback=_names, help="Columns of --users, as in age_band,level; all."
        ),
        click.option(
            "--users", type=click.Path(), help="What is known of users; with --histories."
        ),
    ):
        command = option(command)
    return command


def _names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",")) if value is not None else ()
    if value is not None and (not all(names) or len(set(names)) < len(names)):
        raise click.BadParameter("expected names of columns, each once, with commas between")
    return names


class ContextOptions(NamedTuple):
    """What `contexts_options` brings.

    Attributes:
        users: file of users; None without.
        user_columns: columns of it; all if there are none.
        context: columns of events and their times.
    """

    users: str | None
    user_columns: tuple[str, ...]
    context: tuple[str, ...]

    def check(self, histories: str | None) -> None:
        """Raises a usage error where an option lacks the one that it belongs to."""
        if (self.users or self.context) and histories is None:
            raise click.UsageError("--users and --context need --histories")
        if self.user_columns and self.users is None:
            raise click.UsageError("--user-columns needs --users")

    @property
    def of_file(self) -> list[str]:
        """Columns to read with the histories."""
        from training.contexts import timestamp_columns

        told = timestamp_columns(self.context)
        return [name for name in self.context if name not in told]

    def read(self, histories: Histories) -> Contexts | None:
        """Joins users and events, and says what is in them; None where neither is given."""
        if self.users is None and not self.context:
            return None
        from training.contexts import Contexts
        from training.user_columns import UserColumns

        users = None
        if self.users is not None:
            users = UserColumns.read(self.users, self.user_columns or None)
        contexts = Contexts.of(histories, users, self.context)
        say(f"context: {', '.join(contexts.columns)}")
        return contexts


def read_histories(
    path: str, products: Catalog, strict: bool, columns: Sequence[str] = ()
) -> Histories:
    """Reads histories, with further columns of their events, and says what is in them."""
    from training.histories import Histories

    histories = Histories.read(path, products, strict=strict, columns=columns)
    say(f"{len(histories):,} users, {len(histories.item_row):,} items in their histories")
    if histories.unknown_items.rows:
        say(f"left out: {histories.unknown_items}")
    return histories


def reviews_option() -> Callable[..., Any]:
    """The option --reviews."""
    return click.option(
        "--reviews",
        type=click.Path(),
        help="What users wrote of items; with --histories; docs/recommendations.md.",
    )


def read_reviews(path: str, products: Catalog, histories: Histories, strict: bool) -> Reviews:
    """Reads reviews and says what is in them."""
    from training.reviews import Reviews

    reviews = Reviews.read(path, products, strict=strict)
    known = set(histories.users)
    of_users = sum(user in known for user in reviews.users)
    say(f"{len(reviews):,} reviews, {of_users:,} by users with a history")
    if reviews.unknown_items.rows:
        say(f"reviews of items that the catalogue lacks: {reviews.unknown_items.rows:,}")
    if reviews.without_text:
        say(f"left out: {reviews.without_text:,} reviews without a text")
    return reviews


def fit_and_save(
    retriever: Retriever,
    histories: Histories,
    reviews: Reviews | None,
    contexts: Contexts | None,
    output: Path,
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Fits a recommender and writes it into the run's folder; returns what was measured."""
    from towers.cli.item_vectors import item_vectors
    from towers.encoding import fast_dtype
    from training.recommendation.fit import fit_recommender
    from training.recommendation.review_part import UserReviews
    from training.train import render_items

    products = histories.catalog
    texts = render_items(retriever.template, products)
    fit = fit_recommender(
        histories.sequences(),
        products.item_ids.tolist(),
        texts,
        item_vectors(output, retriever, texts, "auto"),
        times=histories.times(),
        reviews=None if reviews is None else UserReviews.of(reviews, histories),
        encode_reviews=partial(retriever.encode_reviews, dtype=fast_dtype()),
        contexts=None if contexts is None else contexts.columns,
        encoder_fingerprint=retriever.fingerprint(),
        seed=seed,
        progress=progress,
    )
    fit.recommender.save(output / FOLDER)
    files = {"histories": histories, "reviews": reviews, "contexts": contexts}
    data = {
        name: {"path": file.path, "sha256": file.sha256}
        for name, file in files.items()
        if file is not None
    }
    return {"recommendation": fit.as_dict() | data}


def carry_over(model: Path, retriever: Retriever, output: Path) -> dict[str, Any]:
    """Copies the recommender of a run to one that goes on from it; returns what was measured.

    Its user tower learned from the vectors of the towers before: it is taken to suit those after.

    Args:
        model: the run's folder.
        retriever: the towers of the run that goes on.
        output: the folder of that run.
    """
    recommender = load_recommender(model)
    assert recommender is not None
    fingerprint = retriever.fingerprint()
    dataclasses.replace(recommender, encoder_fingerprint=fingerprint).save(output / FOLDER)
    metrics = json.loads((model / "metrics.json").read_text("utf-8"))
    return {"recommendation": metrics["recommendation"] | {"carried_over_from": str(model)}}


def load_recommender(model: Path, popularity_discount: float = 0.0) -> Recommender | None:
    """The recommender of a run, see `Recommender`; None where it was trained without histories.

    Raises:
        InputError: there is none, and popularity is to be discounted.
    """
    if not (model / FOLDER).is_dir():
        if popularity_discount:
            raise InputError(
                f"{model} was trained without histories: there is nothing for "
                "--popularity-discount to change"
            )
        return None
    from towers.recommender import Recommender

    loaded = Recommender.load(model / FOLDER)
    return dataclasses.replace(loaded, popularity_discount=popularity_discount)


def evaluate_histories(
    model: Path,
    histories: Histories,
    reviews: Reviews | None,
    contexts: Contexts | None,
    precision: str,
    popularity_discount: float = 0.0,
) -> dict[str, Any]:
    """Measures how well the last item of each user is found, from all before it.

    Args:
        model: the run's folder.
        histories: of the users.
        reviews: of which a user's are known as at the time of the last item, none about it.
        contexts: of which that of the last item is known.
        precision: see `item_vectors`.
        popularity_discount: see `Recommender`.

    Raises:
        InputError: the run has no recommender.
    """
    import numpy as np

    from towers.encoding import fast_dtype
    from training.recommendation.evaluation import evaluate_recommendations
    from training.recommendation.review_part import UserReviews
    from training.recommendation.splits import leave_last_out

    shop, retriever, _ = recommender_over(
        model, histories.catalog, precision, popularity_discount=popularity_discount
    )
    learned = shop.recommender
    count_of = dict(zip(learned.item_ids, learned.counts.tolist(), strict=True))
    taken = np.array([count_of.get(item_id, 0) for item_id in shop.item_ids], np.int64)
    cases = leave_last_out(histories)
    number = {user: row for row, user in enumerate(histories.users)}
    users = [number[user] for user in cases.users]
    known: dict[str, Any] = {}
    if contexts is not None:
        known["contexts"] = [contexts.at(user, -1) for user in users]
    if reviews is not None:
        written = UserReviews.of(reviews, histories)
        rows = [
            written.known(user, histories.items(user), len(past), int(target[0]))
            for user, past, target in zip(users, cases.histories, cases.targets, strict=True)
        ]
        lengths = np.cumsum([len(of_user) for of_user in rows])[:-1]
        chosen = np.concatenate([np.zeros(0, np.int64), *rows])
        vectors = retriever.encode_reviews(
            [reviews.texts[row] for row in chosen], dtype=fast_dtype()
        )
        ratings = [of.tolist() for of in np.split(reviews.rating[chosen], lengths)]
        known["review_vectors"] = learned.review_vectors(np.split(vectors, lengths), ratings)
    result = evaluate_recommendations(
        shop,
        cases,
        taken,
        trained_users=_trained_users(model),
        cutoffs=(_CUTOFF,),
        groups={}
        if contexts is None
        else {n: [of[n] for of in known["contexts"]] for n in contexts.of_users},
        known=known,
    )
    reviewers = {} if reviews is None else {"reviewers": sum(len(of_user) > 0 for of_user in rows)}
    return (
        result.as_dict()
        | reviewers
        | {
            "precision": precision,
            "popularity_discount": popularity_discount,
        }
    )


class RunOverCatalog(NamedTuple):
    """A run with histories, brought to a catalogue.

    Attributes:
        shop: its recommender.
        retriever: its towers.
        texts: of the items.
    """

    shop: CatalogRecommender
    retriever: Retriever
    texts: list[str]


def recommender_over(
    model: Path, products: Catalog, precision: str, *, popularity_discount: float = 0.0
) -> RunOverCatalog:
    """A run's recommender over a catalogue; see `Recommender` for the discount.

    Raises:
        InputError: the run has no recommender.
    """
    from towers.cli.item_vectors import item_vectors
    from training.run_folder import RunFolder
    from training.train import render_items

    run = RunFolder.existing(model)
    recommender = load_recommender(model, popularity_discount)
    if recommender is None:
        raise InputError(f"{model} was trained without histories: train it with --histories")
    retriever = run.load_retriever()
    texts = render_items(retriever.template, products)
    vectors = item_vectors(model, retriever, texts, precision)
    shop = recommender.over(products.item_ids.tolist(), texts, vectors)
    return RunOverCatalog(shop, retriever, texts)


def _trained_users(model: Path) -> int:
    metrics = json.loads((model / "metrics.json").read_text("utf-8"))
    return int(metrics["recommendation"]["users"])


def evaluation_report(facts: dict[str, Any]) -> str:
    """What `evaluate` says of histories, for people."""
    lines = []
    for name, value in facts["measures"].items():
        if value is None or "decile" in name:
            continue
        low, high = value["interval_95"]
        lines.append(
            f"{name:<16} {value['mean']:.4f}  [{low:.4f}, {high:.4f}]  over {value['users']} users"
        )
    lines += [f"{name:<16} {value:.4f}" for name, value in facts["catalog"].items()]
    for column, measures in facts["groups"].items():
        measure = f"R@{_CUTOFF}"
        for group, value in list(measures[measure].items())[:_GROUPS_SHOWN]:
            low, high = value["interval_95"]
            lines.append(
                f"{measure} where {column} is {group}: {value['mean']:.4f}  "
                f"[{low:.4f}, {high:.4f}]  over {value['users']} users"
            )
    return "\n".join(
        [*lines, "Last item of each user, from all before it; brackets: 95% interval over users"]
    )
