"""AdamW whose clipping sees the gradient of the whole batch, on however many devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from towers.replicas import sum_over_replicas


class WholeBatchAdamW(keras.optimizers.AdamW):
    """AdamW that adds up the parts of a gradient before it clips it.

    Keras clips what each replica has and adds up after that, and counts a row of an embedding that
    was looked up twice as two: the length of a step would depend on the number of devices.
    """

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """One step, from the parts of the gradient that this replica has."""
        self.apply_whole(sum_over_replicas(grads), trainable_variables)

    def apply_whole(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """One step, from the gradient of the whole batch."""
        super().apply(grads, trainable_variables)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> list[Any]:
        """Nothing: they have been added up."""
        return list(grads_and_vars)
