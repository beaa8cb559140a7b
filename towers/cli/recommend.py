"""``towers recommend``: ask a running server what a user may want next."""

from __future__ import annotations

from typing import Any

import click

from towers.cli.output import emit, json_option, say
from towers.cli.query import _failed, _only_model, _products, _table


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
@click.option("--server", default="localhost:8500", show_default=True, help="HOST:PORT.")
@click.option("--rest", is_flag=True, help="Ask over REST; --server is then the REST port's.")
@click.option("--model", help="Name of the model; the one under saved_models/ if there is one.")
@click.option("--k", type=click.IntRange(1), help="Number of items; as exported if absent.")
@click.option("--catalog", type=click.Path(), help="Catalogue to take titles from.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@json_option
def command(
    item_ids: tuple[str, ...],
    query: str,
    reviews: tuple[str, ...],
    ratings: tuple[float, ...],
    server: str,
    rest: bool,
    model: str | None,
    k: int | None,
    catalog: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask a running server what may come next for a user who took ITEM_IDS, the oldest first.

    Unknown ids are passed over. Without ITEM_IDS the query decides, and without a query the most
    popular items are answered. What is like the items of praising reviews comes up, what is like
    those of complaints goes down; without a --rating the text tells which a review is.
    """
    if ratings and len(ratings) != len(reviews):
        raise click.UsageError(
            f"{len(ratings)} ratings for {len(reviews)} reviews: give one --rating for each "
            "--review, 0 where there is none, or none at all"
        )
    if "" in reviews:
        raise click.UsageError("a --review is empty")
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
    facts = {
        "history": list(item_ids),
        "query": query,
        "reviews": list(reviews),
        "ratings": list(ratings),
        "model": name,
        "unknown": answer.unknown,
        "items": items,
    }
    emit(facts, as_json, lambda: _table(items))
