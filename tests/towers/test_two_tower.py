"""TwoTower as a plain Keras model, its loss against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from towers.encoding import padded, token_sequences
from towers.losses import InBatchSoftmax
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.two_tower import TwoTower

Make = Callable[..., Retriever]

QUERIES = ["boil water", "filter coffee", "hot coffee cup", "red", "rake", "water hose"]
QUERIES += ["scratching", "torch"]


def tokens(retriever: Retriever, texts: list[str]) -> dict[str, np.ndarray]:
    return padded(token_sequences(retriever.tokenizer, texts, 32), 32, 0)


def pairs(retriever: Retriever, titles: list[str], count: int = 8) -> dict[str, object]:
    return {
        "query": tokens(retriever, QUERIES[:count]),
        "item": tokens(retriever, titles[:count]),
    }


def log_softmax_of(logits: np.ndarray, positive: int, negatives: np.ndarray) -> float:
    """-log of the positive's share among itself and the negatives."""
    kept = np.append(logits[negatives], logits[positive]).astype(np.float64)
    return float(np.log(np.exp(kept - kept.max()).sum()) + kept.max() - logits[positive])


def numpy_loss(
    query: np.ndarray,
    item: np.ndarray,
    temperature: float,
    positive: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
    log_probability: np.ndarray | None = None,
) -> np.ndarray:
    """Query-to-item losses, row by row as the formula reads."""
    logits = query.astype(np.float64) @ item.T.astype(np.float64) / temperature
    if log_probability is not None:
        logits = logits - log_probability
    positive = np.eye(*logits.shape, dtype=bool) if positive is None else positive
    ignored = np.zeros(logits.shape, bool) if ignored is None else ignored
    losses = []
    for row, logit in enumerate(logits):
        negatives = np.flatnonzero(~positive[row] & ~ignored[row])
        terms = [log_softmax_of(logit, j, negatives) for j in np.flatnonzero(positive[row])]
        losses.append(np.mean(terms))
    return np.array(losses)


def loss_of(model: TwoTower, x: dict[str, object], sample_weight: object = None) -> float:
    y_pred = model(x)
    return float(model.compute_loss(x=x, y_pred=y_pred, sample_weight=sample_weight))


