"""``towers export``: write a SavedModel with its index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.columns import item_columns
from towers.cli.histories import discount_option, load_recommender
from towers.cli.item_vectors import item_vectors, precision_option
from towers.cli.lexical import Lexical, lexical_fields, lexical_option, lexical_weight
from towers.cli.output import emit, json_option, progress_bars, say

if TYPE_CHECKING:
    from serving.export import ExportResult
    from serving.index.auto import IndexKind
    from serving.sharded_export import PublishedShards


@click.command("export", short_help="Write a SavedModel with its index.")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="saved_models/NAME.")
@click.option(
    "--index",
    type=click.Choice(["auto", "exact", "scann", "partitioned"]),
    default="auto",
    show_default=True,
    help="Kind of index. `exact` and `partitioned` load in an unmodified TensorFlow Serving.",
)
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items an answer.")
@click.option(
    "--queries",
    type=click.Path(),
    help="Interactions file whose queries tune an approximate index.",
)
@click.option(
    "--columns",
    help="Columns to filter by and to return, such as `category,brand,price`: they get a signature "
    "of their own, search_filtered.",
)
@click.option(
    "--stock-server",
    is_flag=True,
    help="Refuse what an unmodified TensorFlow Serving could not load, by the ops in the graph.",
)
@click.option(
    "--shards",
    type=click.IntRange(1),
    help="Split the catalogue into so many models under OUTPUT, for a catalogue too large for one "
    "index: docs/scale.md.",
)
@lexical_option("As trained if absent.")
@discount_option()
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    help="Folder of `towers encode`, of the same model and catalogue: nothing is encoded then.",
)
@precision_option
@json_option
def command(
    model: Path,
    catalog: str,
    output: Path,
    index: IndexKind,
    k: int,
    queries: str | None,
    columns: str | None,
    stock_server: bool,
    shards: int | None,
    lexical: Lexical,
    popularity_discount: float,
    vectors: Path | None,
    precision: str,
    as_json: bool,
) -> None:
    """Write a SavedModel with its index as the next version under OUTPUT.

    A run that was trained with --histories gets the signatures `recommend` and `score`.
    """
    from serving.export import export_retriever
    from serving.sharded_export import export_shards
    from training.catalog import Catalog
    from training.interactions import Interactions
    from training.run_folder import RunFolder
    from training.train import render_items

    run_folder = RunFolder.existing(model)
    products = Catalog.read(catalog)
    filters = item_columns(products, [name.strip() for name in (columns or "").split(",") if name])
    sample = Interactions.read(queries, products).queries if queries else None
    retriever = run_folder.load_retriever()
    texts = render_items(retriever.template, products)
    embeddings = None
    if vectors is not None:
        from serving.bulk.encoded_items import read_encoded

        ids = products.item_ids.tolist()
        embeddings = read_encoded(vectors, ids, texts, retriever.fingerprint())
    weight = lexical_weight(lexical, run_folder)
    if weight and index in ("scann", "partitioned") and lexical is None:
        weight = 0.0
        name = "ScaNN" if index == "scann" else "partitioned"
        say(f"A {name} index scores no words: exported without the lexical score")
    options: dict[str, Any] = {
        "index": index,
        "k": k,
        "sample_queries": sample,
        "lexical_weight": weight,
        "lexical_fields": lexical_fields(retriever.template, products) if weight else None,
        "columns": filters,
        "recommender": load_recommender(model, popularity_discount),
        "stock_server": stock_server,
        "run_id": run_folder.run_id,
    }
    items = (retriever, products.item_ids.tolist(), texts, output)
    if shards is not None:
        # The vectors of one shard at a time, kept beside the model: an export that was interrupted
        # goes on from there.
        options["item_embeddings"] = (
            (lambda some: item_vectors(model, retriever, some, precision))
            if embeddings is None
            else embeddings
        )
        published = export_shards(*items, shards=shards, **options, progress=_tell_shard)
        facts = {
            "path": str(published.base),
            "version": published.version,
            "export_id": published.export_id,
            "item_count": published.item_count,
            "config": str(published.config),
            "shards": [
                {"path": str(path), **asdict(manifest)}
                for path, manifest in zip(published.paths, published.manifests, strict=True)
            ],
        }
        emit(facts, as_json, lambda: _report_shards(published))
        return
    if embeddings is None:
        embeddings = item_vectors(model, retriever, texts, precision)
    options["item_embeddings"] = embeddings
    with progress_bars() as progress:
        result = export_retriever(*items, **options, progress=progress)
    facts = asdict(result.manifest)
    emit(
        {"path": str(result.path), "version": result.version, **facts},
        as_json,
        lambda: _report(result),
    )


def _tell_shard(stage: str, done: int, total: int) -> None:
    if stage == "build shards" and done < total:
        say(f"Shard {done + 1} of {total}")


def _report_shards(published: PublishedShards) -> str:
    counts = [manifest.item_count for manifest in published.manifests]
    first = published.manifests[0]
    return (
        f"{published.item_count:,} items in version {published.version} of {len(counts)} shards "
        f"with {min(counts):,} to {max(counts):,}: {published.base}\n"
        f"Lexical weight: {first.lexical_weight:g}\n"
        f"Export id: {published.export_id}\n"
        f"All on one server: towers serve --model-config-file {published.config}"
    )


def _report(result: ExportResult) -> str:
    manifest = result.manifest
    took = ""
    if manifest.index_milliseconds is not None:
        took = f", {manifest.index_milliseconds:.2g} ms a query"
    return (
        f"{manifest.item_count:,} items in version {result.version}: {result.path}\n"
        f"Index: {manifest.index_kind} ({manifest.index_reason}), "
        f"recall@{manifest.k} {manifest.index_recall:.3f}{took}\n"
        f"Lexical weight: {manifest.lexical_weight:g}\n"
        f"Loads in {manifest.server}"
    )
