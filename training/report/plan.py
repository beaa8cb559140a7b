"""What a report is asked for: the task, and the draws to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np

from towers import __version__
from towers.errors import InputError
from towers.item_text import ItemTemplate
from training.catalog import Catalog
from training.config import TrainConfig
from training.evaluation import Measure, evaluate
from training.interactions import Interactions
from training.report.cells import TITLES, Cell
from training.search import Run
from training.train import render_items

ZERO_SHOT, BM25, HYBRID, PEER = BASELINES = (
    "zero-shot",
    "bm25",
    "hybrid",
    "sentence-transformers",
)
"""What methods are compared with; the first and the last are systems that are measured, too."""

SHOTS = (0, 8, 32, 128, 512, 2000)
SEEDS = 5
_FEW = 32

_DEPTH = 100  # of a run, for a measure without a cutoff


@dataclass(frozen=True)
class Task:
    """What everything in a report is measured on, and how.

    Args:
        config: settings of every training; its method, shots and seed do not count.
        catalog: the items.
        train: what shots are drawn from.
        test: the judgements of the evaluation.
        measure: name of a measure with a value for each query.
        gains: gain of each grade; None: the grade itself.
        dtype: precision of encoding items.

    Raises:
        InputError: there is no pair to draw, the measure is unknown or has no value for a query, a
            grade lacks a gain, no test query counts, or the item text names an unknown column.
    """

    config: TrainConfig
    catalog: Catalog
    train: Interactions
    test: Interactions
    measure: str = "nDCG@10"
    gains: Mapping[int, float] | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if Measure.parse(self.measure).kind == "Coverage":
            raise InputError(
                f"{self.measure} is one number for all queries; a report compares query by query, "
                "by nDCG@10, R@100, RR@10, AP, Success@10 or P@10"
            )
        self.train.require_positives(self.config.min_grade)
        # Whatever is wrong with either shall be said before hours of work.
        _ = self.item_texts, self.counted

    @property
    def template(self) -> ItemTemplate:
        """How items become text; a report compares towers of texts, without attributes."""
        pattern = self.config.encoder.item_template
        return ItemTemplate(pattern).text if pattern else ItemTemplate.for_columns(self._columns)

    @property
    def _columns(self) -> list[str]:
        return list(self.catalog.table.column_names)

    @cached_property
    def item_texts(self) -> list[str]:
        """The text of every item."""
        return render_items(self.template, self.catalog)

    @cached_property
    def counted(self) -> np.ndarray:
        """bool ``[test queries]``: whether a query has something to find."""
        nothing = np.full((len(self.test.queries), self.depth), -1, np.int64)
        return np.isfinite(self.evaluate(nothing, np.full(nothing.shape, -np.inf, np.float32)))

    @property
    def depth(self) -> int:
        """Items to rank for each query."""
        cutoff = Measure.parse(self.measure).cutoff or _DEPTH
        return min(max(cutoff, TITLES), len(self.catalog))

    def evaluate(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The measure of a ranking.

        Args:
            rows: int64 ``[test queries, depth]``, items from best to worst.
            scores: float32, theirs.

        Returns:
            float64 ``[test queries]``, NaN where a query has nothing to find.
        """
        result = evaluate(
            Run(self.test.queries, rows, scores),
            self.test,
            self.catalog,
            measures=[self.measure],
            gains=self.gains,
            min_grade=self.config.min_grade,
        )
        return result.per_query[self.measure]

    def config_of(self, cell: Cell) -> TrainConfig:
        """The settings of a cell's training."""
        encoder = self.config.encoder.model_copy(
            update={
                "item_template": self.template.pattern,
                "numeric": [],
                "categorical": [],
                "image": False,
            }
        )
        return self.config.model_copy(
            update={
                "encoder": encoder,
                "method": cell.system if cell.shots and cell.system != PEER else ZERO_SHOT,
                "shots": cell.shots or None,
                "seed": cell.seed,
            }
        )

    def identity(self, cell: Cell) -> dict[str, Any]:
        """All that decides what a cell measures: with the same identity it need not be repeated."""
        settings = self.config_of(cell).model_dump(mode="json")
        if settings["method"] == ZERO_SHOT:
            del settings["fit"]
        return {
            "system": cell.system,
            "settings": settings,
            "catalog": self.catalog.sha256,
            "train": self.train.sha256 if cell.shots else None,
            "test": self.test.sha256,
            "measure": self.measure,
            "gains": None if self.gains is None else {str(g): x for g, x in self.gains.items()},
            "precision": self.dtype,
            "version": __version__,
        }


@dataclass(frozen=True)
class Plan:
    """The systems of a report, and how often each is measured.

    Args:
        methods: methods of adaptation; see docs/methods.md.
        shots: numbers of shots; 0 stands for no training.
        seeds: draws for each number of shots above 32; twice as many for fewer.
        baselines: what every method is compared with.

    Raises:
        InputError: something is there twice or not at all, or out of its range.
    """

    methods: tuple[str, ...]
    shots: tuple[int, ...] = SHOTS
    seeds: int = SEEDS
    baselines: tuple[str, ...] = BASELINES

    def __post_init__(self) -> None:
        for name in ("methods", "shots", "baselines"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"{name} {', '.join(map(str, values))}: name each once")
        if not self.methods:
            raise InputError("methods: name one or more")
        known = _literals(TrainConfig.model_fields["method"].annotation)
        if unknown := [name for name in self.methods if name not in known]:
            raise InputError(f"unknown method {unknown[0]!r}; there are {', '.join(known)}")
        if unknown := [name for name in self.baselines if name not in BASELINES]:
            raise InputError(f"unknown baseline {unknown[0]!r}; there are {', '.join(BASELINES)}")
        if not self.counts or min(self.shots) < 0:
            raise InputError(
                f"shots {', '.join(map(str, self.shots))}: expected numbers of pairs, one of them "
                "above 0"
            )
        if self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}, expected 1 or more")

    @property
    def trained(self) -> list[str]:
        """The systems that are adapted to shots."""
        return [*self.methods, *([PEER] if PEER in self.baselines else [])]

    @property
    def counts(self) -> list[int]:
        """The numbers of shots that there is training with, from few to many."""
        return sorted(count for count in self.shots if count)

    def seeds_of(self, shots: int) -> range:
        """The seeds of the draws of so many shots."""
        return range(2 * self.seeds if shots <= _FEW else self.seeds)

    def cells(self) -> list[Cell]:
        """All cells: baselines first, then draw by draw, so that a part of them is a fair part."""
        untrained = [Cell(ZERO_SHOT)] + ([Cell(BM25)] if BM25 in self.baselines else [])
        drawn = [
            Cell(system, shots, seed)
            for seed in range(2 * self.seeds)
            for shots in self.counts
            if seed in self.seeds_of(shots)
            for system in self.trained
        ]
        return untrained + drawn


def _literals(annotation: Any) -> list[str]:
    """The words that a type allows."""
    if isinstance(annotation, str):
        return [annotation]
    return [word for part in get_args(annotation) for word in _literals(part)]
