"""Columns of a catalogue that go into an export, for filters and results."""

from __future__ import annotations

from collections.abc import Iterable

from training.catalog import Catalog


def item_columns(catalog: Catalog, names: Iterable[str]) -> dict[str, list[str | float | None]]:
    """The named columns: `price` as numbers, all others as text.

    Raises:
        InputError: there is no such column.
    """
    columns: dict[str, list[str | float | None]] = {}
    for name in names:
        texts = catalog.column(name)  # which knows what is there, and says so
        columns[name] = catalog.table.column(name).to_pylist() if name == "price" else list(texts)
    return columns
