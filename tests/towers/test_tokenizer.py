"""Token ids against the `tokenizers` library, the implementation the checkpoints were made with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.checkpoint import load_vocabulary, resolve_preset
from towers.errors import InputError
from towers.tokenizer import Tokenizer

TORTURE = [
    "",
    " ",
    "\t\n\r \u00a0\u2003\u3000",
    "kettle",
    "Café crème BRÛLÉE naïve Ångström",
    "Cafe\u0301 decomposed, Café composed",
    "İstanbul ISPARTA ıssız",
    "ΟΔΟΣ ὈΔΥΣΣΕΎΣ Σ ς σ ΑΣ ΑΣΑ",
    "漢字かな交じり文 電熱水壺 㐀 𠀀 𫝀 豈",
    "한국어 조선말",
    "हिन्दी தமிழ் ไทย עִבְרִית اَلْعَرَبِيَّة",
    "½ ¾ ² ³ ₂ Ⅷ ① ㎏ ™ № ﷺ",
    "ﬁne ﬂoor ﬃ ĳ ǆ œ æ ß ẞ",
    "ＦＵＬＬ－ｗｉｄｔｈ １２３ ｶﾀｶﾅ",
    "👩‍👩‍👧 mug 🔥 🇫🇷 ☕️ 👍🏽",
    "a\u0000b a\u0001b a\u0007b a\u007fb a\u0085b a\u00adb",
    "a\u200bb a\u200cb a\u200db a\u2060b \ufeffa a\ufffdb a\u2028b a\u2029b",
    "a\ue000b a\ue001b \ue002 \uf8ff a\U000f0000b \U0010fffd",
    "[CLS] [SEP] [PAD] [MASK] [UNK]",
    "a[SEP]b [sep] [ SEP ] [[SEP]] [SEP [MASK]kettle ##kettle",
    "[S\ue000EP] [S\u0000EP] [\u200bSEP] [SÉP]",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "kettle " + "é" * 100 + " mug",
    "kettle " + "é" * 101 + " mug",
    "e\u0301" * 100,
    "e\u0301" * 101,
    "x" * 60 + "-" + "x" * 60,
    "x" * 60 + "、" + "x" * 60,
    "漢" * 150,
    "𝔘" * 101,
    "x" * 10_000,
    "red mug " * 1_250,
    "don't stop-it (now)... $5.99 <b>50%</b> a_b ~`^|\\ “quoted” ‘so’ — – … ¿¡«»",
    "a\u0301\u0302\u0303\u0304 \u0301 \u0301a",
    "\ud7a3 \ufb01 \u1e9e \u0130 \u2126 \u212b \u1fb3",
]


def ids_of(pieces: tf.RaggedTensor) -> list[list[int]]:
    return pieces.to_list()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_preset("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def reference_ids() -> Callable[[list[str]], list[list[int]]]:
    """The pieces of each text without [CLS] and [SEP], by the `tokenizers` library."""
    path = Path(resolve_preset("all-MiniLM-L6-v2")) / "tokenizer.json"
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.no_truncation()
    reference.no_padding()

    def ids(texts: list[str]) -> list[list[int]]:
        encodings = reference.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return ids


@pytest.mark.parametrize("text", TORTURE, ids=lambda text: ascii(text[:20]))
def test_torture_set(
    text: str, tokenizer: Tokenizer, reference_ids: Callable[[list[str]], list[list[int]]]
) -> None:
    assert ids_of(tokenizer.tokenize(tf.constant([text]))) == reference_ids([text])


def test_golden_texts(
    golden_texts: list[str],
    tokenizer: Tokenizer,
    reference_ids: Callable[[list[str]], list[list[int]]],
) -> None:
    assert ids_of(tokenizer.tokenize(tf.constant(golden_texts))) == reference_ids(golden_texts)


@pytest.mark.parametrize("form", ["a{}b", "{}", "A {} b"])
def test_every_code_point(
    form: str, tokenizer: Tokenizer, reference_ids: Callable[[list[str]], list[list[int]]]
) -> None:
    # Inside a word every code point; alone and between spaces those of the planes in use. Many
    # words a text, for speed.
    last = 0x110000 if form == "a{}b" else 0x20000
    words = [form.format(chr(code)) for code in range(last) if not 0xD800 <= code < 0xE000]
    texts = [" ".join(words[start : start + 64]) for start in range(0, len(words), 64)]
    wrong = []
    for start in range(0, len(texts), 1024):
        chunk = texts[start : start + 1024]
        found = ids_of(tokenizer.tokenize(tf.constant(chunk)))
        expected = reference_ids(chunk)
        wrong += [text for text, a, b in zip(chunk, found, expected, strict=True) if a != b]
    codes = [
        hex(ord(character))
        for text in wrong
        for character in sorted(set(text))
        if ids_of(tokenizer.tokenize(tf.constant([form.format(character)])))
        != reference_ids([form.format(character)])
    ]
    assert not codes
    assert not wrong


FRAGMENTS = [
    "[SEP]",
    "[",
    "SEP]",
    "\ue000",
    "\u0301",
    "\u0327",
    "\u200b",
    "\0",
    "e",
    "Σ",
    "漢",
    " ",
]
FRAGMENTS += ["##s", "İ", "ﬁ", "\u1100", "\u1161", "\uac00", "x" * 50, ".", "\u3001", "\u0f77"]


@given(
    texts=st.lists(
        st.text(max_size=40) | st.lists(st.sampled_from(FRAGMENTS)).map("".join),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_text(
    texts: list[str],
    tokenizer: Tokenizer,
    reference_ids: Callable[[list[str]], list[list[int]]],
) -> None:
    assert ids_of(tokenizer.tokenize(tf.constant(texts))) == reference_ids(texts)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "##s", "é", "e"])


def test_batch_by_hand(small: Tokenizer) -> None:
    batch = small(tf.constant(["red mugs", "", "teapot"]), max_length=8)
    assert batch["token_ids"].numpy().tolist() == [
        [2, 5, 6, 7, 3],
        [2, 3, 0, 0, 0],
        [2, 1, 3, 0, 0],
    ]
    assert batch["padding_mask"].numpy().tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert batch["token_ids"].dtype == batch["padding_mask"].dtype == tf.int32


def test_cut_to_max_length_keeps_the_separator(small: Tokenizer) -> None:
    batch = small(tf.constant(["red mugs", "red"]), max_length=4)
    assert batch["token_ids"].numpy().tolist() == [[2, 5, 6, 3], [2, 5, 3, 0]]


def test_pad_to(small: Tokenizer) -> None:
    batch = small(tf.constant(["red mugs"]), max_length=4, pad_to=6)
    assert batch["token_ids"].numpy().tolist() == [[2, 5, 6, 3, 0, 0]]
    assert batch["padding_mask"].numpy().tolist() == [[1, 1, 1, 1, 0, 0]]


def test_the_padding_token_spelt_out_is_no_padding(small: Tokenizer) -> None:
    batch = small(tf.constant(["red [PAD] mug"]), max_length=8)
    assert batch["token_ids"].numpy().tolist() == [[2, 5, 0, 6, 3]]
    assert batch["padding_mask"].numpy().tolist() == [[1, 1, 1, 1, 1]]


def test_truncation_and_padding_equal_the_reference(tokenizer: Tokenizer) -> None:
    path = Path(resolve_preset("all-MiniLM-L6-v2")) / "tokenizer.json"
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.enable_truncation(16)
    reference.enable_padding(length=20)
    batch = tokenizer(tf.constant(TORTURE), max_length=16, pad_to=20)
    expected = reference.encode_batch(TORTURE)
    np.testing.assert_array_equal(batch["token_ids"], [text.ids for text in expected])
    np.testing.assert_array_equal(batch["padding_mask"], [text.attention_mask for text in expected])


def test_empty_batch(small: Tokenizer) -> None:
    assert small(tf.constant([], tf.string), max_length=8)["token_ids"].shape[0] == 0
    assert small(tf.constant([], tf.string), 8, pad_to=8)["padding_mask"].shape == (0, 8)


def test_bytes_that_are_not_utf8_are_dropped(small: Tokenizer) -> None:
    texts = [b"red \xff mug", b"r\xffed", b"\xc3", b"\xed\xa0\x80mug", b"\xf4\x90\x80\x80"]
    pieces = ids_of(small.tokenize(tf.constant(texts)))
    assert pieces == [[5, 6], [5], [], [6], []]


def test_inside_a_graph_of_unknown_batch_size(small: Tokenizer) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def tokenize(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        return small(texts, 8)

    assert tokenize(tf.constant(["red", "mugs"]))["token_ids"].numpy().tolist() == [
        [2, 5, 3, 0],
        [2, 6, 7, 3],
    ]


def test_cased_vocabulary_equals_the_reference() -> None:
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "Mug",
        "mug",
        "é",
        "e",
        "##é",
        "caf",
    ]
    vocabulary += ["##\u0301", "Σ", "σ", "İ", "漢", "!", "½"]
    reference = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"
        )
    )
    reference.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    reference.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    reference.add_special_tokens(vocabulary[:5])
    texts = ["Mug mug MUG", "café e\u0301 é", "Σ σ ς İ ½", "漢mug漢!", "[MASK]Mug[mask]"]
    tokenizer = Tokenizer(vocabulary, lowercase=False)
    expected = [reference.encode(text).ids for text in texts]
    assert ids_of(tokenizer.tokenize(tf.constant(texts))) == expected
    assert expected[0] == [5, 6, 1]


@pytest.mark.parametrize("lowercase", [True, False])
def test_save_and_read_back(tmp_path: Path, lowercase: bool) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028", "\x85", "é", "##s"]
    Tokenizer(tokens, lowercase=lowercase).save(tmp_path / "tokenizer")
    vocabulary = load_vocabulary_of(tmp_path / "tokenizer")
    assert vocabulary.vocabulary == tuple(tokens)
    assert vocabulary.lowercase is lowercase


def load_vocabulary_of(folder: Path) -> Tokenizer:
    (folder / "config.json").write_text("{}")  # what makes a folder a checkpoint
    return Tokenizer.from_vocabulary(load_vocabulary(str(folder)))


def test_reading_back_the_checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    again = load_vocabulary_of(tmp_path)
    assert again.vocabulary == tokenizer.vocabulary
    assert again.lowercase


def test_missing_special_token() -> None:
    with pytest.raises(InputError, match=r"lacks the special token\(s\) \[SEP\], \[MASK\]"):
        Tokenizer(["[PAD]", "[UNK]", "[CLS]", "a"])


def test_repeated_piece() -> None:
    with pytest.raises(InputError, match="repeats a piece"):
        Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "a"])


def test_lengths_too_small(small: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_length must be 3 or more"):
        small(tf.constant(["red"]), max_length=2)
    with pytest.raises(ValueError, match="pad_to 4 is less than max_length 8"):
        small(tf.constant(["red"]), max_length=8, pad_to=4)
