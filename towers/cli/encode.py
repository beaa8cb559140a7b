"""``towers encode``: vectors of a catalogue of any size, as an Apache Beam pipeline."""

from __future__ import annotations

import functools
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towers.cli.output import emit, json_option, progress_bars
from towers.errors import InputError

if TYPE_CHECKING:
    from serving.bulk.pipeline import EncodeResult, ItemEncoder
    from serving.bulk.shard_files import Format

_RUNNERS = ("DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")


@click.command("encode", short_help="Encode a catalogue of any size with Apache Beam.")
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path),
    help="Export (saved_models/NAME, or a version of it), or run folder.",
)
@click.option(
    "--catalog",
    required=True,
    multiple=True,
    help="Catalogue file, or a pattern such as 'items-*.jsonl.gz'. May be given several times. "
    "'items-*.jsonl.gz:item_id=sku' says what columns are called there.",
)
@click.option("--output", required=True, help="Folder of the vectors.")
@click.option(
    "--format",
    type=click.Choice(["parquet", "tfrecord"]),
    default="parquet",
    show_default=True,
    help="Of the shards.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, 10_000),
    default=16,
    show_default=True,
    help="Files to write. One worker encodes one at a time and keeps its ids in memory.",
)
@click.option(
    "--runner",
    type=click.Choice(_RUNNERS),
    default=_RUNNERS[0],
    show_default=True,
    help="DirectRunner works on this machine.",
)
@json_option
@click.argument("runner_options", nargs=-1, type=click.UNPROCESSED)
def command(
    model: Path,
    catalog: tuple[str, ...],
    output: str,
    format: Format,
    shards: int,
    runner: str,
    as_json: bool,
    runner_options: tuple[str, ...],
) -> None:
    """Encode a catalogue of any size to files of ids and vectors.

    RUNNER_OPTIONS, after `--`, are Beam's: `towers encode ... -- --flink_master=localhost:8081`.

    OUTPUT gets a Parquet or TFRecord file a shard, and rejected.jsonl with the rows that are no
    items. Shards that are finished, of the same items and encoder, are kept: run the same command
    again after an interruption, or after the catalogue has changed.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise InputError("towers encode needs Apache Beam: pip install 'fewshot-towers[beam]'")
    logging.disable(logging.WARNING)  # Beam's greeting: which clouds it has no packages for
    from serving.bulk.pipeline import encode_catalog

    logging.disable(logging.NOTSET)
    if runner == _RUNNERS[0]:
        # It raises what it logs as well.
        logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)
    from towers.item_text import ItemTemplate
    from training.catalog_stream import stream_items
    from training.table_source import TableSource

    sources = [TableSource.of(pattern) for pattern in catalog]
    names = sources[0].names
    if any(source.names != names for source in sources):
        raise InputError("--catalog: all files of one run need the same names for their columns")
    encoder = _item_encoder(model)
    template = ItemTemplate(encoder.item_template)
    with progress_bars() as progress:
        result = encode_catalog(
            functools.partial(stream_items, template=template, names=names),
            [source.file for source in sources],
            encoder,
            output,
            format=format,
            shards=shards,
            runner=runner,
            options=runner_options,
            progress=progress,
        )
    facts = result.manifest.facts() | {"output": output, "encoded_shards": result.encoded}
    emit(facts, as_json, lambda: _report(result, output))


def _item_encoder(model: Path) -> ItemEncoder:
    """The encoder of an export, of one version of it, or of a run folder."""
    from serving.bulk.pipeline import ItemEncoder
    from serving.loading import GRAPH_FILE
    from serving.manifest import Manifest
    from serving.versions import existing_version, version_folders

    if version_folders(model):
        model = existing_version(model)[1]
    if (model / GRAPH_FILE).is_file():
        manifest = Manifest.read(model)
        return ItemEncoder(
            str(model.resolve()),
            manifest.encoder_fingerprint,
            manifest.item_template,
            manifest.embedding_dim,
        )
    from serving.item_encoder import save_item_encoder
    from training.run_folder import RunFolder

    retriever = RunFolder.existing(model).load_retriever()
    return ItemEncoder(
        functools.partial(save_item_encoder, retriever),
        retriever.fingerprint(),
        retriever.text.item_template,
        retriever.embedding_dim,
    )


def _report(result: EncodeResult, output: str) -> str:
    manifest = result.manifest
    kept = manifest.shards - result.encoded
    rejected = f", {manifest.rejected:,} rows rejected: {output}/rejected.jsonl"
    return (
        f"{manifest.items:,} items in {manifest.shards} shards: {output}"
        f"{rejected if manifest.rejected else ''}\n"
        f"{result.encoded} shards encoded, {kept} were finished before"
    )
