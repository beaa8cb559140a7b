"""Layers that nothing trains are passed once: the same loss and gradient, and less work a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from towers.adaptation import TopLayers
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.two_tower import TwoTower
from training import frozen_states
from training.augmentation import Augmenter
from training.batches import PairBatches
from training.catalog import Catalog
from training.config import AugmentConfig
from training.interactions import Interactions

MakeEncoder = Callable[..., TextEncoder]
QUERIES = ["boil water", "filter coffee slowly at home", "hot cup", "red", "rake"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list[str]]) -> object:
    folder: Path = tmp_path_factory.mktemp("pairs")
    lines = [f"{number},{title}\n" for number, title in enumerate(tiny_catalog["title"])]
    (folder / "items.csv").write_text("item_id,title\n" + "".join(lines))
    rows = [f"{query},{number}\n" for number, query in enumerate(QUERIES)]
    (folder / "pairs.csv").write_text("query,item_id\n" + "".join(rows))
    return Interactions.read(folder / "pairs.csv", Catalog.read(folder / "items.csv"))


@pytest.fixture
def retriever(tiny_retriever: Retriever, make_tiny_encoder: MakeEncoder) -> Retriever:
    tower = make_tiny_encoder(layers=2).with_adaptation(TopLayers(1))
    return replace(tiny_retriever, model=TwoTower(tower))


def batch(retriever: Retriever, pairs: Interactions, **options: object) -> dict:
    texts = [title or "" for title in pairs.catalog.column("title")]
    ((x, _, _),) = list(PairBatches(retriever, pairs, texts, batch_size=8, **options).dataset())
    return x


def loss_and_gradient(model: TwoTower, x: dict) -> tuple[float, list[np.ndarray]]:
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=x, y_pred=model(x, training=True), training=True)
    weights = [weight.value for weight in model.trainable_weights]
    return float(loss), [tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, weights)]


@pytest.mark.parametrize("chunks", [1, 2])
def test_loss_and_gradient_are_those_of_the_whole_network(
    retriever: Retriever, pairs: Interactions, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = batch(retriever, pairs)
    assert set(kept["query"]) == set(kept["item"]) == {"states", "padding_mask"}
    monkeypatch.setattr(frozen_states, "_MOST_BYTES", 0)
    tokens = batch(retriever, pairs)
    assert set(tokens["query"]) == {"token_ids", "padding_mask"}

    loss, gradient = loss_and_gradient(retriever.model, tokens)
    model = TwoTower(retriever.model.query_tower, chunks=chunks)
    kept_loss, kept_gradient = loss_and_gradient(model, kept)
    assert kept_loss == pytest.approx(loss, abs=1e-5)
    assert len(gradient) == len(kept_gradient) > 0
    assert max(np.abs(one).max() for one in gradient) > 1e-3
    for one, other in zip(kept_gradient, gradient, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_step_does_not_go_through_the_frozen_layers(
    retriever: Retriever, pairs: Interactions
) -> None:
    tower = retriever.model.query_tower
    states = batch(retriever, pairs)["query"]
    expected = tower(states).numpy()
    lower = tower.backbone.transformer_layers[0]
    for weight in [*lower.weights, tower.backbone.token_embedding.embeddings]:
        weight.assign(np.full(weight.shape, np.nan))
    np.testing.assert_array_equal(tower(states), expected)


def test_changed_queries_and_perturbed_tokens_go_through_all_layers(
    retriever: Retriever, pairs: Interactions
) -> None:
    augmentation = Augmenter.from_config(AugmentConfig(typos=1.0), pairs.queries)
    x = batch(retriever, pairs, augmentation=augmentation)
    assert set(x["query"]) == {"token_ids", "padding_mask"}
    assert set(x["item"]) == {"states", "padding_mask"}
    moved = replace(retriever, model=TwoTower(retriever.model.query_tower, fgm=1.0))
    x = batch(moved, pairs)
    assert set(x["query"]) == set(x["item"]) == {"token_ids", "padding_mask"}


def test_all_layers_but_a_frozen_item_tower(
    tiny_retriever: Retriever, make_tiny_encoder: MakeEncoder, pairs: Interactions
) -> None:
    plain = replace(tiny_retriever, model=TwoTower(make_tiny_encoder(layers=2)))
    assert "token_ids" in batch(plain, pairs)["query"]
    # Nothing is below these two but embeddings.
    query = make_tiny_encoder(layers=2).with_adaptation(TopLayers(2))
    both = replace(tiny_retriever, model=TwoTower(query, make_tiny_encoder(layers=2)))
    assert "token_ids" in batch(both, pairs)["item"]
