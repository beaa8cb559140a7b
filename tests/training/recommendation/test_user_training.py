"""What batches of next items hold, by brute force; and what training makes of known transitions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from towers.user_tower import UserTower
from training.recommendation.user_training import (
    NextItemBatches,
    TrainedTower,
    UserTraining,
    train_user_tower,
)

ITEMS = 30
SETTINGS = UserTraining(batch_size=8, negatives=12)
Example = tuple[tuple[int, ...], int]


def random_histories(count: int, longest: int = 9, seed: int = 0) -> list[np.ndarray]:
    """Two items at least, some of them more than once."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, ITEMS, rng.integers(2, longest + 1)) for _ in range(count)]


def rows(vectors: np.ndarray) -> np.ndarray:
    """Which items vectors are of, where the embeddings are the identity."""
    assert (vectors.max(axis=-1) == 1).all()
    assert (vectors.sum(axis=-1) == 1).all()
    return vectors.argmax(axis=-1)


def epoch(batches: NextItemBatches) -> list[dict[str, np.ndarray]]:
    return [batches[index][0] for index in range(len(batches))]


def examples(batch: dict[str, np.ndarray]) -> list[Example]:
    """(known past items, next item) of a batch."""
    past, items = rows(batch["history"]), rows(batch["item"])
    return [
        (tuple(row[known].tolist()), int(item))
        for row, known, item in zip(past, batch["known"], items, strict=True)
    ]


def expected_examples(histories: list[np.ndarray], max_history: int) -> list[Example]:
    """Each event but the first of a history that brought a new item, with what came before."""
    found = []
    for history in histories:
        taken = history.tolist()
        for place in range(1, len(taken)):
            past = taken[:place]
            if place >= len(taken) - max_history and taken[place] not in past:
                found.append((tuple(past[-max_history:]), taken[place]))
    return found


def make(
    histories: list[np.ndarray], settings: UserTraining = SETTINGS, seed: int = 3
) -> NextItemBatches:
    return NextItemBatches(histories, np.eye(ITEMS, dtype=np.float32), settings, seed)


@pytest.mark.parametrize("max_history", [50, 3])
def test_an_epoch_has_each_next_item_with_what_came_before(max_history: int) -> None:
    histories = random_histories(20)
    expected = expected_examples(histories, max_history)
    assert any(len(set(past)) < len(past) for past, _ in expected)
    one_batch = replace(SETTINGS, batch_size=1000, max_history=max_history)
    batches = make(histories, one_batch)
    assert len(batches) == 1
    assert sorted(examples(batches[0][0])) == sorted(expected)

    # Batches of one size: what is left over comes another time.
    batches = make(histories, replace(one_batch, batch_size=8))
    found = [example for batch in epoch(batches) for example in examples(batch)]
    assert len(found) == len(expected) // 8 * 8
    assert len(found) < len(expected)
    left = list(expected)
    for example in found:
        left.remove(example)  # none is made up, none comes twice


def test_what_is_padding_is_not_known() -> None:
    for batch in epoch(make(random_histories(20))):
        width = batch["known"].shape[1]
        assert batch["history"].shape == (8, width, ITEMS)
        for known in batch["known"]:
            count = int(known.sum())
            assert count >= 1
            np.testing.assert_array_equal(known, np.arange(width) < count)  # oldest first


def test_no_item_that_a_user_has_is_a_negative() -> None:
    """`ignored` by brute force: the next item itself, wherever it is, and all that was taken."""
    histories = random_histories(20)
    kinds = set()
    for batch in epoch(make(histories)):
        candidates = [*rows(batch["item"]), *rows(batch["negatives"])]
        assert batch["ignored"].shape == (8, 8 + 12)
        for row, (past, item) in enumerate(examples(batch)):
            # One history begins like this, and all of its items up to here are left out.
            assert any((*past, item) == tuple(h[: len(past) + 1].tolist()) for h in histories)
            for place, candidate in enumerate(candidates):
                own = place == row
                ignored = not own and (candidate == item or candidate in past)
                assert batch["ignored"][row, place] == ignored
                kinds.add((own, candidate == item, candidate in past, place < 8))
    # All there can be: others' items and items of the catalogue, each new, taken, or the same.
    of_others = {(False, *kind) for kind in [(False, False), (True, False), (False, True)]}
    assert kinds == {(True, True, False, True)} | {
        (*kind, of_batch) for kind in of_others for of_batch in (False, True)
    }


@pytest.mark.parametrize(("wanted", "count"), [(12, 12), (30, 30), (512, 30), (0, 0)])
def test_negatives_are_different_items_drawn_anew(wanted: int, count: int) -> None:
    drawn = []
    for batch in epoch(make(random_histories(60), replace(SETTINGS, negatives=wanted))):
        assert batch["negatives"].shape == (count, ITEMS)
        drawn.append(tuple(rows(batch["negatives"]).tolist()) if count else ())
        assert len(set(drawn[-1])) == count
    assert len(drawn) > 5
    if count == 12:
        assert len(set(drawn)) == len(drawn)
        assert set().union(*drawn) == set(range(ITEMS))


