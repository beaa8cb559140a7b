from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.retriever import Retriever, TextSettings
from training.batches import PairBatches, plan_batches, plan_epoch
from training.catalog import Catalog
from training.interactions import Interactions

QUERY_OF_PAIR = st.lists(st.integers(0, 12), min_size=1, max_size=80)


def plan(query: list[int], batch_size: int, seed: int, **options: bool) -> list[np.ndarray]:
    length = np.random.default_rng(0).integers(3, 60, len(query))
    rng = np.random.default_rng(seed)
    return plan_batches(np.array(query), length, batch_size, rng, **options)


@given(query=QUERY_OF_PAIR, batch_size=st.integers(2, 16), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=300)
def test_every_pair_once_and_no_query_twice(query: list[int], batch_size: int, seed: int) -> None:
    batches = plan(query, batch_size, seed)
    assert sorted(np.concatenate(batches)) == list(range(len(query)))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    for batch in batches:
        assert len({query[pair] for pair in batch}) == len(batch)
    # As few as can be.
    most = max(query.count(q) for q in query)
    assert len(batches) == max(-(-len(query) // batch_size), most)


@given(query=QUERY_OF_PAIR, batch_size=st.integers(2, 16), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_queries_may_repeat(query: list[int], batch_size: int, seed: int) -> None:
    batches = plan(query, batch_size, seed, repeat_queries=True)
    assert sorted(np.concatenate(batches)) == list(range(len(query)))
    assert len(batches) == -(-len(query) // batch_size)


def test_one_pair_more_than_a_batch_is_not_left_alone() -> None:
    assert sorted(len(batch) for batch in plan(list(range(33)), 32, 0)) == [16, 17]


def test_equal_generators_equal_batches_and_others_not() -> None:
    query = [i // 2 for i in range(100)]
    a, b, c = plan(query, 8, 1), plan(query, 8, 1), plan(query, 8, 2)
    assert [x.tolist() for x in a] == [x.tolist() for x in b]
    assert [x.tolist() for x in a] != [x.tolist() for x in c]


def test_which_pairs_meet_changes() -> None:
    def meetings(seed: int) -> set[frozenset[int]]:
        return {frozenset(batch.tolist()) for batch in plan(list(range(256)), 8, seed)}

    assert len(meetings(1) & meetings(2)) <= 1


@pytest.mark.parametrize("per_query", [1, 3])
def test_batches_of_like_length_save_padding(per_query: int) -> None:
    rng = np.random.default_rng(3)
    length = rng.integers(4, 128, 1024)
    query = np.arange(1024) // per_query

    def padded_tokens(batches: list[np.ndarray]) -> int:
        return sum(len(batch) * int(length[batch].max()) for batch in batches)

    planned = padded_tokens(plan_batches(query, length, 32, np.random.default_rng(0)))
    shuffled = padded_tokens(np.array_split(rng.permutation(1024), 32))
    assert planned < 0.75 * shuffled
    assert planned < 1.25 * length.sum()


@pytest.mark.parametrize(
    ("n_pairs", "batch_size", "min_steps", "steps", "times"),
    [
        (8, 32, 16, 4, 4),  # a batch of 8, four times and no more
        (32, 32, 16, 16, 4),  # four of 8, four times
        (128, 32, 16, 16, 4),  # four of 32, four times
        (300, 32, 16, 20, 2),  # ten of 30, twice
        (512, 32, 16, 16, 1),
        (2000, 32, 16, 63, 1),
        (32, 4, 16, 16, 2),  # smaller batches, where they are asked for
        (32, 32, 1, 1, 1),
    ],
)
def test_few_pairs_come_several_times(
    n_pairs: int, batch_size: int, min_steps: int, steps: int, times: int
) -> None:
    batches = plan_epoch(
        np.arange(n_pairs),
        np.ones(n_pairs, int),
        batch_size,
        np.random.default_rng(0),
        min_steps=min_steps,
    )
    assert len(batches) == steps
    assert max(map(len, batches)) <= batch_size
    assert np.bincount(np.concatenate(batches)).tolist() == [times] * n_pairs
    assert all(len(set(batch.tolist())) == len(batch) for batch in batches)


@pytest.fixture
def pairs(tmp_path: Path, tiny_catalog: dict[str, list[str]]) -> Interactions:
    columns = ["item_id", "title"]
    rows = zip(*(tiny_catalog[name] for name in columns), strict=True)
    lines = [",".join(columns), *(f'{item},"{title}"' for item, title in rows)]
    # k3 reads like k1, word for word.
    lines.append('k3,"Electric kettle 1.7 l"')
    (tmp_path / "catalog.csv").write_text("\n".join(lines), "utf-8")
    judged = ["query,item_id,weight", "kettle,k1,2", "kettle,k2,1", "coffee,k2,1", "coffee,m1,1"]
    judged += ["red mug,m2,0.5", "rake,g1,1", "water,g2,1", "water hose for the garden,g2,1"]
    judged += ["boil,k3,1", "boil,k1,1"]
    (tmp_path / "pairs.csv").write_text("\n".join(judged), "utf-8")
    catalog = Catalog.read(tmp_path / "catalog.csv")
    return Interactions.read(tmp_path / "pairs.csv", catalog)


@pytest.fixture
def make_batches(
    make_tiny_retriever: Callable[..., Retriever], pairs: Interactions
) -> Callable[..., PairBatches]:
    retriever = make_tiny_retriever(text=TextSettings("{title}", 6, 12, query_prefix="red "))

    def make(**options: object) -> PairBatches:
        texts = pairs.catalog.column("title")
        return PairBatches(retriever, pairs, texts, **{"batch_size": 4, "seed": 7, **options})

    return make


def numpy_batches(batches: PairBatches) -> list[tuple]:
    return list(batches.dataset().as_numpy_iterator())


def test_contents_equal_direct_tokenisation(
    make_batches: Callable[..., PairBatches], pairs: Interactions
) -> None:
    batches = make_batches()
    tokenizer, titles = batches.retriever.tokenizer, pairs.catalog.column("title")
    seen = []
    found = numpy_batches(batches)
    for (x, _, weight), numbers in zip(found, batches.plan(0), strict=True):
        for row, pair in enumerate(numbers):
            query = pairs.queries[pairs.query_row[pair]]
            title = titles[pairs.item_row[pair]]
            for side, text, limit in (("query", "red " + query, 6), ("item", title, 12)):
                direct = tokenizer(tf.constant([text]), limit)["token_ids"][0].numpy()
                real = x[side]["padding_mask"][row] == 1
                np.testing.assert_array_equal(x[side]["token_ids"][row][real], direct)
                assert real[: len(direct)].all()
                assert (x[side]["token_ids"][row][~real] == tokenizer.pad_id).all()
            assert weight[row] == pairs.weight[pair]
            seen.append((query, title))
        for side in ("query", "item"):  # no wider than the longest text
            assert x[side]["padding_mask"].sum(axis=1).max() == x[side]["token_ids"].shape[1]
    assert len(seen) == len(pairs)


def test_ids_are_those_of_texts(
    make_batches: Callable[..., PairBatches], pairs: Interactions
) -> None:
    titles = pairs.catalog.column("title")
    batches = make_batches()
    for (x, _, _), numbers in zip(numpy_batches(batches), batches.plan(0), strict=True):
        texts = [titles[row] for row in pairs.item_row[numbers]]
        same = np.array(texts)[:, None] == np.array(texts)
        np.testing.assert_array_equal(x["item_ids"][:, None] == x["item_ids"], same)
        for row, pair in enumerate(numbers):
            known = {
                titles[item]
                for query, item in zip(pairs.query_row, pairs.item_row, strict=True)
                if query == pairs.query_row[pair]
            }
            listed = x["positive_ids"][row]
            assert len(set(listed[listed >= 0])) == len(known)
            for other, text in enumerate(texts):
                assert (x["item_ids"][other] in listed) == (text in known)


def test_an_epochs_order_depends_on_seed_and_number_alone(
    make_batches: Callable[..., PairBatches],
) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in make_batches(seed=seed).plan(epoch)]

    assert order(7, 3) == order(7, 3)
    assert order(7, 3) != order(7, 4)
    assert order(7, 3) != order(8, 3)


def test_the_dataset_follows_the_epoch(make_batches: Callable[..., PairBatches]) -> None:
    batches = make_batches()
    dataset = batches.dataset()
    epochs = []
    for epoch in (0, 1, 1):
        batches.epoch = epoch
        epochs.append([x["item_ids"].tolist() for x, _, _ in dataset.as_numpy_iterator()])
    assert epochs[0] != epochs[1]
    assert epochs[1] == epochs[2]
    assert int(dataset.cardinality()) == len(epochs[0]) == len(epochs[1]) == 3


def test_batches_are_kept_by_their_dataset_alone(
    make_batches: Callable[..., PairBatches],
) -> None:
    batches = make_batches()
    dataset = batches.dataset().take(1)
    seen = weakref.ref(batches)
    del batches
    assert len(list(dataset)) == 1
    assert seen() is not None
    del dataset
    gc.collect()
    assert seen() is None


def test_catalog_negatives(make_batches: Callable[..., PairBatches], pairs: Interactions) -> None:
    batches = make_batches(catalog_negatives=5)
    titles, tokenizer = pairs.catalog.column("title"), batches.retriever.tokenizer
    id_of = {}
    for (x, _, _), numbers in zip(numpy_batches(batches), batches.plan(0), strict=True):
        for item, text_id in zip(pairs.item_row[numbers], x["item_ids"], strict=True):
            id_of[titles[item]] = text_id
    tokens_of = {
        tuple(tokenizer(tf.constant([title]), 12)["token_ids"][0].numpy()): title
        for title in titles
    }
    drawn = set()
    for x, _, _ in numpy_batches(batches):
        assert x["negatives"]["token_ids"].shape[0] == x["negative_ids"].shape[0] == 5
        token_ids, masks = x["negatives"]["token_ids"], x["negatives"]["padding_mask"]
        for ids, mask, text_id in zip(token_ids, masks, x["negative_ids"], strict=True):
            title = tokens_of[tuple(ids[mask == 1])]
            assert text_id == id_of.get(title, text_id)
            drawn.add(title)
    assert len(drawn) > 4
    first, again = numpy_batches(batches), numpy_batches(batches)
    for (a, _, _), (b, _, _) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["negative_ids"], b["negative_ids"])
    batches.epoch = 1
    other = numpy_batches(batches)
    assert any(
        a[0]["negative_ids"].tolist() != b[0]["negative_ids"].tolist()
        for a, b in zip(first, other, strict=True)
    )


def test_a_batch_is_what_the_model_takes(make_batches: Callable[..., PairBatches]) -> None:
    batches = make_batches(catalog_negatives=3)
    model = batches.retriever.model
    x, _, weight = next(iter(batches.dataset()))
    loss = model.compute_loss(x=x, y_pred=model(x), sample_weight=weight)
    assert np.isfinite(float(loss))


def test_one_pair(make_batches: Callable[..., PairBatches], pairs: Interactions) -> None:
    batches = make_batches()
    one = dataclasses.replace(batches, pairs=pairs.select_rows(np.array([0])))
    ((x, _, _),) = numpy_batches(one)
    query = "red " + pairs.queries[pairs.query_row[0]]
    direct = batches.retriever.tokenizer(tf.constant([query]), 6)["token_ids"]
    np.testing.assert_array_equal(x["query"]["token_ids"], direct)
