"""What a verb says: progress and prose on stderr or a console, one JSON object on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."
)
stderr = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    stderr.print(text, markup=False, soft_wrap=True)


def emit(result: Mapping[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Prints a verb's result on stdout: as JSON, or as the text made for people."""
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else text())


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields a function of (done, in all)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