def embeddings(model: TwoTower, x: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    vectors = model(x)
    return np.asarray(vectors["query"]), np.asarray(vectors["item"])


@pytest.fixture(scope="module")
def one_way(make_tiny_retriever: Make) -> Retriever:
    """Query-to-item direction only, so that the formula is short."""
    return make_tiny_retriever(loss=InBatchSoftmax(symmetric=False), temperature=0.2)


@pytest.fixture(scope="module")
def titles(tiny_catalog: dict[str, list[str]]) -> list[str]:
    return tiny_catalog["title"]


# The loss of a batch


def test_plain_pairs(one_way: Retriever, titles: list[str]) -> None:
    x = pairs(one_way, titles)
    query, item = embeddings(one_way.model, x)
    assert query.shape == item.shape == (8, 32)
    assert loss_of(one_way.model, x) == pytest.approx(numpy_loss(query, item, 0.2).mean(), rel=1e-5)


def test_both_directions(make_tiny_retriever: Make, titles: list[str]) -> None:
    retriever = make_tiny_retriever(temperature=0.3)
    x = pairs(retriever, titles)
    query, item = embeddings(retriever.model, x)
    expected = (numpy_loss(query, item, 0.3) + numpy_loss(item, query, 0.3)).mean() / 2
    assert loss_of(retriever.model, x) == pytest.approx(expected, rel=1e-5)


def test_extra_negatives(one_way: Retriever, titles: list[str]) -> None:
    x = pairs(one_way, titles, 5) | {"negatives": tokens(one_way, titles[5:])}
    query, item = embeddings(one_way.model, x)
    assert item.shape == (8, 32)
    alone = one_way.model.item_tower(tokens(one_way, titles[5:]))
    np.testing.assert_allclose(item[5:], alone, atol=1e-6)
    assert loss_of(one_way.model, x) == pytest.approx(numpy_loss(query, item, 0.2).mean(), rel=1e-5)


def test_repeated_items_are_no_negatives(one_way: Retriever, titles: list[str]) -> None:
    x = pairs(one_way, titles, 5) | {"negatives": tokens(one_way, titles[5:])}
    x |= {"item_ids": np.array([7, 1, 7, 3, -1]), "negative_ids": np.array([3, -1, 9])}
    ignored = np.zeros((5, 8), bool)
    ignored[0, 2] = ignored[2, 0] = ignored[3, 5] = True  # an id of -1 matches nothing
    query, item = embeddings(one_way.model, x)
    expected = numpy_loss(query, item, 0.2, ignored=ignored).mean()
    assert loss_of(one_way.model, x) == pytest.approx(expected, rel=1e-5)


def test_two_kinds_of_id(one_way: Retriever, titles: list[str]) -> None:
    x = pairs(one_way, titles, 4)
    x["item_ids"] = np.array([[1, 50], [2, 60], [3, 50], [2, 70]])
    ignored = np.zeros((4, 4), bool)
    ignored[0, 2] = ignored[2, 0] = ignored[1, 3] = ignored[3, 1] = True
    query, item = embeddings(one_way.model, x)
    expected = numpy_loss(query, item, 0.2, ignored=ignored).mean()
    assert loss_of(one_way.model, x) == pytest.approx(expected, rel=1e-5)


def test_known_positives_are_targets(one_way: Retriever, titles: list[str]) -> None:
    x = pairs(one_way, titles, 4) | {"negatives": tokens(one_way, titles[4:6])}
    x |= {"item_ids": np.array([10, 11, 12, 13]), "negative_ids": np.array([14, 15])}
    x["positive_ids"] = np.array([[10, 12, 15], [11, -1, -1], [99, -1, -1], [10, -1, -1]])
    positive = np.eye(4, 6, dtype=bool)
    positive[0, [2, 5]] = positive[3, 0] = True  # a query's own item always counts, listed or not
    query, item = embeddings(one_way.model, x)
    expected = numpy_loss(query, item, 0.2, positive=positive).mean()
    assert loss_of(one_way.model, x) == pytest.approx(expected, rel=1e-5)


def test_known_positives_without_multi_positive(make_tiny_retriever: Make, titles: list) -> None:
    loss = InBatchSoftmax(symmetric=False, multi_positive=False)
    retriever = make_tiny_retriever(loss=loss, temperature=0.2)
    x = pairs(retriever, titles, 3) | {"item_ids": np.array([10, 11, 12])}
    x["positive_ids"] = np.array([[10, 12], [11, -1], [12, -1]])
    ignored = np.zeros((3, 3), bool)
    ignored[0, 2] = True
    query, item = embeddings(retriever.model, x)
    expected = numpy_loss(query, item, 0.2, ignored=ignored).mean()
    assert loss_of(retriever.model, x) == pytest.approx(expected, rel=1e-5)


def test_a_second_copy_of_an_item_is_no_second_target(one_way: Retriever, titles: list) -> None:
    x = pairs(one_way, titles, 3) | {"item_ids": np.array([10, 11, 10])}
    x["positive_ids"] = np.array([[10], [11], [10]])
    ignored = np.zeros((3, 3), bool)
    ignored[0, 2] = ignored[2, 0] = True
    query, item = embeddings(one_way.model, x)
    expected = numpy_loss(query, item, 0.2, ignored=ignored).mean()
    assert loss_of(one_way.model, x) == pytest.approx(expected, rel=1e-5)


def test_log_q(one_way: Retriever, titles: list[str]) -> None:
    x = pairs(one_way, titles, 4) | {"negatives": tokens(one_way, titles[4:6])}
    log_probability = np.log([0.5, 0.1, 0.2, 0.01, 0.3, 0.05]).astype(np.float32)
    x["item_log_probability"] = log_probability[:4]
    x["negative_log_probability"] = log_probability[4:]
    query, item = embeddings(one_way.model, x)
    expected = numpy_loss(query, item, 0.2, log_probability=log_probability).mean()
    assert loss_of(one_way.model, x) == pytest.approx(expected, rel=1e-5)


def test_sample_weights(one_way: Retriever, titles: list[str]) -> None:
    x, weight = pairs(one_way, titles, 4), np.array([1.0, 0.0, 3.0, 0.5], np.float32)
    losses = numpy_loss(*embeddings(one_way.model, x), 0.2)
    expected = (weight * losses).sum() / weight.sum()
    assert loss_of(one_way.model, x, weight) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("has", "lacks"),
    [
        (["positive_ids"], "item_ids"),
        (["item_ids", "negatives"], "negative_ids"),
        (["item_log_probability", "negatives"], "negative_log_probability"),
    ],
)
def test_keys_that_need_each_other(
    has: list[str], lacks: str, one_way: Retriever, titles: list[str]
) -> None:
    x = pairs(one_way, titles, 3)
    values = {
        "positive_ids": np.array([[1], [2], [3]]),
        "item_ids": np.array([1, 2, 3]),
        "item_log_probability": np.zeros(3, np.float32),
        "negatives": tokens(one_way, titles[3:4]),
    }
    x |= {name: values[name] for name in has}
    with pytest.raises(ValueError, match=f"without '{lacks}'; it has item"):
        loss_of(one_way.model, x)


