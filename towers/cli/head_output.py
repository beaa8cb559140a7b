"""What the verbs with heads have in common: the folder they write, predictions, measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from training.heads.measures import Repeated

_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "auc": "AUC",
    "log_loss": "log loss",
    "ece": "calibration error",
}


def require_options(
    context: click.Context, when: str, *, needed: Sequence[str] = (), barred: Sequence[str] = ()
) -> None:
    """Refuses a call that lacks an option its mode needs, or gives one its mode does not have.

    Args:
        context: of the call; only options that were given on the command line count.
        when: names the mode, for the message.
        needed: names of parameters.
        barred: names of parameters.

    Raises:
        click.UsageError: it names the option.
    """
    option = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    given = [
        name
        for name in option
        if name and context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    ]
    for name in needed:
        if name not in given:
            raise click.UsageError(f"{option[name]} is needed {when}", context)
    for name in barred:
        if name in given:
            raise click.UsageError(f"{option[name]} has no effect {when}", context)


def require_new_folder(path: Path) -> None:
    """Refuses an output folder that holds something."""
    if path.exists() and (not path.is_dir() or any(path.glob("[!.]*"))):
        raise InputError(f"{path} exists: name another --output, or remove it")


def require_csv(path: Path) -> None:
    """Refuses an output file that is no CSV file."""
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise InputError(f"--output {path}: predictions are written to a file named *.csv")


def write_predictions(
    path: Path, table: pa.Table, rows: Sequence[int], columns: Mapping[str, Sequence[Any]]
) -> None:
    """Writes a table as CSV, with predictions in further columns.

    Args:
        path: the file.
        table: the rows as they were read.
        rows: those that have a prediction; the others' cells stay empty.
        columns: predictions of these rows by name.

    Raises:
        InputError: the table has a column of such a name.
    """
    import pyarrow as pa
    import pyarrow.csv

    from training.atomic_file import atomic_file

    whole = {name: pa.array(_texts(table.column(name))) for name in table.column_names}
    for name, values in columns.items():
        if name in whole:
            raise InputError(f"the input has a column {name!r} already: rename it, or leave it out")
        cells: list[Any] = [None] * len(table)
        for row, value in zip(rows, values, strict=True):
            cells[row] = value
        whole[name] = pa.array(cells)
    with atomic_file(path) as partial:
        pyarrow.csv.write_csv(pa.table(whole), partial)


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_pylist()]


def measures_line(measures: Mapping[str, Repeated | float]) -> str:
    """Measures in a line, with half the width of the interval where there is one."""
    parts = []
    for name, value in measures.items():
        if isinstance(value, float):
            parts.append(f"{_TITLES[name]} {value:.3f}")
        else:
            spread = (
                "" if value.interval_95 is None else f" ± {value.interval_95[1] - value.mean:.3f}"
            )
            parts.append(f"{_TITLES[name]} {value.mean:.3f}{spread}")
    return ", ".join(parts)
