"""``towers query``: ask a running server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.output import emit, json_option, say
from towers.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from serving.client import RetrievalClient
    from serving.fan_out import ShardedClient
    from training.catalog import Catalog

_EXPORTS = Path("saved_models")
# Of two encoders' vectors of one text, in float32 on machines of different kinds.
_SAME_VECTOR = 0.999
_WORDS_SHOWN = 3
_SPECIAL = ("[CLS]", "[SEP]")


@click.command("query", short_help="Ask a running server.")
@click.argument("text")
@click.option(
    "--server",
    default="localhost:8500",
    show_default=True,
    help="HOST:PORT. Of shards HOST:PORT,HOST:PORT,... in order, and HOST:PORT|HOST:PORT where "
    "several servers have one shard.",
)
@click.option(
    "--shards", type=click.IntRange(1), help="Number of shards, where one server has all of them."
)
@click.option("--partial", is_flag=True, help="Answer from the shards that can be reached.")
@click.option("--rest", is_flag=True, help="Ask over REST; --server is then the REST port's.")
@click.option("--model", help="Name of the model; the one under saved_models/ if there is one.")
@click.option("--k", type=click.IntRange(1), help="Number of items; as exported if absent.")
@click.option("--catalog", type=click.Path(), help="Catalogue to take titles from.")
@click.option(
    "--explain",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run folder that was exported: say which words carried each score. Needs --catalog.",
)
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@json_option
def command(
    text: str,
    server: str,
    shards: int | None,
    partial: bool,
    rest: bool,
    model: str | None,
    k: int | None,
    catalog: str | None,
    explain: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask a running server for the items that answer TEXT."""
    from serving.client import ServingError

    if explain is not None and catalog is None:
        raise InputError("--explain needs --catalog, for the texts of the items")
    name = model or _only_model()
    products = _products(catalog)
    titles = (
        dict(zip(products.item_ids.tolist(), products.column("title"), strict=True))
        if products
        else {}
    )
    try:
        with _client(server, shards, partial, name, rest, timeout) as client:
            answers = client.search([text], k=k)
            vector = client.encode_queries([text])[0] if explain else None
    except ServingError as error:
        raise click.exceptions.Exit(_failed(error)) from error
    (hits,) = answers
    missing = getattr(answers, "missing", [])
    if missing:
        say(f"Without {', '.join(missing)}, which did not answer")
    answer = [
        {"item_id": hit.item_id, "score": hit.score}
        | ({"title": titles.get(hit.item_id)} if catalog else {})
        for hit in hits
    ]
    if explain is not None and products is not None and vector is not None:
        _explain(explain, text, vector, products, answer)
    facts: dict[str, Any] = {"query": text, "model": name, "items": answer}
    facts |= {"missing": missing} if partial else {}
    emit(facts, as_json, lambda: _table(answer, _reasons))


def _client(
    server: str, shards: int | None, partial: bool, model: str, rest: bool, timeout: float
) -> RetrievalClient | ShardedClient:
    """A client of a server, or of the servers of all shards."""
    from serving.client import RetrievalClient
    from serving.fan_out import ShardedClient

    transport = "rest" if rest else "grpc"
    servers = server.split(",")
    if shards is None and len(servers) == 1:
        if partial or "|" in server:
            raise InputError("--partial and several servers are for shards: name their --shards")
        return RetrievalClient(server, model=model, transport=transport, timeout=timeout)
    if len(servers) == 1:
        servers *= shards or 1
    if shards not in (None, len(servers)):
        raise InputError(
            f"--shards is {shards}, and --server names servers of {len(servers)}: name one of each "
            "shard, in order, or one that has all of them"
        )
    replicas = [one.split("|") for one in servers]
    return ShardedClient(
        replicas, model=model, transport=transport, timeout=timeout, partial=partial
    )


def _table(answer: list[dict[str, Any]], reasons: Callable[[dict[str, Any]], str]) -> str:
    """Items for people, each with the line that `reasons` makes of its `why`, if it has one."""
    if not answer:
        return "no items"
    width = max(len(item["item_id"]) for item in answer)
    lines = []
    for rank, item in enumerate(answer, 1):
        title = item.get("title") or ""
        lines.append(
            f"{rank:>3}  {item['score']:.4f}  {item['item_id']:<{width}}  {title}".rstrip()
        )
        if why := item.get("why"):
            lines.append(f"     {reasons(why)}")
    return "\n".join(lines)


def _explain(
    folder: Path, text: str, vector: np.ndarray, products: Catalog, answer: list[dict[str, Any]]
) -> None:
    """Adds `why` to each item that the catalogue has.

    Args:
        folder: of the run.
        text: the query.
        vector: the server's, float32 ``[d]``.
        products: the catalogue.
        answer: the items, changed in place.
    """
    from towers.explain import explain
    from training.run_folder import RunFolder
    from training.train import render_items

    run = RunFolder.existing(folder)
    retriever = run.load_retriever()
    own = retriever.encode_queries([text])[0]
    if own.shape != vector.shape or own @ vector < _SAME_VECTOR:
        raise InputError(
            f"{folder} is not the run that the server's model was exported from: its vector of the"
            " query is another"
        )
    rows = products.row_of([item["item_id"] for item in answer])
    known = [item for item, row in zip(answer, rows, strict=True) if row >= 0]
    texts = render_items(retriever.template, products)
    why = explain(retriever, text, [texts[row] for row in rows[rows >= 0]])
    for item, explanation in zip(known, why, strict=True):
        item["why"] = explanation.as_dict()
        # What the cosine does not account for is BM25's; 0 without a lexical score.
        item["why"]["lexical"] = item["score"] - (1 - run.lexical_weight) * explanation.score
        item["why"]["lexical_weight"] = run.lexical_weight


def _reasons(why: dict[str, Any]) -> str:
    sides = (_best(why["query"]), _best(why["item"]))
    words = f"cosine {why['cosine']:.3f}: {sides[0]} <- {sides[1]}"
    if why["lexical_weight"]:
        words += f"; words in common {why['lexical']:+.3f}"
    return words


def _best(shares: Sequence[dict[str, Any]]) -> str:
    """The words of the largest shares, repeated words as one."""
    total: dict[str, float] = {}
    for one in shares:
        if one["word"] not in _SPECIAL:
            total[one["word"]] = total.get(one["word"], 0.0) + one["share"]
    largest = sorted(total.items(), key=lambda item: -item[1])[:_WORDS_SHOWN]
    return ", ".join(f"{word} {share:+.3f}" for word, share in largest) or "no words"


def _failed(error: Exception) -> int:
    click.echo(f"Failed: {error}", err=True)
    return 1


def _products(catalog: str | None) -> Catalog | None:
    if catalog is None:
        return None
    from training.catalog import Catalog

    return Catalog.read(catalog)


def _only_model() -> str:
    names = sorted(path.name for path in _EXPORTS.glob("*") if path.is_dir())
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise InputError(f"name the model with --model: of those in {_EXPORTS}/ {there}")
    return names[0]