def test_the_seed_decides_order_and_negatives() -> None:
    histories = random_histories(20)

    def two_epochs(seed: int) -> list[list[dict[str, np.ndarray]]]:
        batches = make(histories, seed=seed)
        first = epoch(batches)
        batches.on_epoch_end()
        return [first, epoch(batches)]

    one, again, other = two_epochs(3), two_epochs(3), two_epochs(4)
    for a, b in zip(itertools.chain(*one), itertools.chain(*again), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    orders = [[examples(batch) for batch in batches] for batches in (*one, *other)]
    for a, b in itertools.combinations(orders, 2):  # another seed, or another epoch
        assert a != b


# Training

RECIPE = UserTraining(epochs=15, patience=2, batch_size=64, negatives=40, learning_rate=1e-2)


def turning_catalogue(items: int = 40, planes: int = 8) -> np.ndarray:
    """Items on a circle in each of some planes: one rotation takes each to the next one.

    Each plane turns by another share of the circle, so that an item says nothing of what is next by
    being near it.
    """
    speeds = np.random.default_rng(1).permutation(np.arange(1, items // 2))[:planes]
    angles = 2 * np.pi / items * np.arange(items)[:, None] * speeds
    found = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(planes)
    return found.astype(np.float32)


def turning_histories(count: int, items: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 7, count)
    return [(rng.integers(items) + np.arange(length)) % items for length in lengths]


def reciprocal_rank(tower: UserTower, embeddings: np.ndarray, history: np.ndarray) -> float:
    """Of the last item of one user, in NumPy but for the tower's own call."""
    past, last = history[:-1], history[-1]
    inputs = {"history": embeddings[past][None], "known": np.ones((1, len(past)), bool)}
    scores = np.asarray(tower(inputs))[0] @ embeddings.T
    others = np.setdiff1d(np.arange(len(embeddings)), [*past, last])
    return 1.0 / (1 + int((scores[others] > scores[last]).sum()))


def untrained(width: int, settings: UserTraining) -> UserTower:
    return UserTower(width, decay=settings.decay, temperature=settings.temperature)


def assert_is_untrained(tower: UserTower, settings: UserTraining) -> None:
    plain = untrained(tower.embedding_dim, settings)
    for a, b in zip(tower.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_the_best_is_kept(trained: TrainedTower, settings: UserTraining) -> None:
    """The first of the best epochs; training ends `patience` epochs after it, if not before."""
    scores = trained.held_out
    assert trained.best_epoch == scores.index(max(scores))
    assert len(scores) - 1 == min(settings.epochs, trained.best_epoch + settings.patience)


def test_a_rotation_is_learned_and_holds_for_other_users() -> None:
    embeddings = turning_catalogue()
    histories = turning_histories(300, len(embeddings), seed=0)
    trained = train_user_tower(histories, embeddings, RECIPE, seed=1)
    assert trained.best_epoch > 0
    assert_the_best_is_kept(trained, RECIPE)
    assert trained.held_out[0] < 0.3
    assert trained.held_out[trained.best_epoch] > 0.9

    others = [h for h in turning_histories(80, len(embeddings), seed=9) if len(h) > 2]
    plain = untrained(embeddings.shape[1], RECIPE)
    before, after = (
        np.mean([reciprocal_rank(tower, embeddings, history) for history in others])
        for tower in (plain, trained.tower)
    )
    assert before < 0.3
    assert after > 0.9


def test_random_histories_do_no_harm() -> None:
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(ITEMS, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    trained = train_user_tower(random_histories(200, seed=5), embeddings, RECIPE, seed=1)
    assert_the_best_is_kept(trained, RECIPE)
    assert trained.held_out[trained.best_epoch] >= trained.held_out[0]
    if trained.best_epoch == 0:
        assert_is_untrained(trained.tower, RECIPE)


def test_what_cannot_be_bettered_is_left_as_it_was() -> None:
    """Of two near items both are taken: the untrained tower finds the second of each held-out."""
    rng = np.random.default_rng(3)
    pairs = np.repeat(np.eye(15, 16, dtype=np.float32), 2, axis=0)
    embeddings = pairs + 0.01 * rng.normal(size=pairs.shape).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    starts = [rng.permutation(15)[:2] for _ in range(60)]
    histories = [np.array([2 * other, 2 * one, 2 * one + 1]) for other, one in starts]
    trained = train_user_tower(histories, embeddings, replace(RECIPE, patience=1), seed=1)
    assert trained.best_epoch == 0
    assert trained.held_out[0] == 1
    assert len(trained.held_out) == 2  # it was trained, and that was undone
    assert_is_untrained(trained.tower, RECIPE)


@pytest.mark.parametrize(
    ("histories", "settings"),
    [
        (random_histories(39), RECIPE),  # 20 to hold out, and fewer than these to train on
        ([*random_histories(39), *[np.array([3])] * 30], RECIPE),  # one item has no next one
        ([np.array([item % ITEMS] * 3) for item in range(60)], RECIPE),  # nothing new was taken
        (random_histories(60), replace(RECIPE, epochs=0)),
    ],
)
def test_too_little_to_learn_from(histories: list[np.ndarray], settings: UserTraining) -> None:
    trained = train_user_tower(histories, np.eye(ITEMS, dtype=np.float32), settings)
    assert (trained.held_out, trained.best_epoch) == ([], 0)
    assert_is_untrained(trained.tower, settings)
