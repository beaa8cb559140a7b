"""``towers index``: change and check the items of an export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.output import emit, json_option, progress_bars

if TYPE_CHECKING:
    from serving.sharded_update import ShardsUpdate
    from serving.update import ChangedItems, UpdateResult
    from serving.verify import Verification


@click.group("index", short_help="Change and check the items of an export.")
def command() -> None:
    """Change and check the items of an export, saved_models/NAME.

    Each change becomes the next version, made from the newest one: only new and changed items are
    encoded, and a running server swaps it in.
    """


_model = click.argument("model", type=click.Path(path_type=Path))
_file = click.argument("file", type=click.Path())


@command.command("add", short_help="Add the items of a file.")
@_model
@_file
@json_option
def add(model: Path, file: str, as_json: bool) -> None:
    """Add the items of the catalogue FILE to MODEL; their ids must be new to it."""
    _update(model, as_json, add=_changed(model, file))


@command.command("replace", short_help="Put the items of a file in the place of those there.")
@_model
@_file
@json_option
def replace(model: Path, file: str, as_json: bool) -> None:
    """Put the items of the catalogue FILE in the place of those of MODEL with the same ids."""
    _update(model, as_json, replace=_changed(model, file))


@command.command("remove", short_help="Remove the items named in a file.")
@_model
@_file
@json_option
def remove(model: Path, file: str, as_json: bool) -> None:
    """Remove from MODEL the items in the column item_id of FILE."""
    from training.tables import read_table

    table = read_table(file, required={"item_id": "id"}, optional={}, keep_other=False)
    _update(model, as_json, remove=table.column("item_id").to_pylist())


@command.command("verify", short_help="Check ids, embeddings, answers and recall.")
@_model
@click.option("--version", type=click.IntRange(0), help="Version to check; the newest if absent.")
@click.option("--catalog", type=click.Path(), help="Catalogue file that the items should equal.")
@click.option(
    "--queries",
    type=click.Path(),
    help="File with a column `query` to measure recall on; first words of item texts if absent.",
)
@click.option(
    "--sample", type=click.IntRange(1), default=256, show_default=True, help="Queries and items."
)
@click.option(
    "--min-recall",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="Recall below this is a problem.",
)
@json_option
def verify(
    model: Path,
    version: int | None,
    catalog: str | None,
    queries: str | None,
    sample: int,
    min_recall: float,
    as_json: bool,
) -> None:
    """Check a version of MODEL: counts, ids, embeddings, answers, recall against exact search.

    Exit status 1 if anything is wrong.
    """
    from serving.manifest import Manifest
    from serving.shards import find_shards
    from serving.verify import verify as verify_version
    from serving.verify import verify_shards
    from serving.versions import existing_version
    from towers.item_text import ItemTemplate
    from training.catalog import Catalog
    from training.tables import read_table
    from training.train import render_items

    shards = find_shards(model, version)
    number, path = (shards.version, shards.paths[0]) if shards else existing_version(model, version)
    asked = expected = None
    if queries is not None:
        table = read_table(queries, required={"query": "text"}, optional={}, keep_other=False)
        asked = table.column("query").to_pylist()
    if catalog is not None:
        products = Catalog.read(catalog)
        texts = render_items(ItemTemplate(Manifest.read(path).item_template), products)
        expected = dict(zip(products.item_ids.tolist(), texts, strict=True))
    options: dict[str, Any] = {
        "queries": asked,
        "catalog": expected,
        "sample": sample,
        "least_recall": min_recall,
    }
    if shards:
        path = shards.base
        result = verify_shards(shards, **options)
    else:
        result = verify_version(path, **options)
    facts = {"path": str(path), "version": number, **asdict(result)}
    emit(facts, as_json, lambda: _report(number, path, result))
    if result.problems:
        raise click.exceptions.Exit(1)


def _report(number: int, path: Path, result: Verification) -> str:
    lines = [
        f"{result.item_count:,} items in version {number}: {path}",
        f"Recall {result.recall:.3f} on {result.queries} {result.measured_on}",
    ]
    for problem in result.problems:
        examples = f": {', '.join(problem.examples)}" if problem.examples else ""
        more = ", ..." if problem.count > len(problem.examples) > 0 else ""
        lines.append(
            f"PROBLEM {problem.check}: {problem.message} ({problem.count:,}){examples}{more}"
        )
    return "\n".join([*lines, "" if result.problems else "No problem found"]).rstrip()


def _changed(model: Path, file: str) -> ChangedItems:
    """The rows of a catalogue file, with what the newest version keeps of an item."""
    from serving.manifest import Manifest
    from serving.shards import find_shards
    from serving.stored_items import StoredItems
    from serving.update import ChangedItems
    from serving.versions import existing_version
    from towers.cli.columns import item_columns
    from towers.item_text import ItemTemplate
    from training.catalog import Catalog
    from training.train import render_items

    shards = find_shards(model)
    path = shards.paths[0] if shards else existing_version(model)[1]
    items = StoredItems.read(path)
    products = Catalog.read(file)
    return ChangedItems(
        products.item_ids.tolist(),
        render_items(ItemTemplate(Manifest.read(path).item_template), products),
        {name: [text or "" for text in products.column(name)] for name in items.fields},
        item_columns(products, items.columns),
    )


def _update(model: Path, as_json: bool, **changes: Any) -> None:
    """Publishes changed items, in one index or in shards, and tells what was done."""
    from serving.sharded_update import update_shards
    from serving.shards import find_shards
    from serving.update import update_items

    shards = find_shards(model)
    with progress_bars() as progress:
        result: UpdateResult | ShardsUpdate
        if shards:
            result = of_shards = update_shards(shards, **changes, progress=progress)
            published = of_shards.shards
            path, version = published.base, published.version
            facts = {"item_count": published.item_count, "export_id": published.export_id}
        else:
            result = update_items(model, **changes, progress=progress)
            path, version, facts = result.path, result.version, asdict(result.manifest)
    counts = {name: getattr(result, name) for name in ("added", "replaced", "removed", "encoded")}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    emit(
        {"path": str(path), "version": version, **counts, **facts},
        as_json,
        lambda: f"{told}; {facts['item_count']:,} items in version {version}: {path}",
    )
