"""A click head with what it reads: the towers of a run, their lexical weight, columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from towers.errors import InputError
from towers.fingerprint import fingerprint
from towers.retriever import Retriever
from training.heads.click_head import (
    ClickHead,
    PairFeatures,
    fit_click_head,
    query_folds,
)
from training.heads.click_pairs import ClickPairs
from training.heads.cross_validation import Predictor, Quality, cross_validate
from training.heads.head_folder import damaged, read_head, write_head

_KIND = "clicks"


@dataclass(frozen=True)
class ClickModel:
    """A head and what its features are made of.

    Attributes:
        head: the head.
        model: the run folder whose towers score the pairs.
        fingerprint: of these towers, see `towers_fingerprint`.
        lexical_weight: of the lexical score in the final one.
        numeric: columns of numbers beside the scores.
        categorical: columns of names.
        click_column: column of the clicks in the file it was fitted on.
        min_grade: lowest value in it that is a click.
    """

    head: ClickHead
    model: str
    fingerprint: str
    lexical_weight: float
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    click_column: str = "grade"
    min_grade: int = 1

    def save(self, folder: Path) -> None:
        """Writes the head as JSON. The towers are not copied."""
        write_head(folder, _KIND, {**vars(self), "head": self.head.as_dict()})

    @classmethod
    def load(cls, folder: Path) -> ClickModel:
        """Reads what `save` wrote.

        Raises:
            InputError: the folder holds no such head, or it is damaged.
        """
        settings, _ = read_head(folder, _KIND)
        try:
            return cls(
                head=ClickHead.from_dict(settings["head"]),
                model=settings["model"],
                fingerprint=settings["fingerprint"],
                lexical_weight=float(settings["lexical_weight"]),
                numeric=tuple(settings["numeric"]),
                categorical=tuple(settings["categorical"]),
                click_column=settings["click_column"],
                min_grade=int(settings["min_grade"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folder, error) from error

    def require_towers(self, retriever: Retriever, name: str) -> None:
        """Raises `InputError` unless these are the towers that the head was fitted on."""
        if towers_fingerprint(retriever) != self.fingerprint:
            raise InputError(
                f"{name} does not hold the towers that the head was fitted on: name those with "
                "--model, or fit the head anew"
            )


def towers_fingerprint(retriever: Retriever) -> str:
    """SHA-256 of all that decides the cosine of a query and an item."""
    text = retriever.text
    settings = (
        retriever.fingerprint(),
        fingerprint(retriever.model.query_tower, retriever.tokenizer),
        text.query_max_length,
        text.query_prefix,
    )
    return hashlib.sha256(repr(settings).encode()).hexdigest()


def cross_validate_clicks(
    features: PairFeatures,
    clicked: np.ndarray,
    query: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Quality]:
    """Measures a click head on queries that it was not fitted on.

    Args:
        features: of the pairs.
        clicked: bool ``[n]``.
        query: int ``[n]``, the query of each pair.
        weight: floating ``[n]``; 1 each if None.
        folds: 2 or more.
        seed: decides the folds.
        progress: told (folds done, folds in all).

    Returns:
        ``head``, and ``constant``: the share of clicks as the probability of every pair.

    Raises:
        InputError: there are too few queries with a click, or with an item that got none.
    """
    weight = np.ones(len(clicked)) if weight is None else weight

    def head(rows: np.ndarray) -> Predictor:
        fitted = fit_click_head(
            features.select(rows), clicked[rows], query[rows], weight[rows], seed=seed
        )
        return lambda others: both_classes(fitted.probabilities(features.select(others)))

    def constant(rows: np.ndarray) -> Predictor:
        share = np.average(clicked[rows], weights=weight[rows])
        return lambda others: both_classes(np.full(len(others), share))

    splits = query_folds(clicked, query, folds, seed=seed)
    label = clicked.astype(np.int64)
    return {
        "head": cross_validate(head, label, splits, weight=weight, progress=progress),
        "constant": cross_validate(constant, label, splits, weight=weight),
    }


def both_classes(probability: np.ndarray) -> np.ndarray:
    """Probabilities of no click and of a click: ``[n]`` to ``[n, 2]``."""
    return np.stack([1 - probability, probability], axis=1)


def fit_click_model(
    pairs: ClickPairs,
    scores: dict[str, np.ndarray],
    retriever: Retriever,
    *,
    model: str,
    lexical_weight: float,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    click_column: str = "grade",
    min_grade: int = 1,
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ClickModel, dict[str, Quality]]:
    """Tests a click head by cross-validation and fits it on all pairs.

    Args:
        pairs: with clicks.
        scores: see `training.heads.score_features`.
        retriever: the towers that the scores are from.
        model: see `ClickModel`, as the following.
        lexical_weight: likewise.
        numeric: likewise.
        categorical: likewise.
        click_column: likewise.
        min_grade: likewise.
        folds: parts of the queries to test on; 0 for no test.
        seed: decides the folds.
        progress: told (folds done, folds in all).

    Returns:
        The model, and `cross_validate_clicks`, empty without a test.

    Raises:
        InputError: there are no clicks, or nothing else, or too few of either, or a feature cannot
            be had.
    """
    clicked = pairs.require_clicks(click_column)
    features = pairs.features(scores, numeric, categorical)
    quality: dict[str, Quality] = {}
    if folds:
        quality = cross_validate_clicks(
            features,
            clicked,
            pairs.query_row,
            pairs.weight,
            folds=folds,
            seed=seed,
            progress=progress,
        )
    head = fit_click_head(features, clicked, pairs.query_row, pairs.weight, seed=seed)
    fitted = ClickModel(
        head=head,
        model=model,
        fingerprint=towers_fingerprint(retriever),
        lexical_weight=lexical_weight,
        numeric=tuple(numeric),
        categorical=tuple(categorical),
        click_column=click_column,
        min_grade=min_grade,
    )
    return fitted, quality
