"""The command line: ``towers VERB``. The one place that sees towers, training and serving."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from towers import __version__
from towers.cli.interrupt import insistent_interrupts
from towers.errors import InputError

# Before TensorFlow is imported by any verb: its C++ side greets its user with a page of notices.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_INTERRUPTED = 128 + signal.SIGINT

_VERBS = {
    "train": "Adapt towers to a shop's interactions.",
    "update": "Go on from a run with new interactions.",
    "tune": "Search for hyper-parameters by held-out shots.",
    "evaluate": "Measure retrieval quality over the whole catalogue.",
    "encode": "Encode a catalogue of any size with Apache Beam.",
    "export": "Write a SavedModel with its index.",
    "index": "Change and check the items of an export.",
    "rollback": "Put an earlier version back into service.",
    "serve": "Serve an export over gRPC and REST.",
    "query": "Ask a running server.",
    "recommend": "Ask a running server what goes on from a history.",
    "profile": "Say what histories and reviews tell of a user.",
    "report": "Compare methods over numbers of shots, as a page.",
    "calibrate": "Turn scores into click probabilities.",
    "classify": "Sort texts into classes learned from a few examples.",
    "pretrain": "Adapt an encoder's language to texts without labels.",
}


class _Verbs(click.Group):
    """Imports a verb's module when it is called: ``towers --help`` does not wait for TensorFlow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = __import__(f"towers.cli.{cmd_name}", fromlist=["command"])
        return module.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="towers")
def cli() -> None:
    """Few-shot retrieval: a catalogue and a few interactions in, a served model out.

    Wherever a file of data is named, 'products.csv:item_id=sku,title=name' says what its columns
    are called; docs/data.md.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process.

    Exit status 0: done; 1: failed; 2: bad usage or bad input; 130: interrupted (Ctrl-C).
    """

    def action() -> Any:
        with insistent_interrupts():
            return cli.main(arguments, prog_name="towers", standalone_mode=False)

    status = run(action)
    if status == _INTERRUPTED:
        # What was interrupted cleaned up after itself. Libraries that were half imported, or whose
        # threads wait for each other, may never end by themselves.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run(action: Callable[[], Any]) -> int:
    """Runs an action and turns what it raises into a message and an exit status."""
    try:
        status = action()
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # which click takes for an interruption
            return _failed(error.__cause__)
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except click.ClickException as error:
        error.show()
        return 2
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
    except Exception as error:
        return _failed(error)
    return status if isinstance(status, int) else 0


def _failed(error: Exception) -> int:
    if os.environ.get("TOWERS_TRACEBACK"):
        raise error
    click.echo(
        f"Failed: {type(error).__name__}: {error}\n(TOWERS_TRACEBACK=1 shows where this happened.)",
        err=True,
    )
    return 1
