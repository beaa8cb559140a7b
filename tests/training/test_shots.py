"""Properties of draws and splits: seeded, nested, spread over queries, blind to row order."""

from __future__ import annotations

import csv
import hashlib
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.catalog import Catalog
from training.interactions import Interactions
from training.shots import draw_shots, split_by_query

Pair = tuple[str, str, int]


def make(pairs: list[Pair]) -> Interactions:
    """Reads judgements from a file with the rows in the given order."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "catalog.csv"
        catalog.write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(9)))
        path = Path(folder) / "rows.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("query", "item_id", "grade"), *pairs])
        return Interactions.read(path, Catalog.read(catalog))


def as_pairs(interactions: Interactions) -> list[Pair]:
    ids = interactions.catalog.item_ids
    return [
        (interactions.queries[query], ids[item], grade)
        for query, item, grade in zip(
            interactions.query_row.tolist(),
            interactions.item_row.tolist(),
            interactions.grade.tolist(),
            strict=True,
        )
    ]


JUDGED = st.dictionaries(
    st.tuples(
        st.sampled_from(["mug", "tray", "pan", "küche"]), st.sampled_from(["i0", "i3", "i8"])
    ),
    st.integers(0, 2),
    min_size=1,
).map(lambda judged: [(query, item, grade) for (query, item), grade in judged.items()])
SEEDS = st.integers(-(2**70), 2**70)


@settings(max_examples=80, deadline=None)
@given(JUDGED, SEEDS, st.randoms(use_true_random=False), st.integers(1, 2))
def test_draws(pairs: list[Pair], seed: int, random, min_grade: int) -> None:
    positives = [pair for pair in pairs if pair[2] >= min_grade]
    shuffled = random.sample(pairs, len(pairs))
    whole, again = make(pairs), make(shuffled)
    if not positives:
        with pytest.raises(InputError):
            draw_shots(whole, 1, seed=seed, min_grade=min_grade)
        return
    everything = as_pairs(draw_shots(whole, len(positives), seed=seed, min_grade=min_grade))
    assert sorted(everything) == sorted(positives)
    for n in range(1, len(positives) + 1):
        shots = draw_shots(again, n, seed=seed, min_grade=min_grade)
        # Nested, seeded, and the same for rows in another order.
        assert as_pairs(shots) == everything[:n]
        # No query gets another pair while one with pairs left has fewer.
        drawn = Counter(query for query, _, _ in as_pairs(shots))
        available = Counter(query for query, _, _ in positives)
        for query in available:
            assert drawn[query] >= min(max(drawn.values()) - 1, available[query])
        assert shots.queries == list(dict.fromkeys(query for query, _, _ in everything[:n]))


@settings(max_examples=80, deadline=None)
@given(JUDGED, SEEDS, st.randoms(use_true_random=False), st.floats(0.01, 0.99))
def test_splits(pairs: list[Pair], seed: int, random, fraction: float) -> None:
    whole = make(pairs)
    n_queries = len(whole.queries)
    if n_queries < 2:
        with pytest.raises(InputError, match="two or more are needed, there are 1"):
            split_by_query(whole, fraction, seed=seed)
        return
    train, held_out = split_by_query(whole, fraction, seed=seed)
    assert not set(train.queries) & set(held_out.queries)
    assert sorted(as_pairs(train) + as_pairs(held_out)) == sorted(pairs)
    assert len(held_out.queries) in range(1, n_queries)
    assert abs(len(held_out.queries) - fraction * n_queries) <= 1
    other_order = make(random.sample(pairs, len(pairs)))
    assert set(split_by_query(other_order, fraction, seed=seed)[1].queries) == set(held_out.queries)


def test_other_seeds_draw_and_split_otherwise() -> None:
    whole = make([(f"query {n}", f"i{n % 9}", 1) for n in range(60)])
    draws = {tuple(draw_shots(whole, 10, seed=seed).queries) for seed in range(20)}
    assert len(draws) == 20
    splits = {frozenset(split_by_query(whole, 0.2, seed=seed)[1].queries) for seed in range(20)}
    assert len(splits) == 20


def test_draws_are_fair() -> None:
    """Each query comes first, and each pair of a query, about equally often over the seeds."""
    pairs = [(f"q{query}", f"i{item}", 1) for query in range(4) for item in range(5)]
    whole = make(pairs)
    first = Counter(as_pairs(draw_shots(whole, 1, seed=seed))[0] for seed in range(4000))
    counts = np.array([first[pair] for pair in pairs])  # 200 expected for each, deviation 13.8
    assert counts.min() > 200 - 5 * 13.8
    assert counts.max() < 200 + 5 * 13.8


def test_queries_do_not_share_their_first_item() -> None:
    pairs = [(f"q{query}", f"i{item}", 1) for query in range(50) for item in range(9)]
    items = Counter(item for _, item, _ in as_pairs(draw_shots(make(pairs), 50, seed=0)))
    assert len(items) == 9


def test_a_draw_stays_what_it_was() -> None:
    """Draws are part of a run's record: they must not change with a release or a machine."""
    whole = make([(f"query {n}", f"i{n % 9}", 1) for n in range(20)])

    def in_order(purpose: str) -> list[str]:
        def place(query: str) -> int:
            digest = hashlib.blake2b(f"7 {purpose} {query}".encode(), digest_size=8).digest()
            return int.from_bytes(digest, "little")

        return sorted(whole.queries, key=place)

    assert draw_shots(whole, 20, seed=7).queries == in_order("query")
    assert set(split_by_query(whole, 0.2, seed=7)[1].queries) == set(in_order("split")[:4])
    assert in_order("query")[:3] == ["query 3", "query 5", "query 13"]


def test_too_many_shots() -> None:
    whole = make([("mug", "i0", 1), ("mug", "i1", 2), ("pan", "i1", 0), ("pan", "i2", 1)])
    with pytest.raises(InputError) as caught:
        draw_shots(whole, 4, seed=0)
    message = "cannot draw 4 shots; pairs of grade 1 or more: 3, queries that have one: 2"
    assert message in str(caught.value)
    assert whole.path in str(caught.value)
    with pytest.raises(InputError, match="of grade 2 or more: 1, queries that have one: 1"):
        draw_shots(whole, 2, seed=0, min_grade=2)
    for n in (0, -1):
        with pytest.raises(InputError, match=f"cannot draw {n} shots"):
            draw_shots(whole, n, seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    whole = make([("mug", "i0", 1), ("pan", "i2", 1)])
    with pytest.raises(InputError, match="between 0 and 1"):
        split_by_query(whole, fraction, seed=0)
