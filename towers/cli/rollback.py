"""``towers rollback``: put an earlier version back into service."""

from __future__ import annotations

from pathlib import Path

import click

from towers.cli.output import emit, json_option


@click.command("rollback", short_help="Put an earlier version back into service.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--to", "version", type=click.IntRange(0), help="Version; the one before if absent.")
@json_option
def command(model: Path, version: int | None, as_json: bool) -> None:
    """Publish an earlier version of MODEL, saved_models/NAME, again as its newest.

    Nothing is deleted: servers load the highest number, so the earlier version gets a new one.
    """
    from serving.rollback import roll_back

    result = roll_back(model, version)
    facts = {
        "path": str(result.path),
        "version": result.version,
        "republished": result.republished,
    }
    emit(
        facts,
        as_json,
        lambda: f"Version {result.republished} is back as version {result.version}: {result.path}",
    )
