"""Items as the columns of a matrix whose products round alike."""

from __future__ import annotations

import numpy as np

# On processors without AVX-512 the last columns of TensorFlow's product, those beyond a multiple of
# 16, are rounded otherwise than the rest: items of equal vectors would not have equal scores.
_COLUMNS = 16


def even_columns(embeddings: np.ndarray) -> np.ndarray:
    """Items as columns, and as many columns of zeros as make a multiple of 16.

    Args:
        embeddings: float ``[N, d]``.

    Returns:
        ``[d, M]`` of the same dtype, ``M`` at least ``N``.
    """
    count, width = embeddings.shape
    columns = np.zeros((width, -(-count // _COLUMNS) * _COLUMNS), embeddings.dtype)
    columns[:, :count] = embeddings.T
    return columns
