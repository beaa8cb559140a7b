"""A generator of batches as a `tf.data.Dataset` that goes when it is no longer needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf

Source = TypeVar("Source")


def epoch_dataset(
    source: Source,
    batches: Callable[[Source], Iterator[tuple]],
    signature: Any,
    count: int,
) -> tf.data.Dataset:
    """What `batches(source)` yields, begun anew with each iteration.

    TensorFlow never lets go of a Python function that it calls from a graph: `from_generator` on a
    bound method would keep the batches, and towers and optimizer with them, until the process ends
    (300 MB and more for each training). So TensorFlow gets a weak reference, and the dataset holds
    the strong one.

    Args:
        source: made batches of.
        batches: generates them.
        signature: structure of `tf.TensorSpec` of one batch.
        count: number of batches.
    """
    reference = weakref.ref(source)

    def begun() -> Iterator[tuple]:
        there = reference()
        assert there is not None  # the dataset that is iterated holds it
        return batches(there)

    dataset = tf.data.Dataset.from_generator(begun, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)
    dataset.source = source
    return dataset
