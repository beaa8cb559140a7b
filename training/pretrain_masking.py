"""Whole words masked for a masked language model."""

from __future__ import annotations

import numpy as np

from towers.tokenizer import Tokenizer

_MASKED_SHARE = 0.8
_RANDOM_SHARE = 0.1  # what is left stays as it is


class WordMasking:
    """Hides whole words of token sequences, as BERT's authors do.

    Every word is chosen with the same probability, and with it all its pieces: a piece would often
    follow from the others. Of the chosen tokens 80% become ``[MASK]``, 10% a random token and 10%
    stay, each by itself, so that the encoder cannot tell which tokens it is asked for.

    References: Devlin et al. 2019, "BERT", section 3.1; whole words as in the authors' later
    release (https://github.com/google-research/bert, May 2019).

    Args:
        tokenizer: says where words begin (a piece that begins with ``##`` continues one) and which
            tokens are special: these are never chosen and never put in.
        rate: probability of a word.
    """

    def __init__(self, tokenizer: Tokenizer, rate: float = 0.15) -> None:
        pieces = tokenizer.vocabulary
        special = np.array([piece.startswith("[") and piece.endswith("]") for piece in pieces])
        self.rate = rate
        self._special = special & (np.array([len(piece) for piece in pieces]) > 2)
        self._continues = np.array([piece.startswith("##") and piece != "##" for piece in pieces])
        self._ordinary = np.flatnonzero(~self._special)
        self._mask_id = pieces.index("[MASK]")

    def __call__(
        self, token_ids: np.ndarray, padding_mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Masks a batch.

        Args:
            token_ids: int32 ``[N, T]``.
            padding_mask: int32 ``[N, T]``, 1 for tokens.
            rng: decides; equal generators, equal masks.

        Returns:
            ``x`` with ``token_ids`` as changed and ``padding_mask``, int32 ``[N, T]``, and
            ``positions`` of the chosen tokens, int32 ``[N, P]``; their true ids, int32 ``[N, P]``;
            and 1 for them and 0 for what fills rows up, float32 ``[N, P]``. ``P`` is the largest
            number of a row, and at least 1.
        """
        chosen = self._chosen(token_ids, padding_mask, rng)
        fate = rng.random(token_ids.shape)
        others = rng.choice(self._ordinary, token_ids.shape)
        hidden = np.where(
            fate < _MASKED_SHARE,
            self._mask_id,
            np.where(fate < _MASKED_SHARE + _RANDOM_SHARE, others, token_ids),
        )
        count = chosen.sum(axis=1)
        # Stable: the chosen ones first, from left to right.
        positions = np.argsort(~chosen, axis=1, kind="stable")[:, : max(int(count.max()), 1)]
        known = np.arange(positions.shape[1]) < count[:, None]  # [N, P]
        x = {
            "token_ids": np.where(chosen, hidden, token_ids).astype(np.int32),
            "padding_mask": padding_mask,
            "positions": np.where(known, positions, 0).astype(np.int32),
        }
        labels = np.where(known, np.take_along_axis(token_ids, positions, axis=1), 0)
        return x, labels.astype(np.int32), known.astype(np.float32)

    def _chosen(
        self, token_ids: np.ndarray, padding_mask: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Tokens of the chosen words, bool ``[N, T]``."""
        ordinary = (padding_mask > 0) & ~self._special[token_ids]
        word = np.cumsum(~self._continues[token_ids], axis=1)  # of each token, [N, T]
        drawn = rng.random((len(token_ids), token_ids.shape[1] + 1)) < self.rate
        return np.take_along_axis(drawn, word, axis=1) & ordinary
