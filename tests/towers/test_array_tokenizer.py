"""Token ids as arrays: those of the checkpoint's own tokenizer and of the one in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tokenizers

from towers import ArrayTokenizer, InputError, Tokenizer
from towers.checkpoint import Vocabulary, resolve_preset

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "##s", "é", "e", "Mug")


def test_the_checkpoints_own_tokenizer_gives_the_same(golden_texts: list[str]) -> None:
    reference = tokenizers.Tokenizer.from_file(
        str(Path(resolve_preset("all-MiniLM-L6-v2")) / "tokenizer.json")
    )
    reference.enable_truncation(16)
    reference.enable_padding(length=20)
    expected = reference.encode_batch(golden_texts)
    batch = ArrayTokenizer.from_preset()(golden_texts, 16, pad_to=20)
    np.testing.assert_array_equal(batch["token_ids"], [text.ids for text in expected])
    np.testing.assert_array_equal(batch["padding_mask"], [text.attention_mask for text in expected])


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(("length", "pad_to"), [(8, None), (3, None), (4, 6)])
def test_the_tokenizer_in_the_graph_gives_the_same(
    lowercase: bool, length: int, pad_to: int | None
) -> None:
    texts = ["red mugs", "", "teapot", "É mug [PAD] Mug [MASK]", "mug " * 30]
    expected = Tokenizer(TOKENS, lowercase=lowercase)(tf.constant(texts), length, pad_to=pad_to)
    batch = ArrayTokenizer(Vocabulary(TOKENS, lowercase))(texts, length, pad_to=pad_to)
    assert batch.keys() == expected.keys()
    for name, value in batch.items():
        assert value.dtype == np.int32
        np.testing.assert_array_equal(value, expected[name])


def test_by_hand() -> None:
    batch = ArrayTokenizer(Vocabulary(TOKENS))(["red mugs", "", "teapot"], max_length=8)
    assert batch["token_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 3, 0, 0, 0], [2, 1, 3, 0, 0]]
    assert batch["padding_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


def test_no_texts() -> None:
    tokenizer = ArrayTokenizer(Vocabulary(TOKENS))
    assert tokenizer([], 8)["token_ids"].shape == (0, 0)
    assert tokenizer([], 8, pad_to=8)["padding_mask"].shape == (0, 8)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"lacks the special token\(s\) \[CLS\]"):
        ArrayTokenizer(Vocabulary(("[PAD]", "[UNK]", "[SEP]", "[MASK]")))
    with pytest.raises(InputError, match="repeats a piece"):
        ArrayTokenizer(Vocabulary((*TOKENS, "mug")))
    tokenizer = ArrayTokenizer(Vocabulary(TOKENS))
    with pytest.raises(ValueError, match="max_length must be 3 or more"):
        tokenizer(["red"], 2)
    with pytest.raises(ValueError, match="pad_to 4 is less than max_length 8"):
        tokenizer(["red"], 8, pad_to=4)
