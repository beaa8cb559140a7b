"""Attributes behind item texts: written, read as features, fused into vectors."""

from __future__ import annotations

import base64
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from towers import (
    AttributeFusion,
    AttributeReader,
    InputError,
    ItemTemplate,
    Retriever,
    TextSettings,
    learn_attributes,
)
from towers.attributes import Attribute
from towers.explain import ATTRIBUTES, explain
from towers.interpolation import interpolate
from towers.text_graph import TextGraph

UNIT = "\x1f"
TEMPLATE = ItemTemplate("{title}[ by {brand}]{price:number}{brand:category}{image:vector}")
COLUMNS = {
    "title": ["Electric kettle", "Red mug", "Garden rake", "Travel mug", "Garden hose"],
    "brand": ["Harrow", "Harrow", "Oakfield", None, "Oakfield"],
    "price": ["40", 10.0, None, "20", "30"],
    "image": [[3.0, 4.0], [0.0, 1.0], None, [0.0, 0.0], [-2.0, 0.0]],
}


def _items() -> list[str]:
    return TEMPLATE.render(COLUMNS)


def _fusion(dim: int = 32, seed: int | None = None) -> AttributeFusion:
    fusion = AttributeFusion(learn_attributes(TEMPLATE, _items()), dim)
    if seed is not None:
        draw = np.random.default_rng(seed)
        fusion.set_weights([draw.normal(size=w.shape) * 0.2 for w in fusion.weights])
    return fusion


def _fused_retriever(make_tiny_retriever, seed: int | None = 1) -> Retriever:
    text = TextSettings(TEMPLATE.pattern, 16, 48)
    return make_tiny_retriever(text=text).with_fusion(_fusion(seed=seed))


def test_attributes_stand_behind_the_text_and_are_no_part_of_it() -> None:
    kettle, _, rake, mug, _ = (item.split(UNIT) for item in _items())
    assert kettle[:3] == ["Electric kettle by Harrow", "40", "Harrow"]
    fixed = np.frombuffer(base64.urlsafe_b64decode(kettle[3]), "<i2")
    np.testing.assert_allclose(fixed / 32767, [0.6, 0.8], atol=2e-5)
    assert rake == ["Garden rake by Oakfield", "", "Oakfield", ""]
    assert mug == ["Travel mug", "20", "", ""]  # a vector of zeros has no direction
    assert TEMPLATE.columns == ("title", "brand")
    assert TEMPLATE.attributes == {"price": "number", "brand": "category", "image": "vector"}
    assert TEMPLATE.text.pattern == "{title}[ by {brand}]"
    added = ItemTemplate("{title}").with_attributes(numeric=["price"], categorical=["brand"])
    assert added.pattern == "{title}{price:number}{brand:category}"


def test_a_separator_in_the_data_cannot_pass_for_one() -> None:
    template = ItemTemplate("{title}{brand:category}")
    item = template.render({"title": [f"mug{UNIT}9"], "brand": [f"Har{UNIT}row"]})[0]
    assert item == f"mug 9{UNIT}Har row"


@pytest.mark.parametrize("wrong", ["abc", "inf", "nan", "1,5"])
def test_a_number_that_is_none_is_refused_by_name_and_row(wrong: str) -> None:
    template = ItemTemplate("{title}{price:number}")
    with pytest.raises(InputError, match=f"'price' is a number, and row 2 has '{wrong}'"):
        template.render({"title": ["a", "b"], "price": ["1", wrong]})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{price:number}", "names no column"),
        ("{title}[ at {price:number}]", "cannot stand in brackets"),
        ("{title}{price:number}{price:category}", "twice"),
        ("{title}{price:.2f}", "attribute as in"),
    ],
)
def test_wrong_patterns_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ItemTemplate(pattern)


