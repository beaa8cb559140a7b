"""What an update learns from, what it is compared on, and how far it goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towers.errors import InputError
from training.catalog import Catalog
from training.continuation import Material, Step, choose_step
from training.interactions import Interactions

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Rows = list[tuple[str, str, int]]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "catalog.csv").write_text(
        "item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(6))
    )
    return Catalog.read(tmp_path / "catalog.csv")


def judged(catalog: Catalog, rows: Rows) -> Interactions:
    path = Path(catalog.path).with_name("judged.csv")
    lines = [f"{query},{item},{grade}\n" for query, item, grade in rows]
    path.write_text("query,item_id,grade\n" + "".join(lines))
    return Interactions.read(path, catalog)


def as_dict(interactions: Interactions) -> dict[tuple[str, str], int]:
    return {
        (query, item): grade
        for query, items in interactions.qrels().items()
        for item, grade in items.items()
    }


def rows_of(*names: str) -> st.SearchStrategy[Rows]:
    row = st.tuples(
        st.sampled_from([f"{name}{n}" for name in names for n in range(12)]),
        st.sampled_from([f"i{n}" for n in range(6)]),
        st.integers(0, 2),
    )
    return st.lists(row, min_size=1, max_size=60)


@QUICK
@given(before=rows_of("a", "b"), after=rows_of("b", "c"))
def test_the_newer_judgement_counts(catalog: Catalog, before: Rows, after: Rows) -> None:
    older, newer = judged(catalog, before), judged(catalog, after)
    expected = as_dict(older) | as_dict(newer)
    both = older.followed_by(newer)
    assert as_dict(both) == expected
    assert len(both) == len(expected)
    assert set(both.queries) == {query for query, _ in expected}
    left = older.without_pairs(newer)
    assert as_dict(left) == {p: g for p, g in as_dict(older).items() if p not in as_dict(newer)}
    gone = set(newer.queries)
    parts = older.of_queries(gone), older.without_queries(gone)
    assert as_dict(parts[0]) == {p: g for p, g in as_dict(older).items() if p[0] in gone}
    assert as_dict(parts[1]) == {p: g for p, g in as_dict(older).items() if p[0] not in gone}


@QUICK
@given(
    before=rows_of("a", "b"),
    held=rows_of("h"),
    after=rows_of("b", "c", "h"),
    known=st.booleans(),
    unseen=st.booleans(),
    least=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_no_query_is_learned_from_and_asked(
    catalog: Catalog,
    before: Rows,
    held: Rows,
    after: Rows,
    known: bool,
    unseen: bool,
    least: int,
    seed: int,
) -> None:
    old, new = judged(catalog, before), judged(catalog, after)
    kept = judged(catalog, held) if known else None
    material = Material.of(old, kept, new, share=0.25, least=least, unseen=unseen, seed=seed)
    learned = {*material.old.queries, *material.new.queries}
    asked = set(material.held_out.queries)
    assert not learned & asked
    if kept is not None:  # once held out, always held out
        assert set(kept.queries) <= asked
    if not unseen:  # what was trained on says nothing of forgetting
        assert not set(old.queries) & asked - set([] if kept is None else kept.queries)
    # Every judgement is the newest one of its pair.
    newest = as_dict(old) | ({} if kept is None else as_dict(kept)) | as_dict(new)
    for part in (material.old, material.new, material.held_out):
        assert as_dict(part).items() <= newest.items()
    for part in (material.old, material.new):
        assert (part.grade > 0).all()
    assert as_dict(material.new).items() <= as_dict(new).items()
    assert not as_dict(material.old).keys() & as_dict(new).keys()
    # New queries are those that nobody knew before.
    is_old = dict(zip(material.held_out.queries, material.is_old.tolist(), strict=True))
    before_all = {*old.queries, *([] if kept is None else kept.queries)}
    assert all(query in before_all for query, known_before in is_old.items() if known_before)
    assert all(query in new.queries for query, known_before in is_old.items() if not known_before)
    # All new positives are learned from, but those of queries that are asked.
    expected = {pair: g for pair, g in as_dict(new).items() if g and pair[0] not in asked}
    assert as_dict(material.new) == expected


def test_how_many_are_held_out(catalog: Catalog) -> None:
    def of(old: int, new: int, least: int, kept: int = 0, unseen: bool = True) -> tuple[int, int]:
        material = Material.of(
            judged(catalog, [(f"old {n}", "i0", 1) for n in range(old)]),
            judged(catalog, [(f"kept {n}", "i1", 1) for n in range(kept)]) if kept else None,
            judged(catalog, [(f"new {n}", "i2", 1) for n in range(new)]),
            share=0.2,
            least=least,
            unseen=unseen,
        )
        return int(material.is_old.sum()), int((~material.is_old).sum())

    assert of(100, 100, 16) == (20, 20)
    assert of(100, 100, 16, unseen=False) == (0, 20)
    assert of(40, 77, 16) == (16, 0)  # .2 * 77 is nearer to 15
    assert of(31, 80, 16) == (0, 16)  # 16 of 31 would leave fewer to learn from
    assert of(100, 10, 4, kept=4) == (4, 0)  # those that earlier updates held out are enough
    assert of(100, 10, 4, kept=3) == (23, 0)


def test_pairs_to_train_on(catalog: Catalog) -> None:
    old = judged(catalog, [(f"old {n}", "i0", 1) for n in range(40)])
    new = judged(catalog, [(f"new {n}", "i2", 2) for n in range(10)])
    material = Material(old, new, new, np.zeros(0, bool))
    for replay, count in ((0.0, 0), (0.5, 5), (1.0, 10), (9.0, 40)):
        pairs, replayed = material.pairs(replay, seed=1)
        assert replayed == count
        assert len(pairs) == 10 + count
        assert as_dict(new).items() <= as_dict(pairs).items()
    first, again, other = (material.pairs(1.0, seed=seed)[0] for seed in (1, 1, 2))
    assert as_dict(first) == as_dict(again) != as_dict(other)
    nothing = new.select_rows(np.zeros(0, np.int64))
    with pytest.raises(InputError, match=r"judged\.csv: no new pair to learn from"):
        Material(old, nothing, new, np.zeros(0, bool)).pairs(1.0, seed=0)


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ([(0.60, 0.40), (0.61, 0.45), (0.60, 0.50)], 1.0),  # the best on new queries
        ([(0.60, 0.40), (0.60, 0.45), (0.58, 0.50)], 0.5),  # of those that keep the old
        ([(0.60, 0.40), (0.60, 0.39), (0.60, 0.38)], 0.0),  # none finds more
        ([(0.60, 0.40), (0.58, 0.45), (0.57, 0.50)], 0.5),  # none keeps the old: the least loss
        ([(0.60, 0.40), (0.57, 0.45), (0.58, 0.50)], 1.0),
        ([(0.60, None), (0.60, None), (0.60, None)], 1.0),  # nobody to ask for more
        ([(0.60, None), (0.60, None), (0.59, None)], 0.5),
        ([(None, 0.40), (None, 0.45), (None, 0.30)], 0.5),
    ],
)
def test_how_far_to_go(scores: list[tuple[float | None, float | None]], share: float) -> None:
    steps = [Step(place / 2, old, new) for place, (old, new) in enumerate(scores)]
    assert steps[choose_step(steps, 0.005)].share == share
