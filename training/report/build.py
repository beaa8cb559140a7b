"""From a task and a plan to a folder with the report."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from towers.checkpoint import resolve_preset
from towers.errors import InputError
from training.atomic_file import atomic_file
from training.interactions import Interactions
from training.report.cells import Cell, CellStore, Measurement
from training.report.measuring import Measurer
from training.report.page import render
from training.report.plan import Plan, Task
from training.report.results import Report, Results
from training.report.summary import VIEWS, summarise
from training.stages import Stages
from training.train import LexicalIndexer

PAGE, DATA = "report.html", "report.json"
_CELLS, _WORK = "cells", "work"


def build_report(
    task: Task,
    plan: Plan,
    output: Path,
    *,
    lexical: LexicalIndexer,
    command: str = "",
    notes: Sequence[str] = (),
    measure: bool = True,
    progress: Stages | None = None,
    told: Callable[[str], None] | None = None,
) -> Report:
    """Measures what is not measured yet, and writes page and JSON.

    Every cell is kept as soon as it is finished: a report that was stopped goes on where it was
    when it is asked for again, and one asked for with more draws measures those alone.

    Args:
        task: data and settings.
        plan: systems, shots and draws.
        output: the folder; new, or that of a report.
        lexical: makes the lexical score.
        command: what the reader would have to type for the same.
        notes: what the reader should know beforehand.
        measure: if False, what is finished is reported as it is.
        progress: told about the progress.
        told: told a line a measured cell.

    Returns:
        What the page shows.

    Raises:
        InputError: the folder is taken, there are too few pairs for the shots, a training refuses
            or diverges, or nothing is finished and nothing shall be measured.
    """
    _require_shots(task, plan)
    _require_report_or_nothing(output)
    store = CellStore(output / _CELLS)
    cells = plan.cells()
    identities = {cell: task.identity(cell) for cell in cells}
    measured = {
        cell: found for cell in cells if (found := store.read(cell, identities[cell])) is not None
    }
    if measure:
        resolve_preset(task.config_of(Cell("zero-shot")).encoder.preset)  # may be refused
        (output / _CELLS).mkdir(parents=True, exist_ok=True)
        measurer = Measurer(task, lexical, progress)
        for cell in cells:
            if progress is not None:
                progress("Measuring", len(measured), len(cells))
            if cell in measured:
                continue
            work = output / _WORK / store.path(cell, identities[cell]).stem
            try:
                measured[cell] = measurer.measure(cell, work)
            except InputError as error:
                raise InputError(f"{cell}: {error}") from error
            store.write(cell, measured[cell])
            if told is not None:
                told(f"{_line(task, cell, measured[cell])} [{len(measured)} of {len(cells)}]")
        shutil.rmtree(output / _WORK, ignore_errors=True)
    if not measured:
        raise InputError(f"{output} holds no finished measurement of these data and settings")
    report = _report(task, plan, measured, command, notes)
    with atomic_file(output / DATA) as partial:
        partial.write_text(report.model_dump_json(indent=1) + "\n", "utf-8")
    with atomic_file(output / PAGE) as partial:
        partial.write_text(render(report), "utf-8")
    return report


def _require_shots(task: Task, plan: Plan) -> None:
    there = len(task.train.positives(task.config.min_grade))
    if max(plan.shots) > there:
        raise InputError(
            f"{task.train.path}: cannot draw {max(plan.shots)} shots; pairs of grade "
            f"{task.config.min_grade} or more: {there}"
        )


def _require_report_or_nothing(output: Path) -> None:
    # Hidden files do no harm; a kill may have left one of `atomic_file`.
    taken = output.exists() and (not output.is_dir() or any(output.glob("[!.]*")))
    if taken and not (output / _CELLS).is_dir():
        raise InputError(f"{output} exists and is no report: name another --output")


def _line(task: Task, cell: Cell, measurement: Measurement) -> str:
    """What was measured, for people."""
    means = []
    for view, ranking in measurement.views.items():
        values = [value for value in ranking.values if value is not None]
        means.append(f"{sum(values) / len(values):.3f} by {VIEWS[view]}")
    spent = "" if measurement.seconds is None else f", {measurement.seconds:.0f} s"
    return f"{cell}: {task.measure} {', '.join(means)}{spent}"


def _report(
    task: Task,
    plan: Plan,
    measured: Mapping[Cell, Measurement],
    command: str,
    notes: Sequence[str],
) -> Report:
    results = Results(task, plan, measured)
    return Report(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        measure=task.measure,
        data={
            "catalog": {
                "path": task.catalog.path,
                "sha256": task.catalog.sha256,
                "items": len(task.catalog),
            },
            "train": _described(task.train)
            | {"positive_pairs": len(task.train.positives(task.config.min_grade))},
            "test": _described(task.test) | {"counted": int(task.counted.sum())},
        },
        summary=summarise(results.points, results.tests, results.best),
        notes=[*notes, *_notes(task, plan, measured)],
        shots=sorted(plan.shots),
        baselines=list(plan.baselines),
        best=results.best,
        points=results.points,
        tests=results.tests,
        examples=results.examples,
        costs=results.costs,
        settings={
            "measure": task.measure,
            "gains": task.gains,
            "precision": task.dtype,
            "methods": plan.methods,
            "baselines": plan.baselines,
            "seeds": {str(shots): len(plan.seeds_of(shots)) for shots in plan.counts},
            "training": task.config_of(Cell("zero-shot")).model_dump(
                mode="json", exclude={"method", "shots", "seed"}
            ),
        },
        machine=_machine(),
        packages=_versions(one.packages for one in measured.values()),
        cells=(len(measured), len(plan.cells())),
    )


def _described(interactions: Interactions) -> dict[str, Any]:
    return {
        "path": interactions.path,
        "sha256": interactions.sha256,
        "judgements": len(interactions),
        "queries": len(interactions.queries),
    }


def _notes(task: Task, plan: Plan, measured: Mapping[Cell, Measurement]) -> list[str]:
    notes = []
    if missing := len(plan.cells()) - len(measured):
        notes.append(
            f"Not finished: {missing:,} of {len(plan.cells()):,} measurements are missing."
        )
    known = set(task.train.queries)
    seen = sum(query in known for query in task.test.queries)
    if seen:
        notes.append(
            f"Careful: {seen:,} of {len(task.test.queries):,} test queries are also among the "
            "queries trained on, which flatters every method that learns."
        )
    left_out = len(task.counted) - int(task.counted.sum())
    if left_out:
        notes.append(f"{left_out:,} test queries have nothing to find and are left out.")
    interrupted = sum(cell.shots > 0 and measured[cell].seconds is None for cell in measured)
    if interrupted:
        notes.append(
            f"{interrupted:,} trainings were interrupted and taken up; their seconds and memory do "
            "not count."
        )
    return notes


def _versions(packages: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    versions: dict[str, set[str]] = {}
    for of_one in packages:
        for name, version in of_one.items():
            versions.setdefault(name, set()).add(version)
    return {name: sorted(found) for name, found in sorted(versions.items())}


def _machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or "unknown processor",
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
    }
