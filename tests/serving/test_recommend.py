"""`recommend` and `score` of an export, against the recommender in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.client import RetrievalClient
from serving.export import ExportResult, export_retriever
from serving.index.item_index import FLOOR_SCORE
from serving.lexical import LexicalIndex, normalised
from serving.loading import load_export
from serving.manifest import Manifest
from serving.update import ChangedItems, update_items
from serving.warmup import WARMUP_FILE
from towers import InputError, Recommender, Retriever, UserTower
from towers.item_neighbours import ItemNeighbours
from towers.recommender import BlendWeights, CatalogRecommender

K = 5
HISTORIES = [
    ["m2", "k1", "k2"],
    [],
    ["nothing like it", "k1", ""],
    ["g1", "g1", "m1"],
    ["k1", "k2", "m1", "m2", "g1", "g2"],
]
UNKNOWN = [0, 0, 1, 0, 0]


def a_recommender(retriever: Retriever) -> Recommender:
    """Four items that histories told of, in another order than the catalogue's, and one gone."""
    draw = np.random.default_rng(0)
    tower = UserTower(retriever.embedding_dim, decay=0.6)
    tower.set_weights([w + 0.1 * draw.normal(size=w.shape) for w in tower.get_weights()])
    near = ItemNeighbours(
        np.array([[1, 3], [0, -1], [1, 0], [-1, -1], [0, 2]], np.int32),
        np.array([[0.5, 0.2], [0.4, 0], [0.3, 0.1], [0, 0], [0.6, 0.1]], np.float32),
    )
    return Recommender(
        tower,
        BlendWeights(text=3.0, co_occurrence=20.0, words=2.0, popularity=0.5, query=9.0),
        ["m1", "k1", "gone", "g2", "m2"],
        near,
        np.array([4, 7, 9, 1, 2]),
        max_history=4,
        encoder_fingerprint=retriever.fingerprint(),
    )


class Shop:
    def __init__(self, retriever: Retriever, catalog: dict[str, list[str]], base: Path, index: str):
        self.texts = retriever.template.render(catalog)
        self.ids, self.base, self.retriever = catalog["item_id"], base, retriever
        self.recommender = a_recommender(retriever)
        options = {"index": index}
        if index == "hybrid":
            options = {"lexical_weight": 0.4, "lexical_fields": {"title": catalog["title"]}}
        self.result: ExportResult = export_retriever(
            retriever, self.ids, self.texts, base, k=K, recommender=self.recommender, **options
        )
        self.signatures = load_export(self.result.path).signatures
        vectors = retriever.encode_items(self.texts)
        self.over: CatalogRecommender = self.recommender.over(self.ids, self.texts, vectors)
        self._vectors, self._index, self._titles = vectors, index, catalog["title"]

    def query_scores(self, queries: list[str]) -> np.ndarray:
        scores = self.retriever.encode_queries(queries) @ self._vectors.T
        if self._index == "hybrid":
            words = LexicalIndex.build({"title": self._titles}).scores(tf.constant(queries))
            scores = 0.6 * scores + 0.4 * normalised(words).numpy()
        scores[[not query for query in queries]] = np.nan
        return scores

    def ask(self, histories: list[list[str]], queries: list[str]) -> dict[str, np.ndarray]:
        answer = self.signatures["recommend"](
            history=padded(histories), query=tf.constant(queries, tf.string)
        )
        return {name: value.numpy() for name, value in answer.items()}


def padded(rows: list[list[str]]) -> tf.Tensor:
    return tf.ragged.constant(rows, ragged_rank=1, dtype=tf.string).to_tensor("")


def decoded(ids: np.ndarray) -> list[list[str]]:
    return [[item.decode() for item in row] for row in ids]


@pytest.fixture(scope="module")
def make_shop(tiny_retriever, tiny_catalog, tmp_path_factory):
    shops: dict[str, Shop] = {}

    def make(index: str) -> Shop:
        if index not in shops:
            base = tmp_path_factory.mktemp("exports") / index
            shops[index] = Shop(tiny_retriever, tiny_catalog, base, index)
        return shops[index]

    return make


@pytest.mark.parametrize("index", ["exact", "hybrid"])
@pytest.mark.parametrize("queries", [[""] * 5, ["coffee", "garden", "", "Café", "漢字"]])
def test_recommend_is_the_recommender_in_python(make_shop, index, queries):
    shop = make_shop(index)
    answer = shop.ask(HISTORIES, queries)
    expected = shop.over.recommend(HISTORIES, k=K, query_scores=shop.query_scores(queries))
    for user, best in enumerate(expected):
        rest = K - len(best)
        assert decoded(answer["item_ids"])[user] == [item for item, _ in best] + [""] * rest
        scores = [score for _, score in best] + [FLOOR_SCORE] * rest
        np.testing.assert_allclose(answer["scores"][user], scores, rtol=1e-4, atol=1e-3)
    assert answer["unknown"].tolist() == UNKNOWN
    assert answer["unknown"].dtype == np.int32


def test_order_counts_and_only_the_newest_are_looked_at(make_shop):
    shop = make_shop("exact")
    answer = shop.ask([["k1", "m2"], ["m2", "k1"]], ["", ""])["scores"]
    assert np.abs(answer[0] - answer[1]).max() > 0.1
    newest = ["k1", "k2", "m1", "m2"]  # max_history
    answer = shop.ask([["g1", *newest], ["g2", *newest]], ["", ""])
    one, other = (
        dict(zip(ids, scores, strict=True))
        for ids, scores in zip(decoded(answer["item_ids"]), answer["scores"].tolist(), strict=True)
    )
    assert ("g2" in one, "g1" in one, "g1" in other) == (True, False, True)
    assert {item: one[item] for item in ("p 1", "é1")} == {i: other[i] for i in ("p 1", "é1")}