# Plain Keras


def test_fit_with_callbacks_evaluate_save_and_load(
    tmp_path: Path, make_tiny_retriever: Make, titles: list[str]
) -> None:
    retriever = make_tiny_retriever(temperature=0.1, learn_temperature=True)
    model, x = retriever.model, pairs(retriever, titles)
    # Keras shuffles and cuts numpy dicts itself; here a batch is given whole.
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    best = tmp_path / "best.keras"
    history = model.fit(
        x,
        batch_size=8,
        epochs=6,
        validation_data=(x, None),
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(best, save_best_only=True),
        ],
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert set(history) == {"loss", "val_loss"}

    loss = model.evaluate(x, batch_size=8, verbose=0)
    assert loss == pytest.approx(loss_of(model, x), rel=1e-5)
    assert loss == pytest.approx(min(history["val_loss"]), rel=1e-5)
    model.save(tmp_path / "model.keras")
    for path in (best, tmp_path / "model.keras"):
        again = keras.saving.load_model(path)
        assert isinstance(again, TwoTower)
        assert loss_of(again, x) == pytest.approx(loss, rel=1e-6)
        assert float(again.temperature) == float(model.temperature) != 0.1
    # The optimizer came along, so that `fit` goes on.
    assert again.compiled
    assert int(again.optimizer.iterations) == 6
    np.testing.assert_array_equal(again.optimizer.variables[3], model.optimizer.variables[3])


@pytest.mark.parametrize("shared", [True, False])
def test_towers_after_loading(
    shared: bool, tmp_path: Path, make_tiny_retriever: Make, titles: list[str]
) -> None:
    loss = InBatchSoftmax(symmetric=False, multi_positive=False)
    model = make_tiny_retriever(shared=shared, temperature=0.07, loss=loss).model
    if not shared:
        model.item_tower.set_weights([w + 0.01 for w in model.item_tower.get_weights()])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.shared is shared
    assert (again.query_tower is again.item_tower) is shared
    assert len(again.weights) == len(model.weights)
    for tower in ("query_tower", "item_tower"):
        for a, b in zip(getattr(again, tower).weights, getattr(model, tower).weights, strict=True):
            np.testing.assert_array_equal(a, b)
    assert again.temperature == 0.07
    assert again.embedding_loss.get_config() == loss.get_config()
    assert again.get_config() == model.get_config()


