"""``towers recommend``: ask a running server what a user may want next."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.output import emit, json_option, say
from towers.cli.query import _failed, _only_model, _products, _table
from towers.errors import InputError

if TYPE_CHECKING:
    from training.catalog import Catalog

# Share by which two sums of the same parts may differ: items may be encoded in another precision.
_SAME_SCORE = 0.05
_ITEMS_SHOWN = 2
_SHOWN = 0.005  # what two decimals show


def _context(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in values:
        column, equals, value = text.partition("=")
        if not column or not equals or not value or column in found:
            raise click.BadParameter(
                f"{text!r}: expected COLUMN=VALUE, as in season=winter, each column once"
            )
        found[column] = value
    return found


@click.command("recommend", short_help="Ask a running server what goes on from a history.")
@click.argument("item_ids", nargs=-1)
@click.option("--query", default="", help="What the user asks for now.")
@click.option("--review", "reviews", multiple=True, help="What the user wrote; repeatable.")
@click.option(
    "--rating",
    "ratings",
    multiple=True,
    type=click.FloatRange(0, 5),
    help="1 to 5, of each --review in order; 0 for none.",
)
@click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="COLUMN=VALUE",
    callback=_context,
    help="What else is known of the user or the moment; repeatable.",
)
@click.option("--server", default="localhost:8500", show_default=True, help="HOST:PORT.")
@click.option("--rest", is_flag=True, help="Ask over REST; --server is then the REST port's.")
@click.option("--model", help="Name of the model; the one under saved_models/ if there is one.")
@click.option("--k", type=click.IntRange(1), help="Number of items; as exported if absent.")
@click.option("--catalog", type=click.Path(), help="Catalogue to take titles from.")
@click.option(
    "--explain",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run folder that was exported: say which past items carried each score, and by what. "
    "Needs --catalog.",
)
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@json_option
def command(
    item_ids: tuple[str, ...],
    query: str,
    reviews: tuple[str, ...],
    ratings: tuple[float, ...],
    contexts: dict[str, str],
    server: str,
    rest: bool,
    model: str | None,
    k: int | None,
    catalog: str | None,
    explain: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask a running server what may come next for a user who took ITEM_IDS, the oldest first.

    Unknown ids are passed over. Without ITEM_IDS the query decides, and without a query the most
    popular items are answered. What is like the items of praising reviews comes up, what is like
    those of complaints goes down; without a --rating the text tells which a review is. A --context
    that the run has not learned is passed over.
    """
    if ratings and len(ratings) != len(reviews):
        raise click.UsageError(
            f"{len(ratings)} ratings for {len(reviews)} reviews: give one --rating for each "
            "--review, 0 where there is none, or none at all"
        )
    if "" in reviews:
        raise click.UsageError("a --review is empty")
    if explain is not None and catalog is None:
        raise InputError("--explain needs --catalog, for the texts of the items")
    from serving.client import RetrievalClient, ServingError

    name = model or _only_model()
    products = _products(catalog)
    titles = (
        dict(zip(products.item_ids.tolist(), products.column("title"), strict=True))
        if products
        else {}
    )
    transport = "rest" if rest else "grpc"
    try:
        with RetrievalClient(server, model=name, transport=transport, timeout=timeout) as client:
            answer = client.recommend(
                [item_ids],
                [query],
                k=k,
                # An export from before there were reviews answers as long as none are given.
                reviews=[reviews] if reviews else None,
                ratings=[[rating or None for rating in ratings]] if ratings else None,
                contexts=[contexts] if contexts else None,
            )[0]
    except ServingError as error:
        raise click.exceptions.Exit(_failed(error)) from error
    if answer.unknown:
        say(f"{answer.unknown} of {len(item_ids)} items are not in the catalogue")
    items: list[dict[str, Any]] = [
        {"item_id": hit.item_id, "score": hit.score}
        | ({"title": titles.get(hit.item_id)} if catalog else {})
        for hit in answer.hits
    ]
    if explain is not None and products is not None:
        _explain(
            explain,
            products,
            item_ids,
            items,
            query=query,
            reviews=reviews,
            ratings=ratings,
            context=contexts,
        )
    facts = {
        "history": list(item_ids),
        "query": query,
        "reviews": list(reviews),
        "ratings": list(ratings),
        "context": contexts,
        "model": name,
        "unknown": answer.unknown,
        "items": items,
    }
    emit(facts, as_json, lambda: _table(items, lambda why: _reasons(why, titles)))


def _explain(
    folder: Path,
    products: Catalog,
    history: tuple[str, ...],
    items: list[dict[str, Any]],
    *,
    query: str,
    reviews: tuple[str, ...],
    ratings: tuple[float, ...],
    context: dict[str, str],
) -> None:
    """Adds `why` to each item that the catalogue has.

    Args:
        folder: of the run.
        products: the catalogue.
        history: ids, oldest first.
        items: what the server answered, changed in place.
        query: empty for none. What it added is what the other parts do not account for.
        reviews: texts.
        ratings: of the reviews, or none at all.
        context: column to value.

    Raises:
        InputError: the run was trained without histories, or its scores are not the server's.
    """
    import numpy as np

    from towers.cli.histories import recommender_over
    from towers.explain import explain_recommendations

    shop, retriever, texts = recommender_over(folder, products, "auto")
    written = None
    if reviews:
        vectors = retriever.encode_reviews(reviews)
        written = shop.recommender.review_vectors([vectors], [ratings or [0.0] * len(reviews)])[0]
    rows = products.row_of([item["item_id"] for item in items])
    known = [item for item, row in zip(items, rows, strict=True) if row >= 0]
    found = explain_recommendations(
        shop,
        texts,
        history,
        [item["item_id"] for item in known],
        query_scores=np.zeros(len(products), np.float32) if query else None,
        review_vector=written,
        context=context or None,
    )
    for item, explanation in zip(known, found, strict=True):
        rest = item["score"] - explanation.score
        if not query and abs(rest) > _SAME_SCORE * max(1.0, abs(item["score"])):
            raise InputError(
                f"{folder} is not the run that the server's model was exported from, or "
                f"{products.path} not its catalogue: {item['item_id']} scores {item['score']:.4f} "
                f"there and {explanation.score:.4f} here"
            )
        if query:
            explanation = dataclasses.replace(explanation, query=rest)
        item["why"] = explanation.as_dict()


def _reasons(why: dict[str, Any], titles: dict[str, str]) -> str:
    """The past items that added most, and what each part added."""
    largest = sorted(why["history"], key=lambda past: -past["share"])[:_ITEMS_SHOWN]
    past = "; ".join(f"{titles[one['item_id']]} {one['share']:+.2f}" for one in largest)
    parts = ", ".join(
        f"{name.replace('_', '-')} {value:+.2f}"
        for name, value in why["parts"].items()
        if abs(value) >= _SHOWN
    )
    if context := [f"{text} {of:+.2f}" for text, of in why.get("context", {}).items()]:
        parts += f"; {', '.join(context)}"
    return f"{past or 'no history'}  ({parts})"
