"""Choosing an index by catalogue size, measured recall and measured time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import tensorflow as tf

from serving.index.exact import ExactIndex
from serving.index.item_index import ItemIndex, check_k
from serving.index.partitioned import PartitionedIndex
from serving.index.recall import recall, top_scores
from serving.index.scann import TREE_FROM, ScannIndex
from towers.errors import InputError

IndexKind = Literal["auto", "exact", "scann", "partitioned"]

TARGET_RECALL = 0.95
_APPROXIMATE_FROM = 20_000
_SHARES_OF_LEAVES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
_SHARES_OF_PARTITIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_REORDERED_PER_RESULT = (5, 10, 20, 50, 100, 200)
_DIMENSIONS_PER_BLOCK = (2, 4)
_TIMED_QUERIES = 40
_WARMING_QUERIES = 5
_AS_FAST = 0.9  # of exact search's time: less of a gain is none


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
    return kind in ("scann", "partitioned") or (kind == "auto" and item_count >= _APPROXIMATE_FROM)


@dataclass(frozen=True)
class ChosenIndex:
    """An index that has been built, and what it was measured to find.

    Attributes:
        index: the index.
        recall: share of the exact top k it finds; exactly 1 for an exact index.
        queries: number of queries the recall was measured on; 0 for an exact index.
        reason: why this kind, in words.
        milliseconds: what a search for one query took here; None where nothing was timed.
        exact_milliseconds: what exact search took; None likewise.
    """

    index: ItemIndex
    recall: float
    queries: int
    reason: str
    milliseconds: float | None = None
    exact_milliseconds: float | None = None


def choose_index(
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    queries: np.ndarray,
    *,
    kind: IndexKind = "auto",
    k: int = 10,
    target_recall: float = TARGET_RECALL,
    parameters: Mapping[str, int] | None = None,
) -> ChosenIndex:
    """Builds the index that fits a catalogue.

    An approximate index is built in several ways (ScaNN: leaves, bits of a hash). Each is searched
    with its cheapest setting (leaves or partitions searched, candidates reordered) that finds
    `target_recall` of the exact top k, two standard errors to the good; of these the one that
    answers soonest is taken. ``auto`` is exact below 20,000 items, where ScaNN does not reach the
    target, and where exact search takes as little time. Settings are put in order by the memory
    that they read, which is the same on a busy machine; what was built, and exact search, are
    timed.

    Args:
        item_ids: string ``[N]``, distinct and not empty.
        embeddings: item embeddings, float ``[N, d]``.
        queries: embeddings of queries such as will be asked, float ``[Q, d]``; a few hundred
            measure a recall to about one hundredth. Needed where `may_be_approximate` says so.
        kind: ``exact``, ``scann`` and ``partitioned`` are obeyed; ``auto`` chooses.
        k: results for each query.
        target_recall: what an approximate index has to find.
        parameters: of an approximate index that was chosen before: it is built in this way alone,
            and searched with these settings if they still reach the target.

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
        raise InputError("the recall of an approximate index cannot be measured without queries")
    wanted, limit = top_scores(exact, queries), _milliseconds(exact, queries)
    del exact  # an index is as large as the items, with ScaNN twice: one is held at a time

    def tuned(index: ItemIndex, known: Mapping[str, int]) -> _Tuned:
        settings = _settings(index)
        if known:
            settings.insert(0, {name: index.parameters[name] for name in settings[0]})
        found = _tune(index, queries, wanted, target_recall, settings)
        return _Tuned(index.parameters, found, _milliseconds(index, queries))

    best: _Tuned | None = None
    built: ItemIndex | None = None
    for index in _unbuilt(kind, k, len(embeddings), parameters or {}):
        _release(built)
        built = index.index(embeddings, item_ids)
        found = tuned(built, parameters or {})
        if best is None or found.better_than(best, target_recall):
            best = found
    assert best is not None
    if kind == "auto":
        reason = ""
        if best.recall < target_recall:
            reason = f"ScaNN found {best.recall:.3f} of the exact top {k} at most"
        elif best.milliseconds >= _AS_FAST * limit:
            reason = f"exact search is as fast: {limit:.2g} ms, ScaNN {best.milliseconds:.2g} ms"
        if reason:
            _release(built)
            exact = ExactIndex(k)
            exact.index(embeddings, item_ids)
            return ChosenIndex(exact, 1.0, 0, reason, limit, limit)
    assert built is not None
    if built.parameters != best.parameters:  # the best was not the last
        _release(built)
        built = next(_unbuilt(kind, k, len(embeddings), best.parameters))
        built.index(embeddings, item_ids)
        best = tuned(built, best.parameters)
    reason = "as asked" if kind != "auto" else f"recall {target_recall} reached"
    return ChosenIndex(built, best.recall, len(queries), reason, best.milliseconds, limit)


