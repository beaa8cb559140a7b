"""`recommend` and `score` of an export, against the recommender in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from serving.client import RetrievalClient
from serving.export import ExportResult, export_retriever
from serving.index.item_index import FLOOR_SCORE
from serving.lexical import LexicalIndex, normalised
from serving.loading import load_export
from serving.manifest import Manifest
from serving.update import ChangedItems, update_items
from serving.warmup import WARMUP_FILE
from towers import InputError, Recommender, Retriever, UserTower
from towers.context_lifts import ContextColumn, ContextLifts
from towers.context_text import context_texts
from towers.item_neighbours import ItemNeighbours
from towers.recommender import BlendWeights, CatalogRecommender
from towers.review_sentiment import ReviewSentiment

K = 5
HISTORIES = [
    ["m2", "k1", "k2"],
    [],
    ["nothing like it", "k1", ""],
    ["g1", "g1", "m1"],
    ["k1", "k2", "m1", "m2", "g1", "g2"],
]
UNKNOWN = [0, 0, 1, 0, 0]
REVIEWS = [
    ["Keeps coffee hot for hours.", "A slow pour"],
    ["", "Steel tines, ash handle."],
    [],
    ["Does not kink.", "", "Red mug", "Café"],
    ["Holds 350 ml."],
]
CONTEXTS = [
    {"level": "gold", "age": 37},
    {"level": "gold", "age": "12.5"},
    {"level": "tin", "colour": "red", "age": "old"},
    {},
    {"age": -1.0, "level": "b=c"},
]
RATINGS = [[5, 1], [0, np.nan], [], [2, 5, 9, 0], [3]]


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
        BlendWeights(
            text=3.0, co_occurrence=20.0, words=2.0, popularity=0.5, query=9.0, reviews=4.0
        ),
        ["m1", "k1", "gone", "g2", "m2"],
        near,
        np.array([4, 7, 9, 1, 2]),
        np.array([2.5, 6, 3, 0.5, 2], np.float32),
        ReviewSentiment(draw.normal(size=retriever.embedding_dim).astype("f4"), 0.3),
        max_history=4,
        encoder_fingerprint=retriever.fingerprint(),
        context=contexts(draw),
    )


def contexts(draw: np.random.Generator) -> ContextLifts:
    ages = ContextColumn(0.7, 1.5, (12.5, 37.0))
    values = ["level=gold", "level=b=c", *(f"age={band}" for band in ages.bands())]
    lifts = draw.normal(size=(len(values), 5)) * (draw.random((len(values), 5)) < 0.7)
    columns = {"level": ContextColumn(2.0, 3.0), "age": ages}
    return ContextLifts(columns, values, sp.csr_matrix(lifts.astype(np.float32)))


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

    def review_vectors(self, reviews: list[list[str]], ratings: list[list[float]]) -> np.ndarray:
        written = [
            [pair for pair in zip(texts, given, strict=True) if pair[0]]
            for texts, given in zip(reviews, ratings, strict=True)
        ]
        vectors = [self.retriever.encode_reviews([text for text, _ in pairs]) for pairs in written]
        return self.recommender.review_vectors(
            vectors, [[rating for _, rating in pairs] for pairs in written]
        )


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


def of_users(histories, queries, reviews, ratings) -> dict[str, tf.Tensor]:
    width = max(1, *map(len, reviews))
    return {
        "history": padded(histories),
        "query": tf.constant(queries, tf.string),
        "reviews": tf.constant([row + [""] * (width - len(row)) for row in reviews]),
        "ratings": tf.constant([row + [0] * (width - len(row)) for row in ratings], tf.float32),
    }


@pytest.mark.parametrize("index", ["exact", "hybrid"])
@pytest.mark.parametrize("queries", [[""] * 5, ["coffee", "garden", "", "Café", "漢字"]])
def test_reviews_count_as_in_python(make_shop, index, queries):
    shop = make_shop(index)
    answer = shop.signatures["recommend_reviews"](**of_users(HISTORIES, queries, REVIEWS, RATINGS))
    asked, written = shop.query_scores(queries), shop.review_vectors(REVIEWS, RATINGS)
    expected = shop.over.recommend(HISTORIES, k=K, query_scores=asked, review_vectors=written)
    for user, best in enumerate(expected):
        rest = K - len(best)
        found = decoded(answer["item_ids"].numpy())[user]
        assert found == [item for item, _ in best] + [""] * rest
        scores = [score for _, score in best] + [FLOOR_SCORE] * rest
        np.testing.assert_allclose(answer["scores"][user], scores, rtol=1e-5, atol=1e-5)
    assert answer["unknown"].numpy().tolist() == UNKNOWN


def test_score_counts_reviews_as_in_python(make_shop):
    shop = make_shop("exact")
    asked = [["k2", "m1", "unknown", "g2"]] * 5
    inputs = of_users(HISTORIES, [""] * 5, REVIEWS, RATINGS)
    answer = shop.signatures["score_reviews"](**inputs, item_ids=tf.constant(asked))
    written = shop.review_vectors(REVIEWS, RATINGS)
    expected = shop.over.probabilities(HISTORIES, asked, review_vectors=written)
    np.testing.assert_allclose(answer["probability"].numpy(), expected, rtol=1e-3, atol=1e-6)


def test_without_reviews_it_is_recommend(make_shop):
    shop = make_shop("exact")
    expected = shop.ask(HISTORIES, [""] * 5)
    for reviews, ratings in (([[]] * 5, [[]] * 5), ([["", ""]] * 5, [[5, np.nan]] * 5)):
        answer = shop.signatures["recommend_reviews"](
            **of_users(HISTORIES, [""] * 5, reviews, ratings)
        )
        for name, value in expected.items():
            np.testing.assert_array_equal(answer[name].numpy(), value)


@pytest.mark.parametrize("queries", [[""] * 5, ["coffee", "garden", "", "Café", "漢字"]])
def test_contexts_count_as_in_python(make_shop, queries):
    shop = make_shop("exact")
    histories = [HISTORIES[0], [], ["nothing like it"], [], HISTORIES[1]]
    inputs = of_users(histories, queries, REVIEWS, RATINGS)
    # An empty place and a name without a value stand anywhere, and add nothing.
    given = [["", *context_texts(of), "level"] for of in CONTEXTS]
    answer = shop.signatures["recommend_context"](**inputs, context=padded(given))
    more = {
        "query_scores": shop.query_scores(queries),
        "review_vectors": shop.review_vectors(REVIEWS, RATINGS),
        "contexts": CONTEXTS,
    }
    expected = shop.over.recommend(histories, k=K, **more)
    for user, best in enumerate(expected):
        rest = K - len(best)
        found = decoded(answer["item_ids"].numpy())[user]
        assert found == [item for item, _ in best] + [""] * rest
        scores = [score for _, score in best] + [FLOOR_SCORE] * rest
        np.testing.assert_allclose(answer["scores"][user], scores, rtol=1e-5, atol=1e-5)
    asked = [["k2", "m1", "unknown", "g2"]] * 5
    answer = shop.signatures["score_context"](
        **inputs, context=padded(given), item_ids=tf.constant(asked)
    )
    expected = shop.over.probabilities(histories, asked, **more)
    np.testing.assert_allclose(answer["probability"].numpy(), expected, rtol=1e-3, atol=1e-6)


def test_without_contexts_it_is_recommend(make_shop):
    shop = make_shop("exact")
    expected = shop.ask(HISTORIES, [""] * 5)
    inputs = of_users(HISTORIES, [""] * 5, [[]] * 5, [[]] * 5)
    for given in (tf.zeros([5, 0], tf.string), tf.constant([["", "level=tin"]] * 5)):
        answer = shop.signatures["recommend_context"](**inputs, context=given)
        for name, value in expected.items():
            np.testing.assert_array_equal(answer[name].numpy(), value)
    with pytest.raises(tf.errors.InvalidArgumentError, match="history and context: not as many"):
        shop.signatures["recommend_context"](**inputs, context=tf.constant([["level=gold"]]))


def test_empty_places_and_no_users_have_their_shapes(make_shop):
    shop = make_shop("exact")
    ask = shop.signatures["recommend_reviews"]
    for users, reviews in ((0, 2), (2, 0)):
        answer = ask(
            history=tf.zeros([users, 0], tf.string),
            query=tf.zeros([users], tf.string),
            reviews=tf.zeros([users, reviews], tf.string),
            ratings=tf.zeros([users, reviews]),
        )
        assert answer["item_ids"].shape == (users, K)
        assert all(map(all, decoded(answer["item_ids"].numpy())))


def test_a_dislike_pushes_away_and_a_like_pulls(make_shop):
    shop = make_shop("exact")
    text = shop.texts[4]  # one encoder reads both: the item itself
    inputs = of_users([[]] * 2, [""] * 2, [[text]] * 2, [[5], [1]])
    asked = tf.constant([["g1"]] * 2)
    liked, disliked = shop.signatures["score_reviews"](**inputs, item_ids=asked)["probability"]
    neither = shop.signatures["score"](
        history=inputs["history"], query=inputs["query"], item_ids=asked
    )["probability"]
    assert liked > neither[0] > disliked


def test_order_counts_and_only_the_newest_are_looked_at(make_shop):
    shop = make_shop("exact")
    answer = shop.ask([["k1", "m2"], ["m2", "k1"]], ["", ""])["scores"]
    assert np.abs(answer[0] - answer[1]).max() > 0.1
    newest = ["k1", "k2", "m1", "m2"]  # max_history
    one, other = (  # asked apart: rows of one batch are rounded differently
        dict(zip(decoded(answer["item_ids"])[0], answer["scores"][0].tolist(), strict=True))
        for answer in (shop.ask([[oldest, *newest]], [""]) for oldest in ("g1", "g2"))
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


def test_popularity_is_discounted_as_log_q_is_and_probabilities_are_not(
    make_shop, tmp_path: Path
) -> None:
    shop = make_shop("exact")
    strength = 4.0
    discounted = replace(shop.recommender, popularity_discount=strength)
    discounted.save(tmp_path / "recommender")
    assert Recommender.load(tmp_path / "recommender").popularity_discount == strength
    result = export_retriever(
        shop.retriever, shop.ids, shop.texts, tmp_path / "shop", k=K, recommender=discounted
    )
    signatures = load_export(result.path).signatures
    counts = {"m1": 4, "k1": 7, "g2": 1, "m2": 2}  # of `a_recommender`
    mean = np.mean(np.log1p(list(counts.values())))  # a new item's
    offset = [np.log1p(counts[one]) if one in counts else mean for one in shop.ids]
    histories = [history for history in HISTORIES if history]
    rows = [shop.over.rows(history) for history in histories]
    expected = shop.over(rows) - strength * np.array(offset)
    for row, seen in zip(expected, rows, strict=True):
        row[seen if len(set(seen)) < len(shop.ids) else []] = -np.inf
    order = np.argsort(-expected, axis=1, kind="stable")[:, :K]
    asked = {"history": padded(histories), "query": tf.constant([""] * len(histories))}
    answer = signatures["recommend"](**asked)
    scores = np.take_along_axis(expected, order, axis=1)
    shown = np.where(np.isfinite(scores), scores, FLOOR_SCORE)
    np.testing.assert_allclose(answer["scores"], shown, rtol=1e-4, atol=1e-4)
    assert (answer["scores"].numpy() != shop.ask(histories, [""] * 4)["scores"]).any()

    # Without a history, or with a query, nothing is discounted; nor is a probability ever.
    others = {"history": padded([[], ["k1"]]), "query": tf.constant(["", "coffee"])}
    plain = shop.signatures["recommend"](**others)
    np.testing.assert_array_equal(signatures["recommend"](**others)["scores"], plain["scores"])
    items = padded([["m1", "g2"]] * len(histories))
    of = [sign["score"](**asked, item_ids=items) for sign in (signatures, shop.signatures)]
    np.testing.assert_allclose(of[0]["probability"], of[1]["probability"], rtol=1e-6)


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
    signatures = {"recommend", "score", "recommend_reviews", "score_reviews"}
    signatures |= {"recommend_context", "score_context"}
    assert manifest.recommender["context"]["level"]["values"] == ["gold", "b=c"]
    assert signatures <= set(manifest.signatures)
    assert manifest.recommender["weights"]["co_occurrence"] == 20.0
    assert manifest.recommender["weights"]["reviews"] == 4.0
    assert manifest.recommender["items_in_histories"] == 5
    assert manifest.foreign_ops == []
    records = tf.data.TFRecordDataset(str(shop.result.path / WARMUP_FILE))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    names = {log.predict_log.request.model_spec.signature_name for log in logs}
    assert signatures <= names


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
        ratings = [[5, 1], [None, None], [], [2, 5, 5, None], [3]]
        reviewed = client.recommend(HISTORIES, k=3, reviews=REVIEWS, ratings=ratings)
        unrated = client.score([["k1"]], [["m1", "g2"]], reviews=[["Red mug"]])
        in_context = client.recommend(HISTORIES, k=3, contexts=CONTEXTS)
        chance = client.score([[]], [["m1", "g2"]], contexts=[{"level": "gold", "age": None}])
        with pytest.raises(InputError, match="5 histories need the contexts of as many users"):
            client.recommend(HISTORIES, contexts=[{}])
        with pytest.raises(InputError, match="as many queries"):
            client.recommend(HISTORIES, ["coffee"])
        with pytest.raises(InputError, match="reviews of as many users"):
            client.recommend(HISTORIES, reviews=[["fine"]])
        with pytest.raises(InputError, match=r"as many ratings, \[1\] a user, not \[2\]"):
            client.recommend([["k1"]], reviews=[["fine"]], ratings=[[1, 2]])
        with pytest.raises(InputError, match="rating is 10"):
            client.recommend([["k1"]], reviews=[["fine"]], ratings=[[10]])
        with pytest.raises(InputError, match="ratings need the reviews"):
            client.score([["k1"]], [["k2"]], ratings=[[1]])
    expected = shop.over.recommend(HISTORIES, k=3)
    for answer, best, unknown in zip(answers, expected, UNKNOWN, strict=True):
        assert [hit.item_id for hit in answer.hits] == [item for item, _ in best]
        assert answer.unknown == unknown
    wanted = shop.over.probabilities(
        [["k1"]], [["m1", "g2"]], query_scores=shop.query_scores(["coffee"])
    )
    np.testing.assert_allclose(chances, wanted, rtol=1e-3)
    given = [[5, 1], [0, 0], [], [2, 5, 5, 0], [3]]
    expected = shop.over.recommend(
        HISTORIES, k=3, review_vectors=shop.review_vectors(REVIEWS, given)
    )
    for answer, best in zip(reviewed, expected, strict=True):
        assert [hit.item_id for hit in answer.hits] == [item for item, _ in best]
    wanted = shop.over.probabilities(
        [["k1"]], [["m1", "g2"]], review_vectors=shop.review_vectors([["Red mug"]], [[0]])
    )
    np.testing.assert_allclose(unrated, wanted, rtol=1e-3)
    expected = shop.over.recommend(HISTORIES, k=3, contexts=CONTEXTS)
    for answer, best in zip(in_context, expected, strict=True):
        assert [hit.item_id for hit in answer.hits] == [item for item, _ in best]
    wanted = shop.over.probabilities([[]], [["m1", "g2"]], contexts=[{"level": "gold"}])
    np.testing.assert_allclose(chance, wanted, rtol=1e-3)


def test_a_plain_grpc_client_and_wrong_shapes(make_shop, start_server):
    """tensorflow-serving-api's own stub: nothing of this package on the client's side."""
    shop = make_shop("hybrid")
    if not hasattr(shop, "server"):
        shop.server = start_server(shop.base)
    with grpc.insecure_channel(shop.server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def ask(signature: str, **inputs: object) -> dict[str, np.ndarray]:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = shop.base.name
            request.model_spec.signature_name = signature
            for name, values in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            answer = stub.Predict(request, timeout=30)
            return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}

        only = ask("recommend", history=[["k1"]], query=[""])  # as clients did before
        assert only["item_ids"].shape == (1, K)
        users = {"history": [["k1"]], "query": [""]}
        nan = np.array([[np.nan, 1]], np.float32)
        found = ask("recommend_reviews", **users, reviews=[["Red mug", "Garden rake"]], ratings=nan)
        written = shop.review_vectors([["Red mug", "Garden rake"]], [[0, 1]])
        expected = shop.over.recommend([["k1"]], k=K, review_vectors=written)
        assert decoded(found["item_ids"]) == [[item for item, _ in expected[0]]]
        for reviews, ratings, said in (
            ([["a", "b"]], np.ones((1, 1), np.float32), "one shape"),
            ([["a"], ["b"]], np.ones((2, 1), np.float32), "not as many users"),
            ([["a"]], np.ones((1,), np.float32), ""),
        ):
            with pytest.raises(grpc.RpcError) as error:
                ask("recommend_reviews", **users, reviews=reviews, ratings=ratings)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert said in error.value.details()
        assert ask("recommend", **users)["item_ids"].shape == (1, K)  # it goes on
