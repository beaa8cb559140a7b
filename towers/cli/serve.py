"""``towers serve``: serve an export over gRPC and REST."""

from __future__ import annotations

import logging
from pathlib import Path

import click


@click.command("serve", short_help="Serve an export over gRPC and REST.")
@click.option(
    "--model-base-path",
    required=True,
    type=click.Path(path_type=Path),
    help="saved_models/NAME, the folder that holds the versions.",
)
@click.option("--model-name", help="What clients call the model; the folder's name if absent.")
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8500, show_default=True, help="gRPC; 0 for a free one.")
@click.option(
    "--rest-port", type=int, default=8501, show_default=True, help="REST; 0 for a free one."
)
@click.option(
    "--poll-seconds",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="How often to look for new versions.",
)
@click.option(
    "--tensorflow-intra-op-parallelism",
    "intra_op_threads",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Threads that share one operation; 0 for one a core. Single queries are quickest with 1.",
)
def command(
    model_base_path: Path,
    model_name: str | None,
    host: str,
    port: int,
    rest_port: int,
    poll_seconds: float,
    intra_op_threads: int,
) -> None:
    """Serve the newest version of an export, and each newer one as it appears.

    The API is TensorFlow Serving's. SIGTERM or Ctrl-C lets running requests finish first.
    """
    from serving.server.server import run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run_server(
        model_base_path,
        model_name=model_name,
        host=host,
        port=port,
        rest_port=rest_port,
        poll_seconds=poll_seconds,
        intra_op_threads=intra_op_threads,
    )
