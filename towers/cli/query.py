"""``towers query``: ask a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from towers.cli.output import emit, json_option
from towers.errors import InputError

_EXPORTS = Path("saved_models")


@click.command("query", short_help="Ask a running server.")
@click.argument("text")
@click.option("--server", default="localhost:8500", show_default=True, help="HOST:PORT.")
@click.option("--rest", is_flag=True, help="Ask over REST; --server is then the REST port's.")
@click.option("--model", help="Name of the model; the one under saved_models/ if there is one.")
@click.option("--k", type=click.IntRange(1), help="Number of items; as exported if absent.")
@click.option("--catalog", type=click.Path(), help="Catalogue to take titles from.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@json_option
def command(
    text: str,
    server: str,
    rest: bool,
    model: str | None,
    k: int | None,
    catalog: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask a running server for the items that answer TEXT."""
    from serving.client import RetrievalClient, ServingError

    name = model or _only_model()
    titles = _titles(catalog)
    transport = "rest" if rest else "grpc"
    try:
        with RetrievalClient(server, model=name, transport=transport, timeout=timeout) as client:
            hits = client.search([text], k=k)[0]
    except ServingError as error:
        raise click.exceptions.Exit(_failed(error)) from error
    answer = [
        {"item_id": hit.item_id, "score": hit.score}
        | ({"title": titles.get(hit.item_id)} if catalog else {})
        for hit in hits
    ]
    emit({"query": text, "model": name, "items": answer}, as_json, lambda: _table(answer))


def _table(answer: list[dict[str, Any]]) -> str:
    if not answer:
        return "no items"
    width = max(len(item["item_id"]) for item in answer)
    lines = [
        f"{rank:>3}  {item['score']:.4f}  {item['item_id']:<{width}}  {item.get('title') or ''}"
        for rank, item in enumerate(answer, 1)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _failed(error: Exception) -> int:
    click.echo(f"Failed: {error}", err=True)
    return 1


def _titles(catalog: str | None) -> dict[str, str | None]:
    if catalog is None:
        return {}
    from training.catalog import Catalog

    products = Catalog.read(catalog)
    return dict(zip(products.item_ids.tolist(), products.column("title"), strict=True))


def _only_model() -> str:
    names = sorted(path.name for path in _EXPORTS.glob("*") if path.is_dir())
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise InputError(f"name the model with --model: of those in {_EXPORTS}/ {there}")
    return names[0]
