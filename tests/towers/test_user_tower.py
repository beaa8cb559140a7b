"""The user tower against NumPy written from its formula, and its properties."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from towers import UserTower

DIM = 6


@pytest.fixture
def items() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(9, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def users(tower: UserTower, history: np.ndarray, known: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(tower({"history": history, "known": known}))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def shaken(tower: UserTower, seed: int = 1) -> UserTower:
    draw = np.random.default_rng(seed)
    tower.set_weights([w + 0.3 * draw.normal(size=w.shape) for w in tower.get_weights()])
    return tower


def test_untrained_it_is_the_mean_weighted_by_recency(items):
    vector = users(UserTower(DIM, decay=0.5), items[None, :3], np.ones((1, 3), bool))[0]
    np.testing.assert_allclose(vector, unit(0.25 * items[0] + 0.5 * items[1] + items[2]), atol=1e-6)


def test_trained_it_is_the_formula(items):
    tower = shaken(UserTower(DIM, attention_dim=3))
    weights = {name: np.array(value) for name, value in tower.weights_by_name().items()}
    history = items[:4]
    logits = history @ weights["answering"] @ (history[-1] @ weights["asking"])
    logits -= weights["rate"] * np.array([3, 2, 1, 0])
    attention = np.exp(logits) / np.exp(logits).sum()
    pooled = attention @ history
    expected = unit(pooled + pooled @ weights["kernel"])
    found = users(tower, history[None], np.ones((1, 4), bool))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_and_unknown_items_may_stand_anywhere(items):
    tower = shaken(UserTower(DIM))
    plain = users(tower, items[None, :3], np.ones((1, 3), bool))
    places = np.array([[7, 0, 8, 1, 2, 7]])
    known = np.array([[False, True, False, True, True, False]])
    np.testing.assert_allclose(users(tower, items[places], known), plain, atol=1e-6)


def test_an_empty_history_is_zero_and_finite(items):
    tower = shaken(UserTower(DIM))
    found = users(tower, items[None, :3], np.zeros((1, 3), bool))
    np.testing.assert_array_equal(found, np.zeros((1, DIM)))
    assert users(tower, np.zeros((2, 0, DIM)), np.zeros((2, 0), bool)).shape == (2, DIM)


def test_order_matters_unless_nothing_decays(items):
    known = np.ones((1, 3), bool)
    recent, mean = UserTower(DIM, decay=0.5), UserTower(DIM, decay=1.0)
    assert (
        np.abs(
            users(recent, items[None, :3], known) - users(recent, items[None, 2::-1], known)
        ).max()
        > 0.1
    )
    np.testing.assert_allclose(
        users(mean, items[None, :3], known), users(mean, items[None, 2::-1], known), atol=1e-6
    )


def test_saved_and_loaded_it_is_the_same(items, tmp_path):
    tower = shaken(UserTower(DIM, decay=0.8, attention_dim=4, temperature=0.1))
    tower.save(tmp_path / "tower.keras")
    again = keras.saving.load_model(tmp_path / "tower.keras")
    assert again.get_config() == tower.get_config()
    known = np.ones((1, 4), bool)
    np.testing.assert_array_equal(
        users(again, items[None, :4], known), users(tower, items[None, :4], known)
    )


def test_the_loss_is_the_softmax_over_items_and_negatives(items):
    tower = UserTower(DIM, temperature=0.2)
    batch = {
        "history": items[[[0, 1], [2, 3]]],
        "known": np.ones((2, 2), bool),
        "item": items[[4, 5]],
        "negatives": items[[6, 7]],
        "ignored": np.array([[False, False, True, False], [False] * 4]),
    }
    vectors = users(tower, batch["history"], batch["known"])
    logits = vectors @ items[[4, 5, 6, 7]].T / 0.2
    logits[0, 2] = -np.inf
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))
    found = float(tower.compute_loss(x=batch, y_pred=vectors))
    assert found == pytest.approx(expected, abs=1e-5)


def test_it_learns_a_shift_that_no_mean_can_make(items):
    """The next item is always a fixed rotation of the newest."""
    keras.utils.set_random_seed(0)
    turned = np.roll(items, 1, axis=1)
    tower = UserTower(DIM, temperature=0.1)
    tower.compile(optimizer=keras.optimizers.Adam(0.05))
    batch = {"history": items[:, None], "known": np.ones((9, 1), bool), "item": turned}

    def right() -> float:
        scores = users(tower, batch["history"], batch["known"]) @ turned.T
        return float((scores.argmax(axis=1) == np.arange(9)).mean())

    before = right()
    for _ in range(60):
        tower.train_on_batch(batch)
    assert before < 0.5
    assert right() == 1.0


@pytest.mark.parametrize("wrong", [{"decay": 0.0}, {"decay": 1.1}, {"temperature": 0.0}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UserTower(DIM, **wrong)