@dataclass(frozen=True)
class _Tuned:
    parameters: dict[str, int]
    recall: float
    milliseconds: float

    def better_than(self, other: _Tuned, target: float) -> bool:
        if min(self.recall, other.recall) < target:
            return self.recall > other.recall
        return self.milliseconds < other.milliseconds


def _unbuilt(
    kind: str, k: int, item_count: int, parameters: Mapping[str, int]
) -> Iterator[ItemIndex]:
    """The ways to build an approximate index of a kind; one alone where it is given."""
    if kind == "partitioned":
        yield PartitionedIndex(k, **parameters)
    elif parameters or item_count < _APPROXIMATE_FROM:
        yield ScannIndex(k, **parameters)
    else:
        root = math.isqrt(item_count)
        # Below some 100,000 items ScaNN's authors advise against a tree, and above against none.
        leaves = (root, 2 * root) if item_count >= TREE_FROM else (0, root)
        for count, block in itertools.product(leaves, _DIMENSIONS_PER_BLOCK):
            yield ScannIndex(k, leaves=count, dimensions_per_block=block)


def _tune(
    index: ItemIndex,
    queries: np.ndarray,
    wanted: np.ndarray,
    target: float,
    settings: Sequence[Mapping[str, int]],
) -> float:
    """Sets the first setting that reaches the target, or else the best; returns its recall."""
    best, best_setting = -1.0, settings[0]
    for setting in settings:
        _use(index, setting)
        found = recall(top_scores(index, queries), wanted)
        mean = float(found.mean())
        if mean - 2 * float(found.std()) / math.sqrt(len(found)) >= target:
            return mean
        if mean > best:
            best, best_setting = mean, setting
    _use(index, best_setting)
    return best


def _settings(index: ItemIndex) -> list[dict[str, int]]:
    """Settings of the search to choose from, those that read the least memory first."""
    if isinstance(index, PartitionedIndex):
        searched = {math.ceil(index.partitions * share) for share in _SHARES_OF_PARTITIONS}
        return [{"partitions_to_search": count} for count in sorted(searched)]
    assert isinstance(index, ScannIndex)
    leaves = {math.ceil(index.leaves * share) for share in _SHARES_OF_LEAVES}
    reorder = {0}
    if index.hashed:
        reorder = {min(index.k * rate, index.item_count) for rate in _REORDERED_PER_RESULT}
    settings = sorted(
        itertools.product(leaves, reorder), key=lambda setting: _bytes_read(index, *setting)
    )
    return [{"leaves_to_search": count, "reorder": rate} for count, rate in settings]


def _bytes_read(scann: ScannIndex, leaves_to_search: int, reorder: int) -> int:
    """What ScaNN reads for a query: centroids, hashes of the searched leaves, reordering."""
    hashes = scann.item_count * scann.hash_bytes
    if scann.leaves:
        hashes = scann.leaves * scann.embedding_dim + hashes * leaves_to_search // scann.leaves
    return hashes + reorder * scann.embedding_dim * 4


def _use(index: ItemIndex, setting: Mapping[str, int]) -> None:
    for name, value in setting.items():
        setattr(index, name, value)


def _milliseconds(index: ItemIndex, queries: np.ndarray) -> float:
    """Median time of a search for one query, as a server would run it."""
    search = tf.function(
        lambda query: index.call(query)[0],
        input_signature=[tf.TensorSpec([None, index.embedding_dim], tf.float32)],
        autograph=False,
    )
    seconds = []
    for number in range(_WARMING_QUERIES + _TIMED_QUERIES):
        row = number % len(queries)
        query = tf.constant(queries[row : row + 1], tf.float32)
        start = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[_WARMING_QUERIES:]))


def _release(index: ItemIndex | None) -> None:
    if isinstance(index, ScannIndex):
        index.release()
