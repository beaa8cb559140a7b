"""BERT WordPiece from strings to NumPy arrays, for machines without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from towers.checkpoint import DEFAULT_PRESET, SPECIAL_TOKENS, Vocabulary, load_vocabulary
from towers.sequence_length import require_lengths


class ArrayTokenizer:
    """Turns strings into the token ids that `towers.Tokenizer` gives, as arrays.

    `Tokenizer` is made of TensorFlow operations, to be part of an exported graph. This one is the
    ``tokenizers`` library, for training on another backend of Keras (JAX on a TPU, say).

    Args:
        vocabulary: pieces and casing rules; see `towers.load_vocabulary`.

    Example:
        >>> tokenizer = ArrayTokenizer.from_preset("all-MiniLM-L6-v2")
        >>> tokenizer(["Café au lait"], max_length=8)["token_ids"]
        array([[  101,  7668,  8740, 21110,   102]], dtype=int32)

    Raises:
        InputError: the vocabulary lacks a special token or repeats a piece.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = vocabulary.ids()
        self._pad_id = ids["[PAD]"]
        wordpiece = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        wordpiece.normalizer = normalizers.BertNormalizer(lowercase=vocabulary.lowercase)
        wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        wordpiece.post_processor = processors.BertProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
        wordpiece.add_special_tokens(list(SPECIAL_TOKENS))
        self._wordpiece = wordpiece

    @classmethod
    def from_preset(cls, preset: str = DEFAULT_PRESET) -> ArrayTokenizer:
        """Reads the vocabulary of a checkpoint; see `towers.checkpoint` for what a preset is."""
        return cls(load_vocabulary(preset))

    def __call__(
        self, texts: Sequence[str], max_length: int, pad_to: int | None = None
    ) -> dict[str, np.ndarray]:
        """Tokenises a batch as ``[CLS] pieces [SEP]``, cut to ``max_length``.

        Args:
            texts: any number of them.
            max_length: the longest sequence, special tokens included; at least 3.
            pad_to: the width ``T`` of the result, at least `max_length`; the longest sequence of
                the batch if None. One width for all batches is one program to compile.

        Returns:
            ``token_ids`` and ``padding_mask`` (1 for tokens, 0 for padding), int32 ``[N, T]``.

        Raises:
            ValueError: a length is too small.
        """
        require_lengths(max_length, pad_to)
        self._wordpiece.enable_truncation(max_length)
        self._wordpiece.enable_padding(pad_id=self._pad_id, length=pad_to)
        batch = self._wordpiece.encode_batch_fast(list(texts))
        width = len(batch[0].ids) if batch else pad_to or 0
        shape = len(batch), width
        ids = np.array([text.ids for text in batch], np.int32).reshape(shape)
        mask = np.array([text.attention_mask for text in batch], np.int32).reshape(shape)
        return {"token_ids": ids, "padding_mask": mask}
