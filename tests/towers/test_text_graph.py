"""Towers in a graph against the same towers called directly, text by text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from towers import TextEncoder, Tokenizer, TwoTower
from towers.retriever import Retriever, TextSettings
from towers.text_graph import TextGraph

Make = Callable[..., Retriever]


def strings(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(function, input_signature=[tf.TensorSpec([None], tf.string)])


def directly(retriever: Retriever, side: str, text: str) -> np.ndarray:
    settings, model = retriever.text, retriever.model
    if side == "query":
        text, tower, length = (
            settings.query_prefix + text,
            model.query_tower,
            settings.query_max_length,
        )
    else:
        tower, length = model.item_tower, settings.item_max_length
    return tower(retriever.tokenizer(tf.constant([text]), length)).numpy()[0]


@pytest.mark.parametrize("shared", [True, False])
def test_equal_to_the_towers(
    shared: bool, make_tiny_retriever: Make, golden_texts: list[str]
) -> None:
    text = TextSettings("{title}", 12, 24, query_prefix="kettle ")
    retriever = make_tiny_retriever(shared=shared, text=text)
    graph = TextGraph(retriever)
    for side, embed in (("query", graph.embed_queries), ("item", graph.embed_items)):
        expected = [directly(retriever, side, golden) for golden in golden_texts]
        found = strings(embed)(tf.constant(golden_texts))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_any_number_of_texts(tiny_retriever: Retriever) -> None:
    words = ["kettle", "red mug", "garden rake", "", "crème brûlée torch"]
    texts = [f"{words[i % 5]} {words[i % 3]}" for i in range(600)]
    embed = strings(TextGraph(tiny_retriever).embed_queries)
    np.testing.assert_allclose(
        embed(tf.constant(texts)), tiny_retriever.encode_queries(texts), atol=1e-5
    )
    assert embed(tf.constant([], tf.string)).shape == (0, tiny_retriever.embedding_dim)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 9, 31])
@pytest.mark.parametrize("length", [1, 3, 9, 15, 40])  # tokens without [CLS] and [SEP]
def test_any_shape_of_a_batch(tiny_retriever: Retriever, count: int, length: int) -> None:
    texts = ["red mug " * ((length + number) // 2) for number in range(count)]
    graph = TextGraph(tiny_retriever)
    found = graph.embed_items(tf.constant(texts))
    expected = [directly(tiny_retriever, "item", text) for text in texts]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_encoder_of_few_positions(tiny_vocabulary: tuple[str, ...]) -> None:
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(tiny_vocabulary),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=5,
    )
    encoder = TextEncoder(backbone)
    retriever = Retriever(
        TwoTower(encoder, encoder), Tokenizer(tiny_vocabulary), TextSettings("{title}", 5, 4)
    )
    texts = ["mug", "red mug with a lid"]
    expected = [directly(retriever, "query", text) for text in texts]
    found = TextGraph(retriever).embed_queries(tf.constant(texts))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_are_those_of_the_beginning(make_tiny_retriever: Make) -> None:
    retriever = make_tiny_retriever()
    embed = strings(TextGraph(retriever).embed_queries)
    before = retriever.encode_queries(["red mug"])
    for weight in retriever.model.query_tower.backbone.trainable_weights:
        weight.assign(weight + 0.1)
    assert np.abs(retriever.encode_queries(["red mug"]) - before).max() > 1e-3
    np.testing.assert_allclose(embed(tf.constant(["red mug"])), before, atol=1e-5)


def test_saved_and_loaded(tiny_retriever: Retriever, tmp_path: Path) -> None:
    module = tf.Module()
    module.text = TextGraph(tiny_retriever)

    def signature(
        embed: Callable[[tf.Tensor], tf.Tensor],
    ) -> Any:
        return tf.function(lambda texts: {"embedding": embed(texts)}).get_concrete_function(
            tf.TensorSpec([None], tf.string, "texts")
        )

    embeds = {"query": module.text.embed_queries, "item": module.text.embed_items}
    tf.saved_model.save(
        module,
        str(tmp_path),
        signatures={name: signature(embed) for name, embed in embeds.items()},
    )
    texts = ["red mug", "garden hose"]
    loaded = tf.saved_model.load(str(tmp_path))
    for name, expected in (
        ("query", tiny_retriever.encode_queries(texts)),
        ("item", tiny_retriever.encode_items(texts)),
    ):
        found = loaded.signatures[name](texts=tf.constant(texts))["embedding"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
