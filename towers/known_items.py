"""Items whose vectors have been made before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class KnownItems:
    """Looks vectors up by item text.

    Args:
        texts: item texts without attributes; of equal ones the last counts.
        vectors: float32 ``[N, hidden]``, see `towers.Retriever.encode_base`.

    Raises:
        ValueError: there are not as many vectors as texts.
    """

    def __init__(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"{len(texts)} texts need as many vectors, not {vectors.shape}")
        self.vectors = vectors
        self._row = {text: row for row, text in enumerate(texts)}

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Rows of texts in `vectors`, int64 ``[len(texts)]``, -1 where a text is not known."""
        return np.array([self._row.get(text, -1) for text in texts], np.int64)
