"""The learning curves, as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.report.cells import View
from training.report.plan import PEER
from training.report.results import Point, Report
from training.report.summary import LABELS, label

# Matplotlib knows no CSS: it draws in these, and each becomes a variable of the page's style.
_INK, _FAINT, _GRID = "#010101", "#020202", "#030303"
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _GRID: "--grid"}
SERIES = 8
"""Colours that the page's style has for curves."""
_VARIABLES |= {f"#0000{10 + n}": f"--series-{n + 1}" for n in range(SERIES)}
_COLOURS = list(_VARIABLES)[-SERIES:]
# The second set of eight differs by its dashes; and colour alone is no sign for everybody.
_MARKERS, _DASHES = "osD^vPXp", ("-", (0, (4, 1.5)))

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "towers",  # the same figure, the same file
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}
_SIZE = 8.0, 4.5  # inches of 72 units
_LABEL_GAP = 0.058  # of the height: a line of text


@dataclass(frozen=True)
class _EndLabel:
    """A name at the right end of a line."""

    text: str
    colour: str
    height: float


def curves(report: Report, view: View) -> str | None:
    """Quality by number of shots for every system, with 95% bands over draws.

    Returns:
        An ``<svg>`` element; None where nothing was measured.
    """
    adapted = [point for point in report.points if point.shots]
    if all(point.view != view for point in adapted):
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE)
        axes = figure.add_axes((0.085, 0.13, 0.58, 0.83))
        labels = _levels(axes, report, view)
        place = _places(report.shots)
        for number, system in enumerate(dict.fromkeys(point.system for point in adapted)):
            points = [point for point in adapted if (point.view, point.system) == (view, system)]
            if points:  # a system's number is the same in all figures
                labels.append(_curve(axes, points, place, number, _start(report, view)))
        _frame(axes, report, place)
        _write(axes, labels)
        return _svg(figure, view, f"{report.measure} by number of shots, {label(view, 'towers')}")


def _places(shots: Sequence[int]) -> dict[int, float]:
    """Where a number of shots stands: on a scale of doublings, 0 one step left of the others."""
    places = {count: math.log2(count) for count in shots if count}
    first, last = min(places.values()), max(places.values())
    step = (last - first) / (len(places) - 1) if len(places) > 1 else 1.0
    if 0 in shots:
        places[0] = first - step
    return places


def _start(report: Report, view: View) -> Point | None:
    """What every curve starts from: with no shots, all methods are zero-shot."""
    return report.point(view, "zero-shot", 0) if 0 in report.shots else None


def _curve(
    axes: Axes,
    points: list[Point],
    place: dict[int, float],
    number: int,
    start: Point | None,
) -> _EndLabel:
    system = points[0].system
    colour = _FAINT if system == PEER else _COLOURS[number % SERIES]
    dashes = (0, (2, 1.5)) if system == PEER else _DASHES[number // SERIES % 2]
    drawn = [start, *points] if start else points
    x = [place[point.shots] for point in drawn]
    ends = [point.interval_95 or (point.mean, point.mean) for point in drawn]
    axes.fill_between(
        x, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.14, lw=0
    )
    marker = _MARKERS[number % len(_MARKERS)]
    axes.plot(
        x,
        [point.mean for point in drawn],
        color=colour,
        linestyle=dashes,
        linewidth=2,
        marker=marker,
        markersize=6,
        markevery=range(len(drawn) - len(points), len(drawn)),
        zorder=3,
    )
    return _EndLabel(system, colour, points[-1].mean)


def _levels(axes: Axes, report: Report, view: View) -> list[_EndLabel]:
    """Baselines without training: lines across."""
    labels = []
    for baseline in report.baselines:
        level = report.level(baseline)
        if level is None or level.view not in (view, "lexical"):
            continue
        axes.axhline(level.mean, color=_FAINT, linewidth=1.2, linestyle=(0, (1, 2)), zorder=2)
        labels.append(_EndLabel(LABELS[baseline], _FAINT, level.mean))
    return labels


def _frame(axes: Axes, report: Report, place: dict[int, float]) -> None:
    axes.set_xticks([place[count] for count in report.shots if count in place])
    axes.set_xticklabels([f"{count:,}" for count in report.shots if count in place])
    axes.set_xlabel("shots: labelled pairs trained on")
    axes.set_ylabel(report.measure)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.margins(x=0.03, y=0.06)


def _write(axes: Axes, labels: list[_EndLabel]) -> None:
    """Names beside their lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    labels = sorted(labels, key=lambda one: one.height)
    wanted = np.array([(one.height - low) / (high - low) for one in labels])
    for one, at, beside in zip(labels, spread(wanted, _LABEL_GAP), wanted, strict=True):
        axes.plot(
            [1.0, 1.025],
            [beside, at],
            transform=axes.transAxes,
            color=one.colour,
            linewidth=0.9,
            clip_on=False,
        )
        axes.text(
            1.035, at, one.text, color=one.colour, transform=axes.transAxes, va="center_baseline"
        )


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Moves positions apart, as little as possible, in the sense of least squares.

    With ``i * gap`` taken off the i-th position, the nearest places at least a gap apart are an
    isotonic regression (Barlow et al. 1972).

    Args:
        wanted: rising positions, ``[n]``.
        gap: least distance between neighbours.

    Returns:
        float64 ``[n]``.
    """
    from scipy.optimize import isotonic_regression

    offsets = gap * np.arange(len(wanted))
    return isotonic_regression(np.asarray(wanted) - offsets).x + offsets


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an element of a page: colours are the page's, ids are its own."""
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The size is the page's to say; the shape stays.
    text = re.sub(r'(<svg [^>]*?)\bwidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)\bheight="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