def test_numbers_are_piecewise_linear_between_quantiles() -> None:
    prices = [1.0, 2.0, 4.0, 8.0, 16.0]  # quartiles: these
    template = ItemTemplate("{title}{price:number}")
    items = template.render({"title": ["x"] * 5, "price": prices})
    reader = AttributeReader(learn_attributes(template, items))
    asked = [0.5, 1.0, 3.0, 12.0, 100.0]
    found = reader.read(template.render({"title": ["x"] * 5, "price": asked}))["values"]
    # Of a bin that is passed the feature is 1, of the bin the number lies in its share.
    plain = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0.5, 0, 0], [1, 1, 1, 0.5], [1, 1, 1, 1]])
    centre = np.array([4, 3, 2, 1]) / 5
    np.testing.assert_allclose(found, plain - centre, atol=1e-6)
    np.testing.assert_allclose(reader.read(items)["values"].mean(axis=0), 0.0, atol=1e-6)


def test_what_is_missing_unknown_or_unreadable_at_serving_time() -> None:
    template = ItemTemplate("{title}{price:number}{brand:category}")
    columns = {
        "title": ["x"] * 5,
        "price": [1, 2, 3, 4, 5],
        "brand": ["A", "A", "B", "B", "rare"],
    }
    reader = AttributeReader(learn_attributes(template, template.render(columns)))
    known, new, rare, bare, empty, bad = (
        tf.nest.map_structure(lambda x, row=row: x[row].numpy(), found)
        for found in [
            reader(
                tf.constant(
                    [
                        f"x{UNIT}1{UNIT}B",
                        f"x{UNIT}1{UNIT}never seen",
                        f"x{UNIT}1{UNIT}rare",
                        "x",
                        f"x{UNIT}{UNIT}",
                        f"x{UNIT}cheap{UNIT}A",
                    ]
                )
            )
        ]
        for row in range(6)
    )
    assert new["categories"] == rare["categories"] == [0]  # of one item, so no category of its own
    assert known["categories"] == [2]
    for nothing in (bare, empty):
        assert nothing["categories"] == [-1]
        assert not nothing["values"].any()
    assert not bad["values"].any()
    assert bad["categories"] == [1]
    nobody = reader(tf.constant([], tf.string))
    assert nobody["values"].shape == (0, 4)
    assert nobody["categories"].shape == (0, 1)


def test_an_item_may_have_several_categories() -> None:
    template = ItemTemplate("{title}{brand:category}{genre:category}")
    genres = ["drama | war", "war", ["war", "comedy"], "drama|drama|", None, "comedy|western"]
    columns = {"title": ["x"] * 6, "brand": ["A", "A", "B", "B", "", "A"], "genre": genres}
    items = template.render(columns)
    assert items[:4] == [f"x{UNIT}{end}" for end in (f"A{UNIT}drama|war", f"A{UNIT}war",
        f"B{UNIT}war|comedy", f"B{UNIT}drama")]  # fmt: skip
    brand, genre = attributes = learn_attributes(template, items)
    # Of three items; of two each, in alphabetical order; of one, which is none of its own.
    assert (genre.vocabulary, genre.most, brand.most) == (("war", "comedy", "drama"), 2, 1)

    reader = AttributeReader(attributes)
    rare = 1 + len(brand.vocabulary)  # row 0 of the genres; the brands are before them
    war, comedy, drama = rare + 1, rare + 2, rare + 3
    expected = [
        [1, drama, war], [1, war, -1], [2, war, comedy], [2, drama, -1], [-1, -1, -1],
        [1, comedy, rare],
    ]  # fmt: skip
    np.testing.assert_array_equal(reader.read(items)["categories"], expected)
    asked = tf.constant([f"x{UNIT}A{UNIT} war | new |comedy", "x"])  # the third is not read
    np.testing.assert_array_equal(reader(asked)["categories"], [[1, war, rare], [-1, -1, -1]])

    fusion = AttributeFusion(attributes, 4)
    table = np.random.default_rng(0).normal(size=fusion.table.shape).astype(np.float32)
    fusion.set_weights([fusion.kernel.numpy(), table])
    text = np.eye(4, dtype=np.float32)[:1].repeat(6, axis=0)
    moved = text + [table[[row for row in rows if row >= 0]].sum(axis=0) for rows in expected]
    np.testing.assert_allclose(
        fusion(text, reader.read(items)),
        moved / np.linalg.norm(moved, axis=1, keepdims=True),
        atol=1e-6,
    )
    twin = AttributeFusion.from_config(fusion.get_config())
    twin.set_weights(fusion.get_weights())
    assert (twin.attributes, twin.digest()) == (attributes, fusion.digest())
    one_each = AttributeFusion(
        [brand, Attribute("genre", "category", vocabulary=genre.vocabulary)], 4
    )
    one_each.set_weights(fusion.get_weights())
    assert one_each.digest() != fusion.digest()


