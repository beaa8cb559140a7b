from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from serving.lexical.spelling import SpellingCorrector

WORDS = ["faucet", "fauna", "bathroom", "plastic", "stainless", "garden", "gardens"]
COUNTS = np.array([50, 1, 20, 20, 30, 40, 2])


@pytest.fixture(scope="module")
def corrector() -> SpellingCorrector:
    return SpellingCorrector(WORDS, COUNTS)


def corrections(corrector: SpellingCorrector, word: str) -> dict[str, float]:
    rows, weights = corrector(tf.constant([word]))
    pairs = zip(rows[0].numpy(), weights[0].numpy(), strict=True)
    return {WORDS[row]: float(weight) for row, weight in pairs if weight}


def dice(a: str, b: str) -> float:
    def pairs(word: str) -> set[str]:
        return set(map("".join, zip(f" {word}", f"{word} ", strict=True)))

    return 2 * len(pairs(a) & pairs(b)) / (len(pairs(a)) + len(pairs(b)))


@pytest.mark.parametrize(
    ("typo", "word"),
    [("facet", "faucet"), ("fauceet", "faucet"), ("stainles", "stainless"), ("gadren", "garden")],
)
def test_typos_are_corrected(corrector, typo, word):
    found = corrections(corrector, typo)
    assert max(found, key=found.get) == word


def test_weight_is_the_square_of_the_similarity(corrector):
    assert corrections(corrector, "bathrom") == {
        "bathroom": pytest.approx(dice("bathrom", "bathroom") ** 2, abs=1e-6)
    }


def test_both_parts_of_a_run_together_word(corrector):
    assert set(corrections(corrector, "plasticbathroom")) == {"plastic", "bathroom"}


def test_weights_add_up_to_one_at_most(corrector):
    found = corrections(corrector, "gardenss")
    assert set(found) == {"garden", "gardens"}
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("word", ["zqx", "電", "q", "é" * 10_000])
def test_what_is_like_nothing_gets_nothing(corrector, word):
    assert corrections(corrector, word) == {}


def test_no_words(corrector):
    rows, weights = corrector(tf.zeros([0], tf.string))
    assert rows.shape == weights.shape == (0, 3)


def test_a_list_shorter_than_the_answer():
    rows, weights = SpellingCorrector(["mug"], np.array([1]))(tf.constant(["mugg"]))
    assert rows.numpy().tolist() == [[0]]
    assert weights.numpy()[0, 0] > 0.3
