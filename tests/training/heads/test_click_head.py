"""Click probabilities: against known models, by hand, and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from towers.errors import InputError
from towers.retriever import Retriever
from training.catalog import Catalog
from training.heads.click_head import ClickHead, PairFeatures, fit_click_head, query_folds
from training.heads.click_model import ClickModel, cross_validate_clicks, towers_fingerprint
from training.heads.click_pairs import ClickPairs
from training.heads.score_features import score_features

BRANDS = {"Harrow": 1.0, "Oakfield": -1.0, "Purr": 0.0}


def shown(n: int, seed: int = 0) -> tuple[PairFeatures, np.ndarray, np.ndarray]:
    """Pairs of a known model: features, clicks, queries."""
    rng = np.random.default_rng(seed)
    cosine, price = rng.uniform(-0.2, 0.9, n), rng.gamma(2.0, 20.0, n)
    brand = rng.choice(list(BRANDS), n)
    logits = -1.0 + 5.0 * cosine - 0.02 * price + np.array([BRANDS[one] for one in brand])
    features = PairFeatures({"cosine": cosine, "price": price}, {"brand": brand.tolist()})
    return features, rng.uniform(size=n) < expit(logits), np.arange(n) // 8


def test_a_known_model_is_found() -> None:
    features, clicked, query = shown(20_000)
    head = fit_click_head(features, clicked, query)
    assert head.numeric["cosine"][0] == pytest.approx(5.0, abs=0.25)
    assert head.numeric["price"][0] == pytest.approx(-0.02, abs=0.002)
    brands = head.categorical["brand"]
    assert brands["Harrow"] - brands["Oakfield"] == pytest.approx(2.0, abs=0.2)
    fresh, clicked, _ = shown(20_000, seed=1)
    probability = head.probabilities(fresh)
    for low in np.arange(0, 1, 0.1):  # in every bin as many clicks as were said to come
        inside = (probability >= low) & (probability < low + 0.1)
        error = 4 * math.sqrt(0.25 / max(inside.sum(), 1))
        assert probability[inside].mean() == pytest.approx(clicked[inside].mean(), abs=error)


def test_probability_by_hand() -> None:
    head = ClickHead(-1.0, {"cosine": (4.0, 0.5)}, {"brand": {"Harrow": 0.7}})
    features = PairFeatures(
        {"cosine": np.array([0.25, np.nan, 0.25])}, {"brand": ["Harrow", None, "New"]}
    )
    expected = expit([-1 + 1 + 0.7, -1 + 2, -1 + 1])
    np.testing.assert_allclose(head.probabilities(features), expected)


def test_units_of_a_feature_do_not_matter() -> None:
    features, clicked, query = shown(400)
    cents = PairFeatures({**features.numeric, "price": features.numeric["price"] * 100 + 7})
    euros = PairFeatures(dict(features.numeric))
    np.testing.assert_allclose(
        fit_click_head(cents, clicked, query).probabilities(cents),
        fit_click_head(euros, clicked, query).probabilities(euros),
        atol=1e-4,
    )


def test_missing_values_say_nothing() -> None:
    features, clicked, query = shown(2_000)
    gaps = {**features.numeric, "price": features.numeric["price"].copy()}
    gaps["price"][::3] = np.nan
    head = fit_click_head(PairFeatures(gaps, features.categorical), clicked, query)
    weight, mean = head.numeric["price"]
    assert mean == pytest.approx(np.nanmean(gaps["price"]))
    assert weight == pytest.approx(-0.02, abs=0.01)
    one = PairFeatures({"cosine": np.array([0.3]), "price": np.array([np.nan])}, {"brand": [None]})
    same = PairFeatures({"cosine": np.array([0.3]), "price": np.array([mean])}, {"brand": ["New"]})
    assert head.probabilities(one) == pytest.approx(head.probabilities(same))


def test_rare_categories_are_left_out() -> None:
    features, clicked, query = shown(200)
    brand = ["Once", *features.categorical["brand"][1:-1], ""]
    head = fit_click_head(PairFeatures(features.numeric, {"brand": brand}), clicked, query)
    assert set(head.categorical["brand"]) == set(BRANDS)


def test_noise_is_not_learned() -> None:
    rng = np.random.default_rng(0)
    features = PairFeatures({"cosine": rng.normal(size=300)})
    clicked = rng.uniform(size=300) < 0.3
    probability = fit_click_head(features, clicked, np.arange(300) // 5).probabilities(features)
    np.testing.assert_allclose(probability, clicked.mean(), atol=0.05)


def test_weights_count_as_rows() -> None:
    features, clicked, query = shown(300)
    twice = np.repeat(np.arange(300), 2)
    weighted = fit_click_head(features, clicked, query, np.full(300, 2.0))
    repeated = fit_click_head(features.select(twice), clicked[twice], query[twice])
    assert weighted.numeric["cosine"][0] == pytest.approx(repeated.numeric["cosine"][0], rel=0.02)


def test_no_query_is_on_both_sides() -> None:
    _, clicked, query = shown(200)
    splits = query_folds(clicked, query, 5, seed=0)
    assert sorted(np.concatenate([test for _, test in splits]).tolist()) == list(range(200))
    for train, test in splits:
        assert not set(query[train]) & set(query[test])
        assert clicked[test].any()
        assert not clicked[test].all()


def test_cross_validation_beats_the_constant_where_there_is_something_to_know() -> None:
    features, clicked, query = shown(600)
    quality = cross_validate_clicks(features, clicked, query, folds=4)
    head, constant = quality["head"].measures, quality["constant"].measures
    assert head["log_loss"].mean < constant["log_loss"].mean - 0.1
    assert head["auc"].mean > 0.75
    assert constant["auc"].mean == 0.5
    rate = clicked.mean()
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert constant["log_loss"].mean == pytest.approx(entropy, abs=0.01)
    assert quality["head"].rows == 600


def test_too_few_queries_are_refused() -> None:
    features, clicked, _ = shown(16)
    with pytest.raises(InputError, match=r"queries with a click: 1, .*got none: 1"):
        fit_click_head(features, clicked, np.zeros(16, int))


# What the scores say


def test_score_features_by_their_definition() -> None:
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(70, 6)), rng.normal(size=(30, 6))
    queries, items = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (queries, items)
    )
    words = rng.uniform(size=(70, 30)).astype(np.float32)
    texts = [f"query {n}" for n in range(70)]
    query_row, item_row = rng.integers(70, size=200), rng.integers(30, size=200)

    def lexical(some: list[str]) -> np.ndarray:
        return words[[texts.index(text) for text in some]]

    found = score_features(
        texts, queries, items, query_row, item_row, lexical=lexical, lexical_weight=0.4
    )
    for pair, (q, i) in enumerate(zip(query_row, item_row, strict=True)):
        cosines = [float(queries[q] @ item) for item in items]
        final = [0.6 * c + 0.4 * w for c, w in zip(cosines, words[q], strict=True)]
        assert found["cosine"][pair] == pytest.approx(cosines[i], abs=1e-5)
        assert found["lexical"][pair] == words[q, i]
        assert found["gap"][pair] == pytest.approx(max(final) - final[i], abs=1e-5)
    dense = score_features(texts, queries, items, query_row, item_row)
    assert set(dense) == {"cosine", "gap"}
    best = (queries @ items.T).max(axis=1)[query_row]
    np.testing.assert_allclose(dense["gap"], best - dense["cosine"], atol=1e-5)


# Files


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    path = tmp_path / "catalog.csv"
    path.write_text("item_id,title,price,colour\nk1,Kettle,20,red\nm1,Mug,,\ng1,Rake,9.5,red\n")
    return Catalog.read(path)


def pairs_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    return path


def test_pairs_with_context_and_item_columns(tmp_path: Path, catalog: Catalog) -> None:
    path = pairs_file(
        tmp_path,
        "query,item_id,grade,weight,hour,device\n"
        "tea,k1,2,,9,phone\ntea,m1,0,93,,desk\ntea,k1,0,1,-1.5,\ndig,zz,1,1,3,phone\n",
    )
    pairs = ClickPairs.read(path, catalog)
    assert len(pairs) == 3  # a pair may be repeated
    assert pairs.unknown_items.rows == 1
    assert pairs.clicked.tolist() == [True, False, False]
    assert pairs.weight.tolist() == [1, 93, 1]
    features = pairs.features({"cosine": np.zeros(3)}, ["hour", "price"], ["device", "colour"])
    np.testing.assert_array_equal(features.numeric["hour"], [9, np.nan, -1.5])
    np.testing.assert_array_equal(features.numeric["price"], [20, np.nan, 20])
    assert features.categorical == {
        "device": ["phone", "desk", None],
        "colour": ["red", None, "red"],
    }
    assert ClickPairs.read(path, catalog, min_grade=3).clicked.tolist() == [False] * 3


def test_bad_pairs_are_named(tmp_path: Path, catalog: Catalog) -> None:
    header = "query,item_id,grade,hour\n"
    path = pairs_file(tmp_path, header + "tea,k1,1,9\ntea,m1,0,noon\n")
    pairs = ClickPairs.read(path, catalog)
    scores = {"cosine": np.zeros(2)}
    with pytest.raises(InputError, match=r"pairs\.csv, line 3: column 'hour' is 'noon', expected"):
        pairs.features(scores, ["hour"])
    with pytest.raises(InputError, match=r"no column 'day', neither in .*pairs\.csv nor in"):
        pairs.features(scores, ["day"])
    with pytest.raises(InputError, match="feature 'cosine' is there twice"):
        pairs.features(scores, ["cosine"])
    with pytest.raises(InputError, match=r"catalog\.csv, line 2: column 'title' is 'Kettle'"):
        pairs.features(scores, ["title"])
    assert ClickPairs.read(path, catalog, click_column="clicked").clicked is None
    with pytest.raises(InputError, match=r"no column 'clicked' that says what was clicked"):
        ClickPairs.read(path, catalog, click_column="clicked").require_clicks("clicked")
    path = pairs_file(tmp_path, header + "tea,k1,1,9\ntea,m1,1,9\n")
    with pytest.raises(InputError, match="every pair is a click by column 'grade'"):
        ClickPairs.read(path, catalog).require_clicks("grade")
    path = pairs_file(tmp_path, header + "tea,k1,,9\ntea,m1,1,9\n")
    with pytest.raises(InputError, match=r"line 2: column 'grade' is empty"):
        ClickPairs.read(path, catalog)
    path = pairs_file(tmp_path, header + "tea,zz,1,9\ntea,m1,1,9\n")
    with pytest.raises(InputError, match=r"ids: 1 \(zz\); first in line 2"):
        ClickPairs.read(path, catalog, strict=True)


def test_a_click_model_is_plain_json(tmp_path: Path) -> None:
    head = ClickHead(-1.25, {"cosine": (4.5, 0.1)}, {"brand": {"Crème": 0.5}})
    model = ClickModel(head, "runs/first", "abc", 0.3, ("price",), ("brand",), "clicked", 2)
    model.save(tmp_path / "head")
    assert [path.name for path in (tmp_path / "head").iterdir()] == ["head.json"]
    record = json.loads((tmp_path / "head" / "head.json").read_text("utf-8"))
    assert record["head"]["categorical"]["brand"] == {"Crème": 0.5}
    assert ClickModel.load(tmp_path / "head") == model

    with pytest.raises(InputError, match="holds no head"):
        ClickModel.load(tmp_path)
    for change, message in [
        ({"kind": "classes"}, "a head for 'classes', not for 'clicks'"),
        ({"format": 9}, "head format 9"),
        ({"head": {"bias": 0}}, "is damaged: KeyError: 'numeric'"),
    ]:
        (tmp_path / "head" / "head.json").write_text(json.dumps(record | change), "utf-8")
        with pytest.raises(InputError, match=message):
            ClickModel.load(tmp_path / "head")
    (tmp_path / "head" / "head.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match="is damaged"):
        ClickModel.load(tmp_path / "head")


def test_other_towers_are_refused(make_tiny_retriever: Callable[..., Retriever]) -> None:
    first, second = make_tiny_retriever(0, shared=False), make_tiny_retriever(0, shared=False)
    model = ClickModel(ClickHead(0, {}, {}), "run", towers_fingerprint(first), 0.0)
    model.require_towers(second, "run")
    weight = second.model.query_tower.backbone.trainable_weights[0]  # the item tower is the same
    weight.assign_add(np.full(weight.shape, 0.01, np.float32))
    with pytest.raises(InputError, match="moved/run does not hold the towers"):
        model.require_towers(second, "moved/run")
