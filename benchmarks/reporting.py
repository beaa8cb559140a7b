"""What the benchmarks share: where data is, one table on stdout, one JSON file."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from towers.item_text import ItemTemplate
from towers.packages import package_versions
from training.catalog import Catalog
from training.interactions import Interactions

RESULTS = Path(__file__).parent / "results"
HOMEDEPOT_TEXT = ItemTemplate("{title}")
ESCI_TEXT = ItemTemplate("{title}[ {brand}][ {color}][ {bullet_points}][ {description}]")


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the option every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=Path("benchmark_data"), help="data folder")
    return parser


def homedepot(data: Path) -> tuple[Catalog, list[str]]:
    """The catalogue and its item texts."""
    catalog = Catalog.read(data / "homedepot" / "catalog.csv.gz")
    return catalog, _texts(HOMEDEPOT_TEXT, catalog)


def esci(data: Path) -> tuple[Catalog, list[str]]:
    """The catalogue and its item texts."""
    catalog = Catalog.read(data / "esci" / "catalog.jsonl.gz")
    return catalog, _texts(ESCI_TEXT, catalog)


def _texts(template: ItemTemplate, catalog: Catalog) -> list[str]:
    return template.render({name: catalog.column(name) for name in template.columns})


def judgements(data: Path, name: str, split: str, catalog: Catalog) -> Interactions:
    """One split of a data set."""
    return Interactions.read(data / name / f"{split}.csv.gz", catalog)


def report(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    path: Path | None = None,
    **settings: Any,
) -> None:
    """Prints the rows as one table and writes them with the circumstances as JSON.

    Args:
        name: of the benchmark.
        title: of the table.
        rows: the table.
        path: the file to write; ``results/NAME.json`` if None.
        **settings: kept beside the rows.
    """
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_shown(row[column]) for column in rows[0]))
    Console(width=140).print(table)
    RESULTS.mkdir(exist_ok=True)
    record = {
        "benchmark": name,
        "rows": rows,
        "settings": settings,
        "packages": package_versions(),
        "processor": _processor(),
        "cores": _cores(),
        "commit": _commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = path or RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
