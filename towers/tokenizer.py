"""BERT WordPiece as TensorFlow graph operations, equal to the reference implementation.

The reference is the ``tokenizers`` library reading the checkpoint's ``tokenizer.json``
(``BertNormalizer``, ``BertPreTokenizer``, ``WordPiece``). TensorFlow Text's own normaliser applies
NFKC where the reference applies NFD, so the normalisation is written out here and
`FastBertTokenizer` only splits and looks up (Song et al. 2021, "Fast WordPiece Tokenization").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from towers.checkpoint import DEFAULT_PRESET, SPECIAL_TOKENS, Vocabulary, load_vocabulary
from towers.sequence_length import require_lengths

# Private-use characters stand for what the reference recognises and a word splitter cannot: a
# letter that no vocabulary knows, and special tokens spelt out in the text. Text cannot smuggle
# them in: the reference deletes private-use characters, and so does the first step below.
_UNKNOWN_LETTER = "\ue000"
_SPECIAL_CHARACTERS = tuple(chr(0xE001 + i) for i in range(len(SPECIAL_TOKENS)))

_PRIVATE_USE = r"\p{Co}"
_WHITESPACE = (
    r"[\t\n\r\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"
)
# Control and format characters (Cc, Cf) of the Unicode version the reference knows.
_CONTROL = (
    r"[\x{FFFD}\x{0}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}\x{AD}\x{600}-\x{605}\x{61C}"
    r"\x{6DD}\x{70F}\x{180E}\x{200B}-\x{200F}\x{202A}-\x{202E}\x{2060}-\x{2064}\x{2066}-\x{206F}"
    r"\x{FEFF}\x{FFF9}-\x{FFFB}\x{110BD}\x{1BCA0}-\x{1BCA3}\x{1D173}-\x{1D17A}\x{E0001}"
    r"\x{E0020}-\x{E007F}]"
)
_CJK = (
    r"([\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B81F}"
    r"\x{2B920}-\x{2CEAF}\x{2F800}-\x{2FA1F}])"
)
# Marks and punctuation newer than the reference's Unicode tables: plain letters to it, and letters
# that are in no vocabulary. Found by comparing every code point (tests/towers/test_tokenizer.py).
_NEWER_THAN_REFERENCE = (
    r"[\x{61D}\x{7FD}\x{890}-\x{891}\x{898}-\x{89F}\x{8CA}-\x{8E2}\x{9FD}-\x{9FE}\x{A76}"
    r"\x{AFA}-\x{AFF}\x{B55}\x{C04}\x{C3C}\x{C77}\x{C84}\x{D00}\x{D3B}-\x{D3C}\x{D81}\x{EBA}"
    r"\x{ECE}\x{180F}\x{1885}-\x{1886}\x{1ABF}-\x{1ACE}\x{1B4E}-\x{1B4F}"
    r"\x{1B7D}-\x{1B7F}\x{1DF6}-\x{1DFB}\x{2E43}-\x{2E4F}\x{2E52}-\x{2E5D}\x{A82C}\x{A8C5}"
    r"\x{A8FF}\x{A9BD}\x{10D24}-\x{10D27}\x{10D6E}\x{10EAB}-\x{10EAD}\x{10EFD}-\x{10EFF}"
    r"\x{10F46}-\x{10F50}\x{10F55}-\x{10F59}\x{10F82}-\x{10F89}\x{11070}\x{11073}-\x{11074}"
    r"\x{110C2}\x{110CD}\x{111CF}\x{1123E}\x{11241}\x{1133B}\x{113D4}-\x{113D5}"
    r"\x{113D7}-\x{113D8}\x{11438}-\x{1143F}\x{11442}-\x{11444}\x{11446}\x{1144B}-\x{1144F}"
    r"\x{1145A}-\x{1145B}\x{1145D}-\x{1145E}\x{11660}-\x{1166C}\x{116B9}\x{1182F}-\x{11837}"
    r"\x{11839}-\x{1183B}\x{1193B}-\x{1193C}\x{1193E}\x{11943}-\x{11946}\x{119D4}-\x{119D7}"
    r"\x{119DA}-\x{119DB}\x{119E0}\x{119E2}\x{11A01}-\x{11A0A}\x{11A33}-\x{11A38}"
    r"\x{11A3B}-\x{11A47}\x{11A51}-\x{11A56}\x{11A59}-\x{11A5B}\x{11A8A}-\x{11A96}"
    r"\x{11A98}-\x{11A9C}\x{11A9E}-\x{11AA2}\x{11B00}-\x{11B09}\x{11BE1}\x{11C30}-\x{11C36}"
    r"\x{11C38}-\x{11C3D}\x{11C3F}\x{11C41}-\x{11C45}\x{11C70}-\x{11C71}\x{11C92}-\x{11CA7}"
    r"\x{11CAA}-\x{11CB0}\x{11CB2}-\x{11CB3}\x{11CB5}-\x{11CB6}\x{11D31}-\x{11D36}\x{11D3A}"
    r"\x{11D3C}-\x{11D3D}\x{11D3F}-\x{11D45}\x{11D47}\x{11D90}-\x{11D91}\x{11D95}\x{11D97}"
    r"\x{11EF3}-\x{11EF4}\x{11EF7}-\x{11EF8}\x{11F00}-\x{11F01}\x{11F36}-\x{11F3A}\x{11F40}"
    r"\x{11F42}-\x{11F4F}\x{11FFF}\x{12FF1}-\x{12FF2}\x{13430}-\x{13440}\x{13447}-\x{13455}"
    r"\x{16D6D}-\x{16D6F}\x{16E97}-\x{16E9A}\x{16F4F}\x{16FE2}\x{16FE4}\x{1CF00}-\x{1CF2D}"
    r"\x{1CF30}-\x{1CF46}\x{1E000}-\x{1E006}\x{1E008}-\x{1E018}\x{1E01B}-\x{1E021}"
    r"\x{1E023}-\x{1E024}\x{1E026}-\x{1E02A}\x{1E08F}\x{1E130}-\x{1E136}\x{1E2AE}"
    r"\x{1E2EC}-\x{1E2EF}\x{1E4EC}-\x{1E4EF}\x{1E5FF}\x{1E944}-\x{1E94A}\x{1E95E}-\x{1E95F}"
    r"\x{2B820}-\x{2B91F}]"
)
_MARK = r"[\p{Mn}\x{1734}]"  # U+1734 was a non-spacing mark once
_PUNCTUATION = r"([\p{P}\x{166D}])"  # U+166D was punctuation once
_FORMER_PUNCTUATION = r"\x{111C9}"  # so was U+111C9, a mark today; no vocabulary has it
# The reference gives up on words of more than 100 characters. Punctuation other than ASCII has
# been set apart by spaces before this pattern is used, which keeps RE2's automaton small.
_LONG_WORD = r"[^ !-/:-@\[-`{-~]{101,}"
_MAX_BYTES_PER_WORD = 400  # 100 characters of up to four bytes


class Tokenizer(tf.Module):
    """Turns strings into BERT token ids inside a TensorFlow graph.

    Token ids equal those of the ``tokenizers`` library: special tokens spelt out in the text,
    characters outside the vocabulary, control characters and words of more than 100 characters
    included. Bytes that are not UTF-8 are dropped, as the reference drops U+FFFD.

    Args:
        vocabulary: the WordPiece pieces in id order; must hold ``[PAD] [UNK] [CLS] [SEP] [MASK]``.
        lowercase: lower-case and strip accents first.

    Example:
        >>> tokenizer = Tokenizer.from_preset("all-MiniLM-L6-v2")
        >>> tokenizer(tf.constant(["Café au lait"]), max_length=8)["token_ids"]
        <tf.Tensor: shape=(1, 5), dtype=int32, numpy=array([[  101,  7668,  8740, 21110,   102]]...

    Raises:
        InputError: the vocabulary lacks a special token or repeats a piece.
    """

    def __init__(self, vocabulary: Sequence[str], *, lowercase: bool = True) -> None:
        super().__init__(name="tokenizer")
        # An array: a tf.Module walks through every sequence it holds, dozens of times when saved.
        self._pieces = np.array(vocabulary, object)
        self.lowercase = lowercase
        ids = Vocabulary(self.vocabulary, lowercase).ids()
        self.pad_id, self.cls_id, self.sep_id = ids["[PAD]"], ids["[CLS]"], ids["[SEP]"]
        self._special_ids = [ids[token] for token in SPECIAL_TOKENS]
        self._wordpiece = tf_text.FastBertTokenizer(
            [*self.vocabulary, *_SPECIAL_CHARACTERS],
            token_out_type=tf.int32,
            unknown_token="[UNK]",
            max_bytes_per_word=_MAX_BYTES_PER_WORD,
        )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The pieces in id order."""
        return tuple(self._pieces.tolist())

    @classmethod
    def from_preset(cls, preset: str = DEFAULT_PRESET) -> Tokenizer:
        """Reads the vocabulary of a checkpoint; see `towers.checkpoint` for what a preset is."""
        return cls.from_vocabulary(load_vocabulary(preset))

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> Tokenizer:
        """Builds the tokenizer of a vocabulary that has been read already."""
        return cls(vocabulary.tokens, lowercase=vocabulary.lowercase)

    def save(self, folder: str | Path) -> None:
        """Writes ``vocab.txt`` and ``tokenizer_config.json``, readable as a preset."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "vocab.txt").write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")
        config = f'{{"do_lower_case": {str(self.lowercase).lower()}}}\n'
        (path / "tokenizer_config.json").write_text(config, encoding="utf-8")

    def normalize(self, texts: tf.Tensor) -> tf.Tensor:
        """The reference's text normalisation.

        Args:
            texts: string ``[N]``, bytes of any kind.

        Returns:
            string ``[N]``: cleaned, CJK characters and punctuation set apart by spaces.
        """
        x = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        # Not deleted outright: that could join "[S" and "EP]" into a special token.
        x = tf.strings.regex_replace(x, _PRIVATE_USE, "\x01")
        for token, character in zip(SPECIAL_TOKENS, _SPECIAL_CHARACTERS, strict=True):
            pattern = token.replace("[", r"\[").replace("]", r"\]")
            x = tf.strings.regex_replace(x, pattern, f" {character} ")
        x = tf.strings.regex_replace(x, _CONTROL, "")
        x = tf.strings.regex_replace(x, _WHITESPACE, " ")
        x = tf.strings.regex_replace(x, _CJK, r" \1 ")
        x = tf.strings.regex_replace(x, _NEWER_THAN_REFERENCE, _UNKNOWN_LETTER)
        x = tf.strings.regex_replace(x, _FORMER_PUNCTUATION, f" {_UNKNOWN_LETTER} ")
        if self.lowercase:
            x = tf_text.normalize_utf8(x, "NFD")
            x = tf.strings.regex_replace(x, _MARK, "")
            # The reference lower-cases letter by letter: no final sigma.
            x = tf.strings.regex_replace(x, "Σ", "σ")
            x = tf.strings.lower(x, encoding="utf-8")
        x = tf.strings.regex_replace(x, _PUNCTUATION, r" \1 ")
        return tf.strings.regex_replace(x, _LONG_WORD, _UNKNOWN_LETTER)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Piece ids without ``[CLS]`` and ``[SEP]``.

        Args:
            texts: string ``[N]``.

        Returns:
            int32 ragged ``[N, (pieces)]``.
        """
        pieces = self._wordpiece.tokenize(self.normalize(texts))
        size = len(self._pieces)
        special = tf.constant(self._special_ids, tf.int32)

        def restore_special(ids: tf.Tensor) -> tf.Tensor:
            return tf.where(ids < size, ids, tf.gather(special, tf.maximum(ids - size, 0)))

        return tf.ragged.map_flat_values(restore_special, pieces)

    def __call__(
        self, texts: tf.Tensor, max_length: int, pad_to: int | None = None
    ) -> dict[str, tf.Tensor]:
        """Tokenises a batch as ``[CLS] pieces [SEP]``, cut to ``max_length``.

        Args:
            texts: string ``[N]``.
            max_length: the longest sequence, special tokens included; at least 3.
            pad_to: the width ``T`` of the result, at least `max_length`; the longest sequence of
                the batch if None.

        Returns:
            ``token_ids`` and ``padding_mask`` (1 for tokens, 0 for padding), int32 ``[N, T]``.

        Raises:
            ValueError: a length is too small.
        """
        return self.padded(self.tokenize(texts), max_length, pad_to)

    def padded(
        self, pieces: tf.RaggedTensor, max_length: int, pad_to: int | None = None
    ) -> dict[str, tf.Tensor]:
        """As a call, of texts that are tokenised already: int32 ragged ``[N, (pieces)]``."""
        require_lengths(max_length, pad_to)
        pieces = pieces[:, : max_length - 2]
        count = pieces.nrows(out_type=tf.int32)
        start = tf.fill([count, 1], self.cls_id)
        end = tf.fill([count, 1], self.sep_id)
        sequences = tf.concat([start, pieces, end], axis=1)
        token_ids = sequences.to_tensor(self.pad_id, shape=[None, pad_to])
        lengths = tf.cast(sequences.row_lengths(), tf.int32)
        mask = tf.sequence_mask(lengths, tf.shape(token_ids)[1], dtype=tf.int32)
        return {"token_ids": token_ids, "padding_mask": mask}
