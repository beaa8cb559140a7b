"""One batch spread over several devices: what each of them needs to see all of it.

A softmax over the batch is no sum over its rows: its negatives are the other rows. Devices that see
their own rows alone compute another loss, one with fewer negatives the more devices there are. So
embeddings are gathered across the replicas of a `tf.distribute` strategy, and the loss is that of
the whole batch everywhere (as in CLIP: Radford et al. 2021, figure 3, and GradCache: Gao et al.
2021, section 3.3).

Under `keras.distribution` (JAX) there is nothing to do: arrays are global there, and so is a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

# Inputs that are encoded, of which the loss sees the vectors alone.
_ENCODED = ("query", "item", "item_attributes", "negatives", "negative_attributes", "cached")


def replica_count() -> int:
    """Number of replicas that train on parts of this batch; 1 outside of a strategy."""
    context = _context()
    return 1 if context is None else context.num_replicas_in_sync


def whole_batch(x: Mapping[str, Any], sample_weight: Any) -> tuple[dict[str, Any], Any]:
    """What a loss needs beside vectors, of the batch of all replicas: ids, probabilities, weights.

    Args:
        x: inputs of this replica, as `towers.TwoTower` takes them.
        sample_weight: float ``[b]`` or None.

    Returns:
        The inputs and the sample weights, with the rows of all replicas in the order of replicas;
        texts, which are encoded where they are, stay as they were given. Columns stay too: what has
        one for each candidate has one for each of the whole batch from the start.
    """
    if replica_count() == 1:
        return dict(x), sample_weight
    rows = {name: value for name, value in x.items() if name not in _ENCODED}
    if sample_weight is not None:
        rows["sample_weight"] = sample_weight
    # Names in order: all replicas must gather the same tensor at the same time.
    whole = {name: _gathered(rows[name]) for name in sorted(rows)}
    sample_weight = whole.pop("sample_weight", None)
    return {**x, **whole}, sample_weight


def whole_vectors(x: Mapping[str, Any], vectors: Mapping[str, Any]) -> dict[str, Any]:
    """The embeddings of the batch of all replicas; their gradient goes back to where they are from.

    Args:
        x: inputs of this replica.
        vectors: ``{"query": [b, d], "item": [c, d]}`` of it: own items, negatives, cached.

    Returns:
        The same of all replicas, ``[B, d]`` and ``[C, d]``: own items of all, negatives of all,
        cached ones of all, so that a query and its own item stand in the same row.
    """
    if replica_count() == 1:
        return dict(vectors)
    parts, start = list[Any](), 0
    sizes = [ops.shape(vectors["query"])[0]]
    if "negatives" in x:
        sizes.append(ops.shape(x["negatives"]["token_ids"])[0])
    if "cached" in x:
        sizes.append(ops.shape(x["cached"])[0])
    for size in sizes:
        parts.append(_gathered(vectors["item"][start : start + size]))
        start += size
    return {"query": _gathered(vectors["query"]), "item": ops.concatenate(parts)}


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """The gradients of the whole batch, from the parts of them that the replicas have.

    Args:
        gradients: those of this replica, None where there is none.

    Returns:
        The sums, as plain tensors. TensorFlow's gradient of gathered rows is a list of rows, and
        its norm another one than that of their sum where a row was gathered twice.
    """
    if keras.backend.backend() != "tensorflow":
        return list(gradients)
    import tensorflow as tf

    parts = [tf.convert_to_tensor(part) for part in gradients if part is not None]
    if replica_count() > 1:
        parts = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, parts)
    sums = iter(parts)
    return [None if part is None else next(sums) for part in gradients]


def reportable(logs: Mapping[str, Any]) -> dict[str, Any]:
    """What a step reports, in the shape that `fit` can average over workers.

    Keras averages the logs of `tf.distribute.MultiWorkerMirroredStrategy` along their first axis,
    which a scalar does not have.
    """
    context = _context()
    if context is None:
        return dict(logs)
    import tensorflow as tf

    if not isinstance(context.strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return dict(logs)
    return {name: ops.reshape(value, (1,)) for name, value in logs.items()}


def _gathered(rows: Any) -> Any:
    """The rows of all replicas, one after the other."""
    import tensorflow as tf

    # The identity: an input has no device yet, and several workers ask for one.
    rows = tf.identity(rows)
    if rows.dtype == tf.bool:  # which collectives do not take
        return tf.cast(_gathered(tf.cast(rows, tf.int32)), tf.bool)
    return tf.distribute.get_replica_context().all_gather(rows, axis=0)


def _context() -> Any:
    """The replica context of TensorFlow; None under other backends and between replicas."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context()
