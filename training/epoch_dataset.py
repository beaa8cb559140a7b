"""A generator of batches as a `tf.data.Dataset` that goes when it is no longer needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

Source = TypeVar("Source")


def epoch_dataset(
    source: Source,
    batches: Callable[[Source], Iterator[tuple]],
    signature: Any,
    count: int,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """What `batches(source)` yields, begun anew with each iteration.

    Inside the scope of a `tf.distribute` strategy of several replicas, each of them gets its part
    of the rows of every batch. TensorFlow's own way of sharing a batch out wants all its arrays to
    have the same number of rows; here each is cut by itself.

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

    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        """The parts for the replicas of one worker, in turn."""
        here = replicas // context.num_input_pipelines
        first = here * context.input_pipeline_id

        def parts() -> Iterator[tuple]:
            for batch in begun():
                yield from row_parts(batch, replicas)[first : first + here]

        return tf.data.Dataset.from_generator(parts, output_signature=signature).prefetch(2 * here)

    if replicas > 1:
        dataset = strategy.distribute_datasets_from_function(of_worker)
        # TensorFlow counts parts. Where Keras does not know the number of batches it asks for one
        # too many, and by the time that there is none it has taken a part of a step.
        dataset._cardinality = count
    else:
        dataset = tf.data.Dataset.from_generator(begun, output_signature=signature)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)
    dataset.source = source
    return dataset


def row_parts(batch: tuple, count: int) -> list[tuple]:
    """Cuts all arrays of a batch into parts of equally many rows, give or take one.

    Args:
        batch: a nest of arrays, which may have different numbers of rows.
        count: number of parts; some are empty where there are fewer rows.
    """
    cut = [np.array_split(array, count) for array in tf.nest.flatten(batch)]
    return [tf.nest.pack_sequence_as(batch, list(part)) for part in zip(*cut, strict=True)]
