"""``towers pretrain``: teach an encoder a shop's language from texts without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from towers.cli.output import emit, json_option, progress_bar, say
from towers.item_text import ItemTemplate


@click.command("pretrain", short_help="Adapt an encoder's language to texts without labels.")
@click.option("--catalog", type=click.Path(), help="Catalogue file, whose item texts are read.")
@click.option("--item-text", help='Item text, as in "{title}[ by {brand}][. {description}]".')
@click.option("--texts", type=click.Path(), help="Another file of texts, one a row.")
@click.option("--text-column", help="Column of --texts to read.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Encoder folder.")
@click.option("--encoder", help="Installed encoder, checkpoint folder or keras-hub preset.")
@click.option("--steps", type=int, help="Gradient steps in all; 500 if absent.")
@click.option("--head-steps", type=int, help="Of these, for the new head alone; 100 if absent.")
@click.option("--batch-size", type=int, help="Texts a step; 32 if absent.")
@click.option("--max-length", type=int, help="Tokens read of a text; 128 if absent.")
@click.option("--learning-rate", type=float, help="Peak learning rate; 5e-5 if absent.")
@click.option("--seed", type=int, help="Decides order, masks and dropout; 0 if absent.")
@json_option
def command(
    catalog: str | None,
    item_text: str | None,
    texts: str | None,
    text_column: str | None,
    output: Path,
    encoder: str | None,
    steps: int | None,
    head_steps: int | None,
    batch_size: int | None,
    max_length: int | None,
    learning_rate: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Adapt an encoder's language to texts without labels (masked language model).

    OUTPUT can then be named as `towers train --encoder OUTPUT`. A pretraining that was interrupted
    goes on when the same command is given again.
    """
    if catalog is None and texts is None:
        raise click.UsageError("give --catalog, --texts, or both")
    if (texts is None) != (text_column is None):
        raise click.UsageError("--texts and --text-column belong together")
    if item_text is not None and catalog is None:
        raise click.UsageError("--item-text has no effect without --catalog")

    from training.pretrain_config import PretrainConfig

    config = PretrainConfig.of(
        preset=encoder,
        steps=steps,
        head_steps=head_steps,
        batch_size=batch_size,
        max_length=max_length,
        learning_rate=learning_rate,
        seed=seed,
    )
    from training.catalog import Catalog
    from training.pretrain import pretrain
    from training.text_table import TextTable
    from training.train import render_items

    corpus: list[str] = []
    data: dict[str, Any] = {}
    if catalog is not None:
        products = Catalog.read(catalog)
        template = (
            ItemTemplate.for_columns(products.table.column_names)
            if item_text is None
            else ItemTemplate(item_text)
        )
        corpus += render_items(template, products)
        data["catalog"] = {
            "path": products.path,
            "sha256": products.sha256,
            "text": template.pattern,
        }
    if texts is not None:
        template = ItemTemplate(f"{{{text_column}}}")
        table = TextTable.read(texts, template)
        corpus += table.texts
        data["texts"] = {"path": table.path, "sha256": table.sha256, "text": template.pattern}
    say(f"{len(set(corpus) - {''}):,} different texts")
    with progress_bar("Pretraining") as progress:
        record = pretrain(corpus, config, output, data=data, progress=progress)
    emit({"output": str(output), **record}, as_json, lambda: _report(output, record))


def _report(output: Path, record: dict[str, Any]) -> str:
    before, after = record["held_out"][0], record["held_out"][-1]
    return (
        f"Masked words on {record['held_out_texts']:,} texts kept back: loss {before['loss']:.3f} "
        f"at step {before['step']:g}, {after['loss']:.3f} at step {after['step']:g}; "
        f"right {before['accuracy']:.1%}, {after['accuracy']:.1%}\n"
        f"Encoder written to {output}"
    )
