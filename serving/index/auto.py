"""Choosing an index by catalogue size and measured recall."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from serving.index.exact import ExactIndex
from serving.index.item_index import ItemIndex, check_k
from serving.index.recall import recall, top_scores
from serving.index.scann import ScannIndex
from towers.errors import InputError

IndexKind = Literal["auto", "exact", "scann"]

TARGET_RECALL = 0.95
_APPROXIMATE_FROM = 20_000
_SHARES_OF_LEAVES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
_REORDERED_PER_RESULT = (5, 10, 20, 50, 100, 200)


def check_choice(kind: str, k: int) -> None:
    """Checks what `choose_index` will be asked for, ahead of work that takes long.

    Raises:
        InputError: an unknown kind, or a `k` that is not a positive integer.
    """
    if kind not in get_args(IndexKind):
        raise InputError(f"index must be one of {', '.join(get_args(IndexKind))}, not {kind!r}")
    check_k(k)


def may_be_approximate(kind: str, item_count: int) -> bool:
    """Whether `choose_index` will want queries to measure a recall on."""
    return kind == "scann" or (kind == "auto" and item_count >= _APPROXIMATE_FROM)


@dataclass(frozen=True)
class ChosenIndex:
    """An index that has been built, and what it was measured to find.

    Attributes:
        index: the index.
        recall: share of the exact top k it finds; exactly 1 for an exact index.
        queries: number of queries the recall was measured on; 0 for an exact index.
        reason: why this kind, in words.
    """

    index: ItemIndex
    recall: float
    queries: int
    reason: str


def choose_index(
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    queries: np.ndarray,
    *,
    kind: IndexKind = "auto",
    k: int = 10,
    target_recall: float = TARGET_RECALL,
) -> ChosenIndex:
    """Builds the index that fits a catalogue.

    A ScaNN index is searched with the cheapest setting (leaves searched, candidates reordered) that
    finds `target_recall` of the exact top k, two standard errors to the good; none needs it built
    again. ``auto`` is exact below 20,000 items, and where no setting reaches the target or the one
    that does reads as much memory for a query as exact search. That is counted, not timed, so that
    the same input gives the same index on a busy machine.

    Args:
        item_ids: string ``[N]``, distinct and not empty.
        embeddings: item embeddings, float ``[N, d]``.
        queries: embeddings of queries such as will be asked, float ``[Q, d]``; a few hundred
            measure a recall to about one hundredth. Needed where `may_be_approximate` says so.
        kind: ``exact`` and ``scann`` are obeyed; ``auto`` chooses.
        k: results for each query.
        target_recall: what ScaNN has to find.

    Returns:
        The index and its recall, which for kind ``scann`` may be under the target.

    Raises:
        InputError: an unknown kind, nothing to measure with, or what `ItemIndex.index` refuses.
    """
    check_choice(kind, k)
    exact = ExactIndex(k)
    exact.index(embeddings, item_ids)
    if not may_be_approximate(kind, exact.item_count):
        reason = "as asked" if kind == "exact" else f"fewer than {_APPROXIMATE_FROM:,} items"
        return ChosenIndex(exact, 1.0, 0, reason)
    if not len(queries):
        raise InputError("the recall of a ScaNN index cannot be measured without queries")

    scann = ScannIndex(k)
    scann.index(embeddings, item_ids)
    found = _tune(scann, exact, queries, target_recall)
    if kind == "scann":
        return ChosenIndex(scann, found, len(queries), "as asked")
    if found < target_recall:
        scann.release()
        return ChosenIndex(exact, 1.0, 0, f"ScaNN found {found:.3f} of the exact top {k} at most")
    if _scann_cost(scann, scann.leaves_to_search, scann.reorder) >= _exact_cost(scann):
        scann.release()
        return ChosenIndex(exact, 1.0, 0, "ScaNN would read as much memory as exact search")
    return ChosenIndex(scann, found, len(queries), f"recall {target_recall} reached")


def _tune(scann: ScannIndex, exact: ExactIndex, queries: np.ndarray, target: float) -> float:
    """Sets the cheapest setting that reaches the target, or else the best; returns its recall."""
    leaves = sorted({math.ceil(scann.leaves * share) for share in _SHARES_OF_LEAVES})
    reorder = [0]
    if scann.hashed:
        reorder = sorted({min(scann.k * r, scann.item_count) for r in _REORDERED_PER_RESULT})
    settings = sorted(
        itertools.product(leaves, reorder), key=lambda setting: _scann_cost(scann, *setting)
    )
    wanted = top_scores(exact, queries)
    best, best_setting = -1.0, settings[0]
    for setting in settings:
        scann.leaves_to_search, scann.reorder = setting
        found = recall(top_scores(scann, queries), wanted)
        mean = float(found.mean())
        if mean - 2 * float(found.std()) / math.sqrt(len(found)) >= target:
            return mean
        if mean > best:
            best, best_setting = mean, setting
    scann.leaves_to_search, scann.reorder = best_setting
    return best


def _exact_cost(index: ItemIndex) -> int:
    """Bytes that exact search reads for a query."""
    return index.item_count * index.embedding_dim * 4


def _scann_cost(scann: ScannIndex, leaves_to_search: int, reorder: int) -> int:
    """Bytes that ScaNN reads for a query: centroids, hashes of the searched leaves, reordering."""
    if not scann.hashed:
        return _exact_cost(scann)
    hashes = scann.item_count * scann.hash_bytes
    if scann.leaves:
        hashes = scann.leaves * scann.embedding_dim + hashes * leaves_to_search // scann.leaves
    return hashes + reorder * scann.embedding_dim * 4
