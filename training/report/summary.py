"""What the numbers say, in words."""

from __future__ import annotations

from collections.abc import Sequence

from training.report.cells import View
from training.report.plan import BM25, PEER
from training.report.results import UNTRAINED, Best, PairedTest, Point

VIEWS: dict[View, str] = {
    "dense": "towers alone",
    "hybrid": "towers and words",
    "lexical": "words alone",
}
LABELS: dict[str, str] = {
    "zero-shot": "zero-shot",
    "bm25": "BM25",
    "hybrid": "zero-shot + BM25, no shots",
    "sentence-transformers": "sentence-transformers",
}


def label(view: View, system: str) -> str:
    """What a system is called in running text."""
    if system == BM25:
        return LABELS["bm25"]
    return f"{system} + BM25" if view == "hybrid" else system


def p_value(p: float) -> str:
    """A p-value as it is written: no more digits than it has meaning."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".").replace("1.000", "1")


def summarise(
    points: Sequence[Point], tests: Sequence[PairedTest], best: Sequence[Best]
) -> list[str]:
    """The findings, a sentence or two each."""
    untrained = [test for test in tests if test.baseline in UNTRAINED.values()]
    return [
        *_best(best),
        *_harm(untrained),
        *_worst_draw(points),
        *_words(points, best),
        *_peer(tests),
    ]


def _best(best: Sequence[Best]) -> list[str]:
    """The highest mean of all at each number of shots."""
    said = []
    for shots in sorted({one.point.shots for one in best}):
        winner = max(
            (one for one in best if one.point.shots == shots), key=lambda one: one.point.mean
        )
        point, test = winner.point, winner.test
        sentence = (
            f"Best with {shots:,} shots: {label(point.view, point.system)}, {point.mean:.3f}"
            f"{_between(point)}"
        )
        if test is not None:
            sentence += (
                f"; {_signed(test.difference)} against {LABELS[test.baseline]} ({_verdict(test)})"
            )
        said.append(f"{sentence}.")
    return said


def _harm(tests: Sequence[PairedTest]) -> list[str]:
    """Whether anything is worse than without training."""
    if not tests:
        return []
    worse = sorted(
        (test for test in tests if test.is_significant and test.difference < 0),
        key=lambda test: test.difference,
    )
    if worse:
        each = "; ".join(
            f"{label(test.view, test.system)} with {test.shots:,} shots "
            f"({_signed(test.difference)} against {LABELS[test.baseline]}, {p_value(test.p_holm)})"
            for test in worse
        )
        return [f"Significantly worse than without training: {each}."]
    least = min(tests, key=lambda test: test.difference)
    if least.difference >= 0:
        return ["Nothing did worse than without training, on average."]
    return [
        "Nothing is significantly worse than without training; the largest loss is "
        f"{_signed(least.difference)}, {label(least.view, least.system)} with {least.shots:,} "
        f"shots against {LABELS[least.baseline]} ({p_value(least.p_holm)})."
    ]


def _worst_draw(points: Sequence[Point]) -> list[str]:
    """What the unluckiest draw of any method cost: a user has but one."""
    without = {point.view: point.mean for point in points if not point.shots}
    losses = [
        (min(point.values) - without[point.view], point)
        for point in points
        if point.shots and point.system != PEER and point.view in without
    ]
    if not losses:
        return []
    least, point = min(losses, key=lambda loss: loss[0])
    return [
        f"The worst single draw of all: {label(point.view, point.system)} with {point.shots:,} "
        f"shots, {_signed(least)} against {LABELS[UNTRAINED[point.view]]}."
    ]


def _words(points: Sequence[Point], best: Sequence[Best]) -> list[str]:
    """From how many shots on towers alone are better than words alone."""
    words = next((point for point in points if point.view == "lexical"), None)
    dense = sorted(
        (one.point for one in best if one.point.view == "dense"), key=lambda point: point.shots
    )
    if words is None or not dense:
        return []
    better = [point.mean > words.mean for point in dense]
    if all(better):
        found = "beat it at every number of shots"
    elif not any(better):
        found = "stay below it at every number of shots"
    elif better == sorted(better):
        found = f"beat it from {dense[better.index(True)].shots:,} shots on"
    else:
        those = " and ".join(f"{p.shots:,}" for p, won in zip(dense, better, strict=True) if won)
        found = f"beat it with {those} shots"
    return [f"BM25, without towers, reaches {words.mean:.3f}; the best towers alone {found}."]


def _peer(tests: Sequence[PairedTest]) -> list[str]:
    """How methods compare with sentence-transformers."""
    against = [test for test in tests if test.baseline == PEER]
    if not against:
        return []
    better = sum(test.is_significant and test.difference > 0 for test in against)
    worse = sum(test.is_significant and test.difference < 0 for test in against)
    return [
        f"Compared with {PEER} on the same shots, {len(against)} in all: {better} significantly "
        f"better, {worse} significantly worse."
    ]


def _between(point: Point) -> str:
    if point.interval_95 is None:
        return " (one draw)"
    low, high = point.interval_95
    return f" (95% {low:.3f} to {high:.3f} over {len(point.values)} draws)"


def _verdict(test: PairedTest) -> str:
    return p_value(test.p_holm) + ("" if test.is_significant else ", not significant")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
