"""What a verb says: progress and prose on stderr or a console, one JSON object on stdout."""

from __future__ import annotations

import functools
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
    TaskID,
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
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, one a stage; yields a function of (stage, done, in all)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=stderr) as bars:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def progress_bar(stage: str) -> Iterator[Callable[[int, int], None]]:
    """One progress bar on stderr; yields a function of (done, in all)."""
    with progress_bars() as update:
        yield functools.partial(update, stage)
