"""``towers serve``: serve SavedModels over gRPC and REST."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _switch(name: str, variable: str, default: bool | None, help_text: str) -> _Decorator:
    """An option that is a flag or takes true or false, as TF Serving's are."""
    return click.option(
        name,
        variable,
        type=bool,
        is_flag=False,
        flag_value="true",
        default=default,
        show_default=default is not None,
        help=help_text,
    )


@click.command(
    "serve",
    short_help="Serve an export over gRPC and REST.",
    # TF Serving's flags have underscores: --model_base_path.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
@click.option(
    "--model-base-path",
    type=click.Path(path_type=Path),
    help="saved_models/NAME, the folder that holds the versions.",
)
@click.option("--model-name", help="What clients call the model; the folder's name if absent.")
@click.option(
    "--model-config-file",
    type=click.Path(path_type=Path),
    help="Several models, with version policies and labels: a ModelServerConfig in text form.",
)
@click.option(
    "--model-config-file-poll-wait-seconds",
    "model_config_poll_seconds",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="How often to look at that file for changes; 0 for never.",
)
@_switch(
    "--allow-version-labels-for-unavailable-models",
    "labels_for_unavailable",
    False,
    "New labels may name versions that are not available.",
)
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8500, show_default=True, help="gRPC; 0 for a free one.")
@click.option(
    "--rest-port",
    "--rest-api-port",
    "rest_port",
    type=int,
    default=8501,
    show_default=True,
    help="REST; 0 for a free one.",
)
@click.option(
    "--file-system-poll-wait-seconds",
    "--poll-seconds",
    "poll_seconds",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="How often to look for new versions; 0 for once.",
)
@click.option(
    "--max-num-load-retries",
    "max_retries",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="How often to try again to load a version that failed.",
)
@click.option(
    "--load-retry-interval-micros",
    type=click.IntRange(0),
    default=60_000_000,
    show_default=True,
    help="How long to wait before each of these.",
)
@_switch(
    "--enable-model-warmup",
    "warm_up",
    True,
    "Replay a version's warm-up requests first.",
)
@_switch(
    "--enable-batching",
    "enable_batching",
    None,
    "Compute requests that come together at once: of every model, or of none. If absent, of exports"
    " of this package alone.",
)
@click.option(
    "--batching-parameters-file",
    type=click.Path(path_type=Path),
    help="How large batches are, and what they wait for: BatchingParameters in text form.",
)
@click.option(
    "--ssl-config-file",
    type=click.Path(path_type=Path),
    help="TLS on the gRPC port, and client certificates: an SSLConfig in text form.",
)
@click.option(
    "--grpc-channel-arguments",
    default="",
    help="NAME=VALUE,... such as grpc.max_connection_age_ms=2000.",
)
@click.option(
    "--rest-api-timeout-in-ms",
    type=click.IntRange(1),
    default=30_000,
    show_default=True,
    help="A REST request that took longer is answered with 504.",
)
@click.option(
    "--rest-api-num-threads",
    "rest_workers",
    type=click.IntRange(1),
    help="How many REST requests are worked on at once; as many as over gRPC if absent.",
)
@click.option(
    "--monitoring-config-file",
    type=click.Path(path_type=Path),
    help="Whether and where Prometheus metrics are shown: a MonitoringConfig in text form.",
)
@click.option(
    "--auth-token-file",
    type=click.Path(path_type=Path),
    help="Bearer tokens, one a line: requests need one of them.",
)
@click.option(
    "--max-requests-per-second",
    type=click.FloatRange(0, min_open=True),
    help="Of each client: token, or address where there are no tokens.",
)
@click.option(
    "--max-pending-requests",
    "max_pending",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="How many requests may wait on each port; more are refused.",
)
@click.option(
    "--max-request-bytes",
    type=click.IntRange(1),
    default=64 << 20,
    show_default=True,
    help="Longer requests are refused.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="How long running requests are waited for at the end.",
)
@click.option(
    "--lame-duck-seconds",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="How long before that requests are taken, while health says NOT_SERVING.",
)
@_switch("--log-requests", "log_requests", False, "Log each request as JSON, without its text.")
@_switch("--log-query-text", "log_query_text", False, "Log each request with its text.")
@click.option(
    "--tensorflow-intra-op-parallelism",
    "intra_op_threads",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Threads that share one operation; 0 for one a core. Single queries are quickest with 1.",
)
@click.option(
    "--tensorflow-inter-op-parallelism",
    "inter_op_threads",
    type=click.IntRange(0),
    help="Operations that are run at once; 0 for TensorFlow's own choice.",
)
@_switch(
    "--flush-filesystem-caches",
    "flush_filesystem_caches",
    True,
    "Taken for TensorFlow Serving's sake; there are no such caches here.",
)
def command(
    poll_seconds: float,
    max_retries: int,
    load_retry_interval_micros: int,
    warm_up: bool,
    enable_batching: bool | None,
    batching_parameters_file: Path | None,
    rest_api_timeout_in_ms: int,
    auth_token_file: Path | None,
    max_requests_per_second: float | None,
    intra_op_threads: int,
    inter_op_threads: int | None,
    flush_filesystem_caches: bool,
    **server: Any,
) -> None:
    """Serve the newest version of an export, and each newer one as it appears.

    The API is TensorFlow Serving's, and so are the options of the same names; underscores may stand
    for dashes. SIGTERM or Ctrl-C lets running requests finish first.
    """
    from serving.server.access import Access, read_tokens
    from serving.server.batching import batching_options
    from serving.server.model_watcher import LoadOptions
    from serving.server.server import ModelServer, run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    loading = LoadOptions(
        poll_seconds,
        max_retries,
        load_retry_interval_micros / 1e6,
        warm_up,
        batching_options(enable_batching, batching_parameters_file),
    )
    access = Access(
        read_tokens(auth_token_file) if auth_token_file else (), max_requests_per_second
    )
    run_server(
        ModelServer(
            loading=loading,
            access=access,
            rest_timeout_seconds=rest_api_timeout_in_ms / 1e3,
            **server,
        ),
        intra_op_threads,
        inter_op_threads,
    )
