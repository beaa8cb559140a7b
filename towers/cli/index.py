"""``towers index``: change and check the items of an export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towers.cli.output import emit, json_option, progress_bars

if TYPE_CHECKING:
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
    from serving.update import update_items

    with progress_bars() as progress:
        _emit(update_items(model, add=_changed(model, file), progress=progress), as_json)


@command.command("replace", short_help="Put the items of a file in the place of those there.")
@_model
@_file
@json_option
def replace(model: Path, file: str, as_json: bool) -> None:
    """Put the items of the catalogue FILE in the place of those of MODEL with the same ids."""
    from serving.update import update_items

    with progress_bars() as progress:
        _emit(update_items(model, replace=_changed(model, file), progress=progress), as_json)


@command.command("remove", short_help="Remove the items named in a file.")
@_model
@_file
@json_option
def remove(model: Path, file: str, as_json: bool) -> None:
    """Remove from MODEL the items in the column item_id of FILE."""
    from serving.update import update_items
    from training.tables import read_table

    table = read_table(file, required={"item_id": "id"}, optional={}, keep_other=False)
    with progress_bars() as progress:
        item_ids = table.column("item_id").to_pylist()
        _emit(update_items(model, remove=item_ids, progress=progress), as_json)


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
    from serving.verify import verify as verify_version
    from serving.versions import existing_version
    from towers.item_text import ItemTemplate
    from training.catalog import Catalog
    from training.tables import read_table
    from training.train import render_items

    number, path = existing_version(model, version)
    asked = expected = None
    if queries is not None:
        table = read_table(queries, required={"query": "text"}, optional={}, keep_other=False)
        asked = table.column("query").to_pylist()
    if catalog is not None:
        products = Catalog.read(catalog)
        texts = render_items(ItemTemplate(Manifest.read(path).item_template), products)
        expected = dict(zip(products.item_ids.tolist(), texts, strict=True))
    result = verify_version(
        path, queries=asked, catalog=expected, sample=sample, least_recall=min_recall
    )
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
    from serving.stored_items import StoredItems
    from serving.update import ChangedItems
    from serving.versions import existing_version
    from towers.cli.columns import item_columns
    from towers.item_text import ItemTemplate
    from training.catalog import Catalog
    from training.train import render_items

    _, path = existing_version(model)
    items = StoredItems.read(path)
    products = Catalog.read(file)
    return ChangedItems(
        products.item_ids.tolist(),
        render_items(ItemTemplate(Manifest.read(path).item_template), products),
        {name: [text or "" for text in products.column(name)] for name in items.fields},
        item_columns(products, items.columns),
    )


def _emit(result: UpdateResult, as_json: bool) -> None:
    counts = {
        "added": result.added,
        "replaced": result.replaced,
        "removed": result.removed,
        "encoded": result.encoded,
    }
    facts = {"path": str(result.path), "version": result.version, **counts}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    emit(
        facts | asdict(result.manifest),
        as_json,
        lambda: (
            f"{told}; {result.manifest.item_count:,} items in version {result.version}: "
            f"{result.path}"
        ),
    )
