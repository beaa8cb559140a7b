"""What the layers that nothing trains make of the texts, computed once for a whole training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from towers.encoding import padded
from towers.text_encoder import TextEncoder

_MOST_BYTES = 2 << 30  # of all texts of one tower
_TEXTS_AT_A_TIME = 64


def frozen_states(
    tower: TextEncoder, sequences: Sequence[np.ndarray], max_length: int, pad_id: int
) -> list[np.ndarray] | None:
    """States of token sequences above the lowest, frozen layers of a tower.

    Args:
        tower: the encoder.
        sequences: token ids, int ``[T]`` each.
        max_length: tokens of a sequence, at most.
        pad_id: the token that fills up.

    Returns:
        float32 ``[T, hidden]`` each; None where all layers are trained, or the states would take
        more than 2 GiB.
    """
    count = sum(min(len(sequence), max_length) for sequence in sequences)
    if not tower.frozen_layers or 4 * count * int(tower.backbone.hidden_dim) > _MOST_BYTES:
        return None
    ids = tf.TensorSpec([None, None], tf.int32)
    states = tf.function(
        tower.frozen_states, input_signature=[{"token_ids": ids, "padding_mask": ids}]
    )
    found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
    order = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    for start in range(0, len(order), _TEXTS_AT_A_TIME):
        rows = order[start : start + _TEXTS_AT_A_TIME].tolist()
        tokens = padded([sequences[row] for row in rows], max_length, pad_id)
        lengths = tokens["padding_mask"].sum(axis=1).tolist()
        for row, length, one in zip(rows, lengths, states(tokens).numpy(), strict=True):
            found[row] = one[:length].copy()
    return found
