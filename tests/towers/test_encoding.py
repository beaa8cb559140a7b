from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from towers import encoding
from towers.encoding import BatchEncoder, padded, token_sequences
from towers.retriever import Retriever
from towers.text_encoder import Architecture, TextEncoder

WORDS = ["kettle", "mug", "garden", "hose", "red", "coffee", "filter", "lid"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(0, 40, 150)]


def test_equal_to_one_by_one_in_order(tiny_retriever: Retriever, texts: list[str]) -> None:
    tower, tokenizer = tiny_retriever.model.item_tower, tiny_retriever.tokenizer
    vectors = BatchEncoder(tower, tokenizer).encode(texts, max_length=32)
    assert vectors.dtype == np.float32
    assert vectors.shape == (150, 32)
    for row in range(0, 150, 7):
        alone = tower(tokenizer(tf.constant([texts[row]]), 32))[0]
        np.testing.assert_allclose(vectors[row], alone, atol=1e-5)


def test_no_texts(tiny_retriever: Retriever) -> None:
    assert tiny_retriever.encode_items([]).shape == (0, 32)


def test_progress_rises_to_the_total(tiny_retriever: Retriever, texts: list[str]) -> None:
    calls: list[tuple[int, int]] = []
    tiny_retriever.encode_items(texts, progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert len(calls) > 1
    assert done == sorted(set(done))
    assert calls[-1] == (150, 150)
    assert {call[1] for call in calls} == {150}


def test_bfloat16_is_near(tiny_retriever: Retriever, texts: list[str]) -> None:
    exact = tiny_retriever.encode_items(texts)
    fast = tiny_retriever.encode_items(texts, dtype="bfloat16")
    assert fast.dtype == np.float32
    assert not np.array_equal(fast, exact)
    assert (fast * exact).sum(axis=1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(fast, axis=1), 1.0, atol=1e-5)


def test_any_length_up_to_all_positions(
    make_tiny_retriever: Callable[..., Retriever],
) -> None:
    tower, tokenizer = make_tiny_retriever().model.item_tower, make_tiny_retriever().tokenizer
    text = "kettle mug " * 40
    for length in (61, 64):
        vectors = BatchEncoder(tower, tokenizer).encode([text], max_length=length)
        alone = tower(tokenizer(tf.constant([text]), length))
        np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_encoders_of_one_shape_are_compiled_once(
    make_tiny_encoder: Callable[..., TextEncoder],
    tiny_retriever: Retriever,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[Architecture] = []
    embed = Architecture.embed

    def watched(self: Architecture, *arguments: Any, **options: Any) -> Any:
        if not tf.executing_eagerly():
            compiled.append(self)
        return embed(self, *arguments, **options)

    monkeypatch.setattr(Architecture, "embed", watched)
    encoding._tf_function.cache_clear()
    tokenizer, texts = tiny_retriever.tokenizer, ["kettle mug", "garden", ""]
    for seed, pooling in ((0, "mean"), (1, "mean"), (1, "max"), (0, "max"), (2, "mean")):
        tower = make_tiny_encoder(seed, pooling=pooling)
        vectors = BatchEncoder(tower, tokenizer).encode(texts, max_length=8)
        alone = tower(tokenizer(tf.constant(texts), 8))
        np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert compiled == [Architecture(2, "mean"), Architecture(2, "max")]


def test_batches_hold_about_the_tokens_they_should(
    tiny_retriever: Retriever, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BATCH_TOKENS", 256)
    monkeypatch.setattr(encoding, "_BATCHES_AT_ONCE", 1)  # so that they come in their order
    encoder = BatchEncoder(tiny_retriever.model.item_tower, tiny_retriever.tokenizer)
    shapes: list[tuple[int, ...]] = []

    def spy(*arguments: Any) -> dict[str, np.ndarray]:
        batch = padded(*arguments)
        shapes.append(batch["token_ids"].shape)
        return batch

    monkeypatch.setattr(encoding, "padded", spy)
    encoder.encode(texts, max_length=32)
    assert sum(rows for rows, _ in shapes) == 150
    assert max(rows * width for rows, width in shapes) <= 256
    lengths = {len(ids) for ids in token_sequences(tiny_retriever.tokenizer, texts, 32)}
    assert {width for _, width in shapes} <= lengths  # as wide as the longest, no wider
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_token_sequences_by_hand(tiny_retriever: Retriever) -> None:
    tokenizer = tiny_retriever.tokenizer
    mug, red = tokenizer.vocabulary.index("mug"), tokenizer.vocabulary.index("red")
    start, end = tokenizer.cls_id, tokenizer.sep_id
    sequences = token_sequences(tokenizer, ["red mug", "", "mug mug mug"], 4)
    assert [ids.tolist() for ids in sequences] == [
        [start, red, mug, end],
        [start, end],
        [start, mug, mug, end],
    ]


def test_more_texts_than_are_tokenised_at_a_time(
    tiny_retriever: Retriever, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = token_sequences(tiny_retriever.tokenizer, texts, 16)
    monkeypatch.setattr(encoding, "_TOKENISE_ROWS", 7)
    parts = token_sequences(tiny_retriever.tokenizer, texts, 16)
    assert [ids.tolist() for ids in parts] == [ids.tolist() for ids in whole]


def test_padded_by_hand() -> None:
    sequences = [np.array([2, 5, 3]), np.array([2, 3])]
    batch = padded(sequences, max_length=5, pad_id=9, step=8)
    assert batch["token_ids"].tolist() == [[2, 5, 3, 9, 9], [2, 3, 9, 9, 9]]
    assert batch["padding_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert padded(sequences, max_length=30, pad_id=0, step=8)["token_ids"].shape == (2, 8)
    assert padded(sequences, max_length=30, pad_id=9)["token_ids"].tolist() == [
        [2, 5, 3],
        [2, 3, 9],
    ]
