"""Attributes of catalogue items in training batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from towers.retriever import Retriever


class BatchAttributes:
    """Features of a catalogue's items, row by row; nothing where the towers fuse no attributes.

    Args:
        retriever: the towers that are trained.
        items: rendered items, in an order that `__call__` speaks of.
    """

    def __init__(self, retriever: Retriever, items: Sequence[str]) -> None:
        self._features = retriever.read_attributes(items)

    def signature(self, *names: str) -> dict[str, dict[str, tf.TensorSpec]]:
        """What `__call__` makes for these names, as `tf.data` wants to know it."""
        if self._features is None:
            return {}
        spec = {
            name: tf.TensorSpec([None, values.shape[1]], values.dtype)
            for name, values in self._features.items()
        }
        return dict.fromkeys(names, spec)

    def __call__(self, **rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Inputs of `towers.TwoTower`.

        Args:
            **rows: name of an input, ``item_attributes`` or ``negative_attributes``, to the rows of
                its items.
        """
        if self._features is None:
            return {}
        return {
            name: {key: values[chosen] for key, values in self._features.items()}
            for name, chosen in rows.items()
        }
