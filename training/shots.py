"""Few-shot draws and splits: seeded, nested, and the same whatever the order of the file.

Order comes from hashes of the seed with the texts (query, item id), never from row numbers: the
same judgements in another order, or in another format, give the same draw. A larger draw starts
with the smaller one, so that a curve over the number of shots compares like with like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from towers.errors import InputError
from training.interactions import Interactions


def draw_shots(
    interactions: Interactions, n_pairs: int, *, seed: int, min_grade: int = 1
) -> Interactions:
    """Draws positive pairs, spread over as many queries as there are.

    Queries stand in a seeded order. First comes one pair of each query, then a second one of each
    query that has one, and so on, each query's pairs in a seeded order of their own. For few shots,
    another query teaches more than another positive of the same one.

    Args:
        interactions: Judged pairs.
        n_pairs: Number of pairs to draw.
        seed: Same seed, same draw; `draw(128)` starts with the rows of `draw(32)`.
        min_grade: Lowest grade of a positive. Judged negatives are no shots.

    Returns:
        The drawn rows, in the order drawn.

    Raises:
        InputError: `n_pairs` is not from 1 to the number of positive pairs.
    """
    positives = interactions.positives(min_grade)
    if not 1 <= n_pairs <= len(positives):
        raise InputError(
            f"{interactions.path}: cannot draw {n_pairs} shots; pairs of grade {min_grade} or more:"
            f" {len(positives)}, queries that have one: {len(positives.queries)}"
        )
    query_hash = _hashes(seed, "query", positives.queries)[positives.query_row]  # [rows]
    items, item = np.unique(positives.item_row, return_inverse=True)
    item_hash = _hashes(seed, "item", positives.catalog.item_ids[items])[item]
    # An item's place differs from query to query, or the same few items would always come first.
    pair_hash = _mix(query_hash ^ _mix(item_hash))
    by_query = np.lexsort((pair_hash, positives.query_row, query_hash))
    query = positives.query_row[by_query]
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    turn = np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))
    drawn = by_query[np.argsort(turn, kind="stable")[:n_pairs]]
    return positives.select_rows(drawn)


def split_by_query(
    interactions: Interactions, fraction: float, *, seed: int
) -> tuple[Interactions, Interactions]:
    """Splits so that no query is on both sides.

    Args:
        interactions: Judged pairs of two queries or more.
        fraction: Share of the queries to hold out, between 0 and 1; rounded to whole queries, at
            least one on each side.
        seed: Same seed, same split.

    Returns:
        (train, held_out), rows in the order they have in `interactions`.

    Raises:
        InputError: There are fewer than two queries, or `fraction` is not between 0 and 1.
    """
    n_queries = len(interactions.queries)
    if not 0 < fraction < 1:
        raise InputError(f"the share of held-out queries must be between 0 and 1, not {fraction}")
    if n_queries < 2:
        raise InputError(
            f"{interactions.path}: cannot hold out queries: two or more are needed, there are"
            f" {n_queries}"
        )
    n_held_out = min(max(round(fraction * n_queries), 1), n_queries - 1)
    # Another hash than that of a draw: the held-out queries are not those drawn first.
    order = np.argsort(_hashes(seed, "split", interactions.queries), kind="stable")
    held_out = np.zeros(n_queries, bool)
    held_out[order[:n_held_out]] = True
    return interactions.select_queries(~held_out), interactions.select_queries(held_out)


def _hashes(seed: int, purpose: str, texts: Iterable[str]) -> np.ndarray:
    """Hashes each text with the seed, uint64 [texts]: the same on every machine and every run."""
    seeded = hashlib.blake2b(f"{seed} {purpose} ".encode(), digest_size=8)

    def digest(text: str) -> bytes:
        one = seeded.copy()
        one.update(text.encode())
        return one.digest()

    return np.frombuffer(b"".join(map(digest, texts)), dtype="<u8").astype(np.uint64)


def _mix(values: np.ndarray) -> np.ndarray:
    """Scrambles uint64 (the finaliser of SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
