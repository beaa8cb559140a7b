"""Masking of whole words, by its properties."""

from __future__ import annotations

import numpy as np
import pytest

from towers import Tokenizer
from towers.encoding import padded, token_sequences
from training.pretrain_batches import MaskedBatches
from training.pretrain_masking import WordMasking

TEXTS = ["electric kettle xylophone", "red mug", "garden hose 20 m", "zebra", "", "rake, hose."]


@pytest.fixture(scope="module")
def tokenizer(tiny_vocabulary: tuple[str, ...]) -> Tokenizer:
    return Tokenizer(tiny_vocabulary)


@pytest.fixture(scope="module")
def batch(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """4,000 texts of words that are one piece, several pieces, unknown, or none."""
    return padded(token_sequences(tokenizer, TEXTS * 700, 32), 32, tokenizer.pad_id)


def words(tokenizer: Tokenizer, ids: np.ndarray) -> list[list[int]]:
    """Positions of each word of a text, special tokens left out."""
    found: list[list[int]] = []
    for place, number in enumerate(ids.tolist()):
        piece = tokenizer.vocabulary[number]
        if piece in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"):
            continue
        if piece.startswith("##"):
            found[-1].append(place)
        else:
            found.append([place])
    return found


def test_whole_words_are_chosen_with_one_probability(
    tokenizer: Tokenizer, batch: dict[str, np.ndarray]
) -> None:
    x, _, known = WordMasking(tokenizer, 0.3)(**batch, rng=np.random.default_rng(0))
    by_length: dict[int, list[bool]] = {}
    for row, ids in enumerate(batch["token_ids"]):
        chosen = set(x["positions"][row][known[row] > 0].tolist())
        for word in words(tokenizer, ids):
            assert chosen.issuperset(word) or not chosen.intersection(word)
            by_length.setdefault(len(word), []).append(word[0] in chosen)
            chosen -= set(word)
        assert not chosen  # nothing but words
    assert len(by_length) > 2
    for flags in by_length.values():
        error = 4 * np.sqrt(0.3 * 0.7 / len(flags))
        assert np.mean(flags) == pytest.approx(0.3, abs=error)


def test_labels_are_what_was_there(tokenizer: Tokenizer, batch: dict[str, np.ndarray]) -> None:
    before = batch["token_ids"].copy()
    x, labels, known = WordMasking(tokenizer)(**batch, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(batch["token_ids"], before)
    assert x["token_ids"].shape == before.shape
    assert labels.shape == known.shape == x["positions"].shape
    assert set(np.unique(known).tolist()) == {0.0, 1.0}
    rows, slots = np.nonzero(known)
    places = x["positions"][rows, slots]
    np.testing.assert_array_equal(labels[rows, slots], before[rows, places])
    untouched = np.ones(before.shape, bool)
    untouched[rows, places] = False
    np.testing.assert_array_equal(x["token_ids"][untouched], before[untouched])
    assert len(set(zip(rows.tolist(), places.tolist(), strict=True))) == len(rows)


def test_eighty_ten_ten(tokenizer: Tokenizer, batch: dict[str, np.ndarray]) -> None:
    x, labels, known = WordMasking(tokenizer, 0.5)(**batch, rng=np.random.default_rng(2))
    rows, slots = np.nonzero(known)
    now, true = x["token_ids"][rows, x["positions"][rows, slots]], labels[rows, slots]
    mask = tokenizer.vocabulary.index("[MASK]")
    ordinary = len(tokenizer.vocabulary) - 5
    shares = [np.mean(now == mask), np.mean((now != mask) & (now != true)), np.mean(now == true)]
    # A random token is the true one now and then.
    expected = [0.8, 0.1 * (1 - 1 / ordinary), 0.1 + 0.1 / ordinary]
    for share, wanted in zip(shares, expected, strict=True):
        error = 4 * np.sqrt(wanted * (1 - wanted) / len(now))
        assert share == pytest.approx(wanted, abs=error)
    replaced = now[(now != mask) & (now != true)]
    assert not {tokenizer.vocabulary[n] for n in replaced} & {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    assert len(np.unique(replaced)) > ordinary / 2  # all over the vocabulary


def test_equal_generators_equal_masks(tokenizer: Tokenizer, batch: dict[str, np.ndarray]) -> None:
    masking = WordMasking(tokenizer)
    first, second, third = (
        masking(**batch, rng=np.random.default_rng(seed))[0]["token_ids"] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_a_batch_without_words_has_an_empty_slot(tokenizer: Tokenizer) -> None:
    tokens = padded(token_sequences(tokenizer, ["", ""], 8), 8, tokenizer.pad_id)
    x, labels, known = WordMasking(tokenizer)(**tokens, rng=np.random.default_rng(0))
    assert labels.shape == (2, 1)
    assert not known.any()
    np.testing.assert_array_equal(x["token_ids"], tokens["token_ids"])


def test_batches_depend_on_seed_and_number_alone(tokenizer: Tokenizer) -> None:
    sequences = token_sequences(tokenizer, [f"mug {n}" for n in range(50)], 16)

    def make(seed: int) -> MaskedBatches:
        return MaskedBatches(sequences, tokenizer, max_length=16, batch_size=8, seed=seed)

    first, second = make(0), make(0)
    assert first.per_epoch == 7
    later = [first.batch(number) for number in range(20)][15]
    np.testing.assert_array_equal(second.batch(15)[0]["token_ids"], later[0]["token_ids"])
    assert (make(1).batch(15)[0]["token_ids"].shape != later[0]["token_ids"].shape) or (
        make(1).batch(15)[0]["token_ids"] != later[0]["token_ids"]
    ).any()
    (x, labels, known), *rest = second.dataset(15, 18).as_numpy_iterator()
    assert len(rest) == 2
    np.testing.assert_array_equal(x["token_ids"], later[0]["token_ids"])
    np.testing.assert_array_equal(labels, later[1])
    np.testing.assert_array_equal(known, later[2])


def test_an_epoch_holds_each_text_once(tokenizer: Tokenizer) -> None:
    sequences = token_sequences(tokenizer, [f"mug {n}" for n in range(50)], 16)
    batches = MaskedBatches(sequences, tokenizer, max_length=16, batch_size=8, mask_rate=1e-9)
    for epoch in range(2):
        rows = [
            tuple(ids[ids != tokenizer.pad_id].tolist())
            for number in range(7 * epoch, 7 * epoch + 7)
            for ids in batches.batch(number)[0]["token_ids"]
        ]
        assert sorted(rows) == sorted(tuple(ids.tolist()) for ids in sequences)