def test_nothing_known_falls_back_to_what_is_popular(make_shop):
    shop = make_shop("exact")
    for history in ([""], ["stale", "ids"]):
        answer = shop.ask([history], [""])
        assert decoded(answer["item_ids"])[0][0] == "k1"  # taken seven times
        assert all(decoded(answer["item_ids"])[0])


def test_only_a_query_ranks_as_search(make_shop):
    shop = make_shop("hybrid")
    found = shop.signatures["search"](query=tf.constant(["filter coffee"]))
    answer = shop.ask([[""]], ["filter coffee"])
    assert decoded(answer["item_ids"]) == decoded(found["item_ids"].numpy())
    np.testing.assert_allclose(answer["scores"], 9.0 * found["scores"].numpy(), rtol=1e-4)


def test_who_has_seen_everything_is_offered_it_again(make_shop):
    shop = make_shop("exact")
    answer = shop.ask([shop.ids], [""])
    assert all(decoded(answer["item_ids"])[0])


def test_an_empty_batch_and_an_empty_history_have_their_shapes(make_shop):
    shop = make_shop("exact")
    nobody = shop.signatures["recommend"](
        history=tf.zeros([0, 3], tf.string), query=tf.zeros([0], tf.string)
    )
    assert nobody["item_ids"].shape == (0, K)
    nothing = shop.signatures["recommend"](
        history=tf.zeros([2, 0], tf.string), query=tf.constant(["", ""])
    )
    assert nothing["item_ids"].shape == (2, K)
    assert nothing["unknown"].numpy().tolist() == [0, 0]


def test_score_is_the_probability_in_python(make_shop):
    shop = make_shop("exact")
    asked = [["k2", "m1", "unknown", "g2"]] * 5
    queries = ["", "coffee", "", "", ""]
    answer = shop.signatures["score"](
        history=padded(HISTORIES), query=tf.constant(queries), item_ids=tf.constant(asked)
    )
    expected = shop.over.probabilities(HISTORIES, asked, query_scores=shop.query_scores(queries))
    np.testing.assert_allclose(answer["probability"].numpy(), expected, rtol=1e-3, atol=1e-6)
    assert answer["unknown"].numpy().tolist() == UNKNOWN


def test_a_new_item_is_recommended_at_once(make_shop):
    shop = make_shop("exact")
    added = update_items(shop.base, add=ChangedItems(["new"], [shop.texts[1]]))
    again = load_export(added.path).signatures["recommend"]
    answer = again(history=tf.constant([["k2"]]), query=tf.constant([""]))
    assert "new" in decoded(answer["item_ids"].numpy())[0]
    removed = update_items(shop.base, remove=["m1"])
    again = load_export(removed.path).signatures["recommend"]
    answer = again(history=tf.constant([["k1", "m1"]]), query=tf.constant([""]))
    assert "m1" not in decoded(answer["item_ids"].numpy())[0]
    assert answer["unknown"].numpy().tolist() == [1]


def test_manifest_and_warm_up_name_it(make_shop):
    shop = make_shop("exact")
    manifest = Manifest.read(shop.result.path)
    assert {"recommend", "score"} <= set(manifest.signatures)
    assert manifest.recommender["weights"]["co_occurrence"] == 20.0
    assert manifest.recommender["items_in_histories"] == 5
    assert manifest.foreign_ops == []
    records = tf.data.TFRecordDataset(str(shop.result.path / WARMUP_FILE))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    names = {log.predict_log.request.model_spec.signature_name for log in logs}
    assert {"recommend", "score"} <= names


def test_without_a_recommender_all_is_as_before(tiny_retriever, tiny_catalog, tmp_path):
    texts = tiny_retriever.template.render(tiny_catalog)
    result = export_retriever(tiny_retriever, tiny_catalog["item_id"], texts, tmp_path / "shop")
    assert "recommend" not in result.manifest.signatures
    assert result.manifest.recommender == {}


def test_a_recommender_of_other_towers_is_refused(make_tiny_retriever, tiny_catalog, tmp_path):
    one, other = make_tiny_retriever(0), make_tiny_retriever(1)
    with pytest.raises(InputError, match="embeddings of other towers"):
        export_retriever(
            one,
            tiny_catalog["item_id"],
            one.template.render(tiny_catalog),
            tmp_path / "shop",
            recommender=a_recommender(other),
        )


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_over_the_wire(make_shop, start_server, transport):
    shop = make_shop("hybrid")
    if not hasattr(shop, "server"):
        shop.server = start_server(shop.base)
    address = shop.server.grpc if transport == "grpc" else shop.server.rest
    with RetrievalClient(address, model=shop.base.name, transport=transport) as client:
        answers = client.recommend(HISTORIES, k=3)
        chances = client.score([["k1"]], [["m1", "g2"]], ["coffee"])
        with pytest.raises(InputError, match="as many queries"):
            client.recommend(HISTORIES, ["coffee"])
    expected = shop.over.recommend(HISTORIES, k=3)
    for answer, best, unknown in zip(answers, expected, UNKNOWN, strict=True):
        assert [hit.item_id for hit in answer.hits] == [item for item, _ in best]
        assert answer.unknown == unknown
    wanted = shop.over.probabilities(
        [["k1"]], [["m1", "g2"]], query_scores=shop.query_scores(["coffee"])
    )
    np.testing.assert_allclose(chances, wanted, rtol=1e-3)
