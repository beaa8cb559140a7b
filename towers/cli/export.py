"""``towers export``: write a SavedModel with its index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towers.cli.item_vectors import item_vectors, precision_option
from towers.cli.lexical import Lexical, lexical_fields, lexical_option, lexical_weight
from towers.cli.output import emit, json_option, progress_bars, say

if TYPE_CHECKING:
    from serving.export import ExportResult
    from serving.index.auto import IndexKind


@click.command("export", short_help="Write a SavedModel with its index.")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="saved_models/NAME.")
@click.option(
    "--index",
    type=click.Choice(["auto", "exact", "scann"]),
    default="auto",
    show_default=True,
    help="Kind of index. `exact` loads in an unmodified TensorFlow Serving.",
)
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Items an answer.")
@click.option(
    "--queries", type=click.Path(), help="Interactions file whose queries tune a ScaNN index."
)
@lexical_option("As trained if absent.")
@precision_option
@json_option
def command(
    model: Path,
    catalog: str,
    output: Path,
    index: IndexKind,
    k: int,
    queries: str | None,
    lexical: Lexical,
    precision: str,
    as_json: bool,
) -> None:
    """Write a SavedModel with its index as the next version under OUTPUT."""
    from serving.export import export_retriever
    from training.catalog import Catalog
    from training.interactions import Interactions
    from training.run_folder import RunFolder
    from training.train import render_items

    run_folder = RunFolder.existing(model)
    products = Catalog.read(catalog)
    sample = Interactions.read(queries, products).queries if queries else None
    retriever = run_folder.load_retriever()
    texts = render_items(retriever.template, products)
    vectors = item_vectors(model, retriever, texts, precision)
    weight = lexical_weight(lexical, run_folder)
    if weight and index == "scann" and lexical is None:
        weight = 0.0
        say("A ScaNN index scores no words: exported without the lexical score")
    fields = lexical_fields(retriever.template, products) if weight else None
    with progress_bars() as progress:
        result = export_retriever(
            retriever,
            products.item_ids.tolist(),
            texts,
            output,
            index=index,
            k=k,
            item_embeddings=vectors,
            sample_queries=sample,
            lexical_weight=weight,
            lexical_fields=fields,
            run_id=run_folder.run_id,
            progress=progress,
        )
    facts = asdict(result.manifest)
    emit(
        {"path": str(result.path), "version": result.version, **facts},
        as_json,
        lambda: _report(result),
    )


def _report(result: ExportResult) -> str:
    manifest = result.manifest
    return (
        f"{manifest.item_count:,} items in version {result.version}: {result.path}\n"
        f"Index: {manifest.index_kind} ({manifest.index_reason}), "
        f"recall@{manifest.k} {manifest.index_recall:.3f}\n"
        f"Lexical weight: {manifest.lexical_weight:g}\n"
        f"Loads in {manifest.server}"
    )
