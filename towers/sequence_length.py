"""What lengths of token sequences make sense."""

from __future__ import annotations


def require_lengths(max_length: int, pad_to: int | None = None) -> None:
    """Raises `ValueError` where no sequence can be that short, or padding would cut it.

    Args:
        max_length: the longest sequence, ``[CLS]`` and ``[SEP]`` included.
        pad_to: the width that sequences are padded to; that of the longest one if None.
    """
    if max_length < 3:
        raise ValueError(f"max_length must be 3 or more, for [CLS] piece [SEP]; got {max_length}")
    if pad_to is not None and pad_to < max_length:
        raise ValueError(f"pad_to {pad_to} is less than max_length {max_length}")
