"""Negatives from the catalogue, the anchor, and training with both: NumPy from the rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from towers.cli.lexical import lexical_scorer
from towers.errors import InputError
from towers.item_text import ItemTemplate
from towers.losses import AdditiveMarginSoftmax, GradedSoftmax
from towers.retriever import Retriever
from training.batches import PairBatches
from training.catalog import Catalog
from training.checkpoints import Checkpoints
from training.config import FitConfig, Method, TrainConfig
from training.fit import adapt
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer
from training.methods import trainable_copy
from training.negatives import CatalogNegatives, Remine, limit
from training.pair_vectors import encode_pairs
from training.train import train

Make = Callable[..., Retriever]

NOISE = 3e-3  # of float16 vectors, made in bfloat16 where the machine has it

RECIPE = FitConfig(
    epochs=2, min_steps=1, batch_size=8, learning_rate=1e-3, held_out=0.0, mixed_precision="float32"
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list]) -> Interactions:
    """Ten queries over eight items and a ninth with the title of the first."""
    folder = tmp_path_factory.mktemp("shop")
    ids, titles = [*tiny_catalog["item_id"], "twin"], [*tiny_catalog["title"]]
    titles.append(titles[0])
    rows = [f'{i},"{t}"' for i, t in zip(ids, titles, strict=True)]
    (folder / "catalog.csv").write_text("\n".join(["item_id,title", *rows]), "utf-8")
    words = ["boil water", "filter coffee", "hot mug", "red cup", "rake", "hose garden", "cat"]
    words += ["torch kettle", "garden", "kettle for coffee"]
    rows = [f"{query},{ids[n % 8]},{1 + n % 2}" for n, query in enumerate(words)]
    rows += ["rake,g2,1", "garden,m1,0"]
    (folder / "i.csv").write_text("\n".join(["query,item_id,grade", *rows]), "utf-8")
    return Interactions.read(folder / "i.csv", Catalog.read(folder / "catalog.csv"))


@pytest.fixture(scope="module")
def texts(pairs: Interactions) -> list[str]:
    return list(pairs.catalog.column("title"))


@pytest.fixture(scope="module")
def lexical(pairs: Interactions) -> LexicalScorer:
    return lexical_scorer(ItemTemplate("{title}"), pairs.catalog)


@pytest.fixture(scope="module")
def cosines(tiny_retriever: Retriever, pairs: Interactions, texts: list[str]) -> np.ndarray:
    return tiny_retriever.encode_queries(pairs.queries) @ tiny_retriever.encode_items(texts).T


def find(
    retriever: Retriever, pairs: Interactions, texts: list[str], **options: Any
) -> CatalogNegatives:
    positives = pairs.positives()
    vectors = encode_pairs(retriever, positives.queries, texts)
    return CatalogNegatives(positives, texts, vectors, known=pairs, **options)


@pytest.mark.parametrize("source", ["towers", "lexical", "both"])
def test_pools_follow_the_rule(
    source: str,
    tiny_retriever: Retriever,
    pairs: Interactions,
    texts: list[str],
    lexical: LexicalScorer,
    cosines: np.ndarray,
) -> None:
    negatives = find(tiny_retriever, pairs, texts, hard=2, source=source, lexical=lexical)
    words = lexical(pairs.queries)
    score = {"towers": cosines, "lexical": words, "both": (cosines + words) / 2}[source]
    positives = pairs.positives()
    sizes = set()
    for number, (query, own) in enumerate(
        zip(positives.query_row.tolist(), positives.item_row.tolist(), strict=True)
    ):
        row = score[pairs.queries.index(positives.queries[query])]
        good = {texts[i] for i in positives.item_row[positives.query_row == query]}
        found = set(negatives.pool(number).tolist())
        for item, text in enumerate(texts):
            first = texts.index(text) == item  # the ninth item has the text of the first
            below = row[own] - 0.05 * abs(row[own]) - row[item]
            wanted = below > 0 and first and text not in good
            if source == "lexical":
                wanted = wanted and row[item] > 0
            if abs(below) > NOISE:
                assert (item in found) == wanted
        # The hardest first.
        assert (np.diff(row[negatives.pool(number)]) <= NOISE).all()
        sizes.add(len(found))
    assert len(sizes) > 1


def test_only_the_hardest_are_kept(tiny_retriever: Retriever, pairs: Interactions) -> None:
    texts = list(pairs.catalog.column("title")) + [
        f"rake {a} {b}" for a in "abcde" for b in "abcde"
    ]
    texts += [f"hose {a} {b}" for a in "abcde" for b in "abcde"]
    positives = pairs.positives()
    negatives = find(tiny_retriever, pairs, texts, hard=2)
    cosine = tiny_retriever.encode_queries(positives.queries) @ tiny_retriever.encode_items(texts).T
    fullest = max(range(len(positives)), key=lambda pair: len(negatives.pool(pair)))
    pool = negatives.pool(fullest)
    row = cosine[positives.query_row[fullest]]
    own = row[positives.item_row[fullest]]
    others = [i for i in range(len(texts)) if row[i] <= own - 0.05 * abs(own) - NOISE]
    assert len(pool) == 30 < len(others)
    assert row[pool].min() >= np.sort(row[others])[-31] - NOISE


def test_limit_by_hand() -> None:
    np.testing.assert_allclose(limit(np.array([1.0, 0.5, 0.0, -0.4])), [0.95, 0.475, 0.0, -0.42])


def test_draws(tiny_retriever: Retriever, pairs: Interactions, texts: list[str]) -> None:
    negatives = find(tiny_retriever, pairs, texts, hard=2, cached=5)
    rng = np.random.default_rng(0)
    batch = np.array([0, 3, 5])
    pools = [set(negatives.pool(pair).tolist()) for pair in batch]
    own = {texts[item] for item in pairs.positives().item_row[batch]}
    drawn = {tuple(negatives.draw(batch, rng)) for _ in range(20)}
    assert len(drawn) > 1
    for rows in drawn:
        assert set(rows) <= set.union(*pools)
        assert not {texts[row] for row in rows} & own
        assert list(rows) == sorted(set(rows))
    cached = negatives.draw_cached(rng)
    assert len(set(cached)) == 5
    assert len(find(tiny_retriever, pairs, texts, cached=1000).draw_cached(rng)) == 9


GRADED = """query,item_id,grade
boil water,k1,3
boil water,m1,3
boil water,g1,2
boil water,twin,2
boil water,g2,0
hot mug,m2,1
hot mug,p 1,0
rake,g2,1
"""


def test_judged_negatives_by_hand(
    tmp_path: Path, tiny_retriever: Retriever, pairs: Interactions, texts: list[str]
) -> None:
    (tmp_path / "graded.csv").write_text(GRADED, "utf-8")
    known = Interactions.read(tmp_path / "graded.csv", pairs.catalog)

    def of_each_query(lowest: int) -> dict[str, list[str]]:
        positives = known.positives(lowest)
        vectors = encode_pairs(tiny_retriever, positives.queries, texts)
        negatives = CatalogNegatives(positives, texts, vectors, judged=9, known=known)
        assert negatives.encoded
        found = {}
        for query in range(len(positives.queries)):
            batch = np.flatnonzero(positives.query_row == query)
            rows = negatives.draw(batch, np.random.default_rng(0))
            # Whatever their score, they count for their query.
            assert not negatives.too_near(batch, rows).any()
            found[positives.queries[query]] = pairs.catalog.item_ids[rows].tolist()
        return found

    # The twin has the text of a positive, a rake's lower judgements there are none.
    assert of_each_query(3) == {"boil water": ["g1", "g2"]}
    assert of_each_query(1) == {"boil water": ["g2"], "hot mug": ["p 1"], "rake": []}
    rakes = known.select_queries([known.queries.index("rake")])
    vectors = encode_pairs(tiny_retriever, rakes.queries, texts)
    assert not CatalogNegatives(rakes, texts, vectors, judged=9, known=rakes).encoded


def test_what_is_too_near(
    tiny_retriever: Retriever, pairs: Interactions, texts: list[str], cosines: np.ndarray
) -> None:
    negatives = find(tiny_retriever, pairs, texts, cached=9)
    positives = pairs.positives()
    batch = np.arange(len(positives))
    near = negatives.too_near(batch, np.arange(9))
    for pair, (query, own) in enumerate(
        zip(positives.query_row.tolist(), positives.item_row.tolist(), strict=True)
    ):
        row = cosines[query]
        good = {texts[i] for i in positives.item_row[positives.query_row == query]}
        for item in range(9):
            margin = row[item] - (row[own] - 0.05 * abs(row[own]))
            if texts[item] in good:
                assert near[pair, item]
            elif abs(margin) > NOISE:
                assert near[pair, item] == (margin > 0)
    assert 0 < near.sum() < near.size


def test_a_batch_with_all_of_it(
    tiny_retriever: Retriever, pairs: Interactions, texts: list[str], cosines: np.ndarray
) -> None:
    positives = pairs.positives()
    negatives = find(tiny_retriever, pairs, texts, hard=1, cached=4)
    batches = PairBatches(
        tiny_retriever,
        positives,
        texts,
        batch_size=4,
        catalog_negatives=2,
        negatives=negatives,
        anchor=negatives.vectors,
        grades=True,
    )
    row_of_text = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    for (x, _, _), plan in zip(batches.dataset(), batches.plan(0), strict=True):
        ids = np.concatenate([x["item_ids"], x["negative_ids"], x["cached_ids"]])
        size, extra = len(plan), len(ids) - len(plan)
        assert len(x["negatives"]["token_ids"]) == len(x["negative_ids"]) >= 2
        assert x["cached"].shape == (4, 32)
        queries = positives.query_row[plan]
        # The first rows of equal texts have the numbers of the texts here.
        assert list(row_of_text.values()) == list(range(8))
        np.testing.assert_allclose(x["teacher_scores"], cosines[queries][:, ids], atol=NOISE)
        np.testing.assert_allclose(
            x["cached"], tiny_retriever.encode_items(texts)[x["cached_ids"]], atol=1e-3
        )
        assert x["ignored"].shape == (size, size + extra)
        assert not x["ignored"][:, :size].numpy().any()
        for row, query in enumerate(queries.tolist()):
            known = {
                int(ids_): int(grade)
                for ids_, grade in zip(
                    x["positive_ids"][row].numpy(), x["positive_grades"][row].numpy(), strict=True
                )
                if ids_ >= 0
            }
            judged = positives.query_row == query
            assert known == dict(
                zip(positives.item_row[judged].tolist(), positives.grade[judged], strict=True)
            )
        y = tiny_retriever.model(x)
        assert y["item"].shape[0] == len(ids)
        assert np.isfinite(float(tiny_retriever.model.compute_loss(x=x, y_pred=y, training=False)))


def test_mining_anew(
    tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions, texts: list[str]
) -> None:
    retriever, other = make_tiny_retriever(seed=1), make_tiny_retriever(seed=2)
    negatives = find(retriever, pairs, texts, hard=2)
    start = negatives.vectors

    def now() -> bool:
        fresh = other.encode_items(texts)
        return bool(np.abs(negatives.vectors.of_items(np.arange(9)) - fresh).max() < 1e-2)

    checkpoints = Checkpoints(tmp_path, other, None, patience=1)
    callback = Remine(negatives, checkpoints, 2, items=True)
    for epoch, expected in [(0, False), (1, False), (2, True)]:
        checkpoints.losses = [0.5] * epoch
        callback.on_epoch_begin(epoch)
        assert now() is expected
    pools = find(other, pairs, texts, hard=2)
    for pair in range(len(pairs.positives())):
        assert sorted(negatives.pool(pair)) == sorted(pools.pool(pair))
    # A run that was taken up after three epochs looks with the towers of the second, and goes on
    # with its own; a frozen item tower is not asked.
    third = make_tiny_retriever(seed=3)
    other.model.save_weights(tmp_path / "epoch-2.weights.h5")
    third.model.save_weights(tmp_path / "epoch-3.weights.h5")
    own = third.model.get_weights()
    negatives = find(retriever, pairs, texts, hard=2)
    checkpoints = Checkpoints(tmp_path, third, None, patience=1)
    checkpoints.losses = [0.5] * 3
    Remine(negatives, checkpoints, 2, items=False).on_epoch_begin(3)
    np.testing.assert_array_equal(negatives.vectors.items, start.items)
    np.testing.assert_allclose(
        negatives.vectors.queries, other.encode_queries(pairs.positives().queries), atol=1e-6
    )
    for weight, before in zip(third.model.get_weights(), own, strict=True):
        np.testing.assert_array_equal(weight, before)


# Training


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("full", {"hard_negatives": 2, "hard_negatives_from": "both", "remine": 1, "anchor": 0.5}),
        ("lora", {"cached_negatives": 6, "towers": "query", "loss": "margin", "fgm": 0.1}),
        pytest.param(*("full", {"judged_negatives": 1, "anchor": 0.1}), marks=pytest.mark.slow),
        ("full", {"judged_negatives": 2, "hard_negatives": 1, "cached_negatives": 3}),
        ("bitfit", {"loss": "graded", "accumulate": 3, "catalog_negatives": 2, "anchor": 0.1}),
    ],
)
def test_training_with_them(
    method: Method,
    options: dict,
    tmp_path: Path,
    make_tiny_retriever: Make,
    pairs: Interactions,
    texts: list[str],
    lexical: LexicalScorer,
) -> None:
    retriever = make_tiny_retriever()
    result = adapt(
        retriever,
        pairs.positives(),
        texts,
        RECIPE.model_copy(update=options),
        method=method,
        folder=tmp_path,
        judgements=pairs,
        lexical=lexical,
    )
    assert len(result.losses) == 2
    assert np.isfinite(result.losses).all()
    queries = [one.encode_queries(["red mug"]) for one in (retriever, result.retriever)]
    assert np.abs(queries[0] - queries[1]).max() > 1e-4
    if options.get("towers") == "query":
        assert result.retriever.fingerprint() == retriever.fingerprint()


def test_a_judged_negative_moves_away(
    tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions, texts: list[str]
) -> None:
    """Beside the same training without it, an item judged 0 loses on the positive."""
    (tmp_path / "graded.csv").write_text(GRADED, "utf-8")
    known = Interactions.read(tmp_path / "graded.csv", pairs.catalog)
    row_of = {item_id: row for row, item_id in enumerate(pairs.catalog.item_ids)}

    def lead(judged: int) -> float:
        recipe = RECIPE.model_copy(update={"judged_negatives": judged, "epochs": 8})
        towers = adapt(
            make_tiny_retriever(),
            known.positives(),
            texts,
            recipe,
            folder=tmp_path / str(judged),
            judgements=known,
        ).retriever
        items = towers.encode_items([texts[row_of["m2"]], texts[row_of["p 1"]]])
        good, bad = items @ towers.encode_queries(["hot mug"])[0]
        return float(good - bad)

    assert lead(1) > lead(0) + 0.01


def test_an_anchor_holds(
    tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions, texts: list[str]
) -> None:
    retriever = make_tiny_retriever()
    before = retriever.encode_queries(pairs.queries) @ retriever.encode_items(texts).T

    def moved(anchor: float) -> float:
        recipe = RECIPE.model_copy(update={"anchor": anchor, "epochs": 6})
        folder = tmp_path / str(anchor)
        towers = adapt(retriever, pairs.positives(), texts, recipe, folder=folder).retriever
        after = towers.encode_queries(pairs.queries) @ towers.encode_items(texts).T
        return float(np.abs(after - before).mean())

    assert moved(100.0) < 0.6 * moved(0.0)


def test_losses_by_name(tiny_retriever: Retriever) -> None:
    def loss(**options: Any) -> Any:
        return trainable_copy(tiny_retriever.model, "full", FitConfig(**options)).embedding_loss

    margin = loss(loss="margin", margin=0.3, symmetric=False)
    assert isinstance(margin, AdditiveMarginSoftmax)
    assert (margin.margin, margin.symmetric) == (0.3, False)
    assert isinstance(loss(loss="graded"), GradedSoftmax)


# What cannot be


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ({"remine": 2}, "remine needs hard_negatives or cached_negatives"),
        ({"accumulate": 9, "batch_size": 8}, "accumulate is 9, more parts than the batch has pair"),
        ({"loss": "triplet"}, "fit.loss: Input should be 'softmax', 'margin' or 'graded'"),
        ({"hard_negatives": 31}, "fit.hard_negatives: Input should be less than or equal to 30"),
        ({"hard_negatives_from": "bm25"}, "Input should be 'towers', 'lexical' or 'both'"),
        ({"fgm": -1.0}, "fit.fgm"),
        ({"anchor": -1.0}, "fit.anchor"),
    ],
)
def test_wrong_settings(fit: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig.read(None, fit=fit)


def test_towers_without_dropout(
    tmp_path: Path, tiny_retriever: Retriever, pairs: Interactions, texts: list[str]
) -> None:
    with pytest.raises(InputError, match="r_drop compares two passes with dropout; the encoder"):
        adapt(tiny_retriever, pairs.positives(), texts, FitConfig(r_drop=1.0), folder=tmp_path)


def test_words_that_are_not_there(
    tmp_path: Path, tiny_retriever: Retriever, pairs: Interactions, texts: list[str]
) -> None:
    recipe = RECIPE.model_copy(update={"hard_negatives": 1, "hard_negatives_from": "lexical"})
    with pytest.raises(InputError, match='hard_negatives_from = "lexical" needs the lexical score'):
        adapt(tiny_retriever, pairs.positives(), texts, recipe, folder=tmp_path)


@pytest.mark.parametrize("method", ["linear", "zero-shot"])
def test_methods_without_a_gradient(
    method: Method, tmp_path: Path, tiny_preset: str, pairs: Interactions
) -> None:
    config = TrainConfig.read(
        None,
        method=method,
        encoder={"preset": tiny_preset, "query_max_length": 16, "item_max_length": 32},
        fit={"fgm": 0.1, "anchor": 1.0, "cached_negatives": 4},
    )
    with pytest.raises(InputError, match="no use for cached_negatives, anchor, fgm: choose"):
        train(config, pairs.catalog, pairs, tmp_path / "run")
    assert not (tmp_path / "run").exists()