def test_a_model_of_one_category_an_item_takes_the_cell_as_it_stands() -> None:
    reader = AttributeReader([Attribute("genre", "category", vocabulary=("a|b", "a"))])
    np.testing.assert_array_equal(
        reader.read([f"x{UNIT}a|b", f"x{UNIT}a"])["categories"], [[1], [2]]
    )


def test_vectors_of_two_lengths_are_refused() -> None:
    template = ItemTemplate("{title}{image:vector}")
    with pytest.raises(InputError, match="different lengths: 1, 2"):
        learn_attributes(
            template, template.render({"title": ["a", "b"], "image": [[1.0], [1.0, 2.0]]})
        )
    reader = AttributeReader([Attribute("image", "vector", width=3)])
    with pytest.raises(InputError, match=r"'image' of 'mug' has 2 numbers; .* with 3"):
        reader.read(template.render({"title": ["mug"], "image": [[1.0, 2.0]]}))


def test_an_attribute_that_no_item_has_is_refused() -> None:
    template = ItemTemplate("{title}{price:number}")
    items = template.render({"title": ["a"], "price": [None]})
    with pytest.raises(InputError, match=r"no item of the catalogue has a value .* 'price'"):
        learn_attributes(template, items)


def test_fusion_is_the_unit_of_text_and_moves() -> None:
    fusion = _fusion(dim=3, seed=0)
    draw = np.random.default_rng(1)
    text = draw.normal(size=(4, 3)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    kernel, table = (np.asarray(w, np.float64) for w in fusion.get_weights())
    values = draw.normal(size=(4, fusion.value_count)).astype(np.float32)
    categories = np.array([[0], [2], [-1], [1]], np.int32)
    moved = text + values @ kernel
    moved += np.where(categories >= 0, table[np.maximum(categories[:, 0], 0)], 0.0)
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    found = fusion(text, {"values": values, "categories": categories})
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_untrained_fusion_and_bare_items_are_the_text_to_the_bit(make_tiny_retriever) -> None:
    items = _items()
    texts = [item.split(UNIT)[0] for item in items]
    plain = make_tiny_retriever()
    fused = _fused_retriever(make_tiny_retriever, seed=None)
    np.testing.assert_array_equal(fused.encode_items(items), plain.encode_items(texts))
    trained = _fused_retriever(make_tiny_retriever)
    np.testing.assert_array_equal(trained.encode_items(texts), plain.encode_items(texts))
    assert np.abs(trained.encode_items(items) - plain.encode_items(texts)).max() > 0.01
    assert plain.encode_items(items).tolist() == plain.encode_items(texts).tolist()


def test_saved_towers_keep_their_fusion(make_tiny_retriever, tmp_path) -> None:
    retriever = _fused_retriever(make_tiny_retriever)
    retriever.save(tmp_path)
    again = Retriever.load(tmp_path)
    assert again.model.fusion.attributes == retriever.model.fusion.attributes
    np.testing.assert_array_equal(again.encode_items(_items()), retriever.encode_items(_items()))
    assert again.fingerprint() == retriever.fingerprint()
    weights = again.model.fusion.get_weights()
    again.model.fusion.set_weights([weights[0] * 1.01, weights[1]])
    assert again.fingerprint() != retriever.fingerprint()


def test_the_graph_encodes_items_as_python_does(make_tiny_retriever) -> None:
    retriever = _fused_retriever(make_tiny_retriever)
    items = [*_items(), "Mug", f"Mug{UNIT}{UNIT}unknown{UNIT}", ""]
    graph = TextGraph(retriever)
    embed = tf.function(graph.embed_items, input_signature=[tf.TensorSpec([None], tf.string)])
    np.testing.assert_allclose(embed(tf.constant(items)), retriever.encode_items(items), atol=2e-6)
    assert embed(tf.constant([], tf.string)).shape == (0, 32)


def test_a_fusion_of_other_attributes_than_the_template_is_refused(make_tiny_retriever) -> None:
    with pytest.raises(InputError, match="fuse the attributes"):
        make_tiny_retriever().with_fusion(_fusion())
    with pytest.raises(ValueError, match="vectors of 8 numbers"):
        make_tiny_retriever(text=TextSettings(TEMPLATE.pattern, 16, 48)).with_fusion(_fusion(dim=8))
    assert _fused_retriever(make_tiny_retriever).with_fusion(None).template == TEMPLATE.text


def test_a_model_trains_encoder_and_fusion_together(make_tiny_retriever) -> None:
    """Two brands, one text, and queries that only the brand can tell apart."""
    template = ItemTemplate("{title}{brand:category}")
    items = template.render({"title": ["mug"] * 4, "brand": ["A", "A", "B", "B"]})
    retriever = make_tiny_retriever(text=TextSettings(template.pattern, 16, 48)).with_fusion(
        AttributeFusion(learn_attributes(template, items), 32)
    )
    tokens = retriever.tokenizer
    queries = ["garden", "garden", "kettle", "kettle"]
    x = {
        "query": tokens(tf.constant(queries), max_length=8),
        "item": tokens(tf.constant(["mug"] * 4), max_length=8),
        "item_attributes": retriever.read_attributes(items),
        "item_ids": tf.constant([0, 0, 1, 1]),
    }
    retriever.model.compile(optimizer=keras.optimizers.Adam(0.02))
    data = tf.data.Dataset.from_tensors((x, tf.zeros(4), tf.ones(4)))
    retriever.model.fit(data.repeat(10), verbose=0)
    scores = retriever.encode_queries(["garden", "kettle"]) @ retriever.encode_items(items[1:3]).T
    assert scores[0, 0] > scores[0, 1]
    assert scores[1, 1] > scores[1, 0]
    half = interpolate(retriever.with_fusion(_zero_like(retriever)), retriever, 0.5)
    for mixed, full in zip(
        half.model.fusion.get_weights(), retriever.model.fusion.get_weights(), strict=True
    ):
        np.testing.assert_allclose(mixed, full / 2, atol=1e-7)


def _zero_like(retriever: Retriever) -> AttributeFusion:
    fusion = retriever.model.fusion
    return AttributeFusion(fusion.attributes, fusion.dim)


@pytest.mark.parametrize("method", ["split", "leave-one-out"])
def test_an_explanation_has_a_share_for_attributes(make_tiny_retriever, method) -> None:
    retriever = _fused_retriever(make_tiny_retriever)
    kettle = explain(retriever, "red kettle", _items()[:1], method=method)[0]
    vectors = retriever.encode_queries(["red kettle"]), retriever.encode_items(_items()[:1])
    score = float(vectors[0][0] @ vectors[1][0])
    assert math.isclose(kettle.score, score, abs_tol=1e-5)
    assert kettle.item_words[-1] == ATTRIBUTES
    if method == "split":
        assert math.isclose(kettle.item_shares.sum(), score, abs_tol=1e-5)
    else:
        bare = retriever.encode_items([_items()[0].split(UNIT)[0]])[0]
        without = score - float(vectors[0][0] @ bare)
        assert math.isclose(kettle.item_shares[-1], without, abs_tol=1e-5)