def test_shared_weights_are_trained_once(make_tiny_retriever: Make) -> None:
    shared, apart = make_tiny_retriever().model, make_tiny_retriever(shared=False).model
    assert len(apart.trainable_weights) == 2 * len(shared.trainable_weights)
    assert TwoTower(shared.query_tower).shared


def test_overfits_eight_pairs(make_tiny_retriever: Make, titles: list[str]) -> None:
    retriever = make_tiny_retriever()
    x = pairs(retriever, titles)
    model = retriever.model
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    history = model.fit(x, batch_size=8, epochs=40, shuffle=False, verbose=0).history
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    query, item = embeddings(model, x)
    np.testing.assert_array_equal((query @ item.T).argmax(axis=1), np.arange(8))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(policy: str, make_tiny_retriever: Make, titles: list[str]) -> None:
    model = make_tiny_retriever(dtype=policy, learn_temperature=True).model
    x = pairs(make_tiny_retriever(), titles)
    assert model.query_tower.compute_dtype == policy.removeprefix("mixed_")
    model.compile(optimizer=keras.optimizers.Adam(1e-3), run_eagerly=True)  # no graph to trace
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled is (policy == "mixed_float16")
    losses = model.fit(x, batch_size=8, epochs=5, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)


def test_float32_twin_of_a_mixed_model(make_tiny_retriever: Make, titles: list[str]) -> None:
    model = make_tiny_retriever(dtype="mixed_bfloat16", temperature=0.3, learn_temperature=True)
    model.model.log_temperature.assign(-2.0)
    twin = model.model.with_dtype("float32")
    assert twin.with_dtype("float32") is twin
    assert twin.shared
    assert float(twin.temperature) == pytest.approx(np.exp(-2.0))
    x = pairs(make_tiny_retriever(), titles)
    assert loss_of(twin, x) == pytest.approx(loss_of(model.model, x), rel=0.05)


# The temperature


def test_a_learned_temperature_moves(make_tiny_retriever: Make, titles: list[str]) -> None:
    retriever = make_tiny_retriever(temperature=0.5, learn_temperature=True)
    model, x = retriever.model, pairs(retriever, titles)
    assert float(model.temperature) == pytest.approx(0.5)
    model.query_tower.trainable = False
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    query, item = embeddings(model, x)

    def loss(log_temperature: float) -> float:
        t = np.exp(log_temperature)
        return float((numpy_loss(query, item, t) + numpy_loss(item, query, t)).mean() / 2)

    start = np.log(0.5)
    slope = (loss(start + 1e-4) - loss(start - 1e-4)) / 2e-4
    model.fit(x, batch_size=8, verbose=0)
    assert float(model.log_temperature) == pytest.approx(start - 0.1 * slope, abs=1e-4)


def test_a_learned_temperature_has_a_floor(make_tiny_retriever: Make, titles: list[str]) -> None:
    retriever = make_tiny_retriever(learn_temperature=True)
    model, x = retriever.model, pairs(retriever, titles)
    model.log_temperature.assign(-20.0)
    assert float(model.temperature) == pytest.approx(0.01)
    query, item = embeddings(model, x)
    expected = (numpy_loss(query, item, 0.01) + numpy_loss(item, query, 0.01)).mean() / 2
    assert loss_of(model, x) == pytest.approx(expected, rel=1e-4)


def test_a_fixed_temperature_is_no_weight(make_tiny_retriever: Make) -> None:
    fixed = make_tiny_retriever().model
    learned = make_tiny_retriever(learn_temperature=True).model
    assert len(learned.trainable_weights) == len(fixed.trainable_weights) + 1


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_bad_temperature(temperature: float, tiny_retriever: Retriever) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        TwoTower(tiny_retriever.model.query_tower, temperature=temperature)


def test_towers_of_different_width(make_tiny_retriever: Make) -> None:
    wide = make_tiny_retriever().model.query_tower
    narrow = TextEncoder(wide.backbone, projection_dim=8)
    with pytest.raises(ValueError, match="makes 32 numbers a text, the item tower 8"):
        TwoTower(wide, narrow)
